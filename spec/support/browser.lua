--- A headless Chromium for specs of pages, by its driver (package chromium-driver): WebDriver's HTTP, asked by curl.
--
--    browser.missing()                 what is not installed, or nil
--    local page = browser.start()
--    page:open("http://127.0.0.1:8080/")
--    page:run("return document.title")    JavaScript: what it returns
--    page:stop()
local cjson = require("cjson")
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local browser = {}

local Page = {}
Page.__index = Page

function browser.missing()
  for _, name in ipairs{"chromium", "chromedriver"} do
    if not servers.run{name, "--version"} then return name end
  end
end

function Page:ask(method, path, body)
  local command = {"curl", "-sS", "--max-time", "60", "-X", method, ("http://127.0.0.1:%d%s"):format(self.port, path)}
  if body then
    for _, word in ipairs{"-H", "Content-Type: application/json", "--data", body} do command[#command + 1] = word end
  end
  local answer = cjson.decode((assert(servers.run(command)))).value
  if type(answer) == "table" and answer.error then error(answer.error .. ": " .. tostring(answer.message), 2) end
  return answer
end

function Page:open(url)
  self:ask("POST", self.session .. "/url", cjson.encode{url = url})
end

function Page:run(script)
  local answer = self:ask("POST", self.session .. "/execute/sync",
    ('{"script":%s,"args":[]}'):format(cjson.encode(script)))
  if answer ~= cjson.null then return answer end
end

function Page:stop()
  pcall(self.ask, self, "DELETE", self.session or "/")
  self.process:kill("TERM")
  if not self.process:wait(10) then self.process:kill("KILL") end
  util.remove(self.folder)
end

function browser.start()
  local self = setmetatable({folder = util.folder(), port = native.port()}, Page)
  self.process = assert(native.spawn{"chromedriver", "--port=" .. self.port, stdout = self.folder .. "/log",
    stderr = self.folder .. "/log", env = {"HOME=" .. self.folder}})
  util.eventually(function() return native.listening(self.port) end, "chromedriver listens", 30)
  local arguments = {"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--user-data-dir=" .. self.folder .. "/profile"}
  local ok, made = pcall(self.ask, self, "POST", "/session", cjson.encode{
    capabilities = {alwaysMatch = {["goog:chromeOptions"] = {args = arguments}}}})
  if not ok then
    self:stop()
    error(made, 2)
  end
  self.session = "/session/" .. made.sessionId
  return self
end

return browser
