--- A real nginx with the Lua module, for specs: its files in a temporary folder, ended by its pid.
--
--    local nginx = nginx.start{url = ..., http = "...", server = "location ...", workers = 2}
--    nginx:get("/path", ...)           the body and the status, by curl; more words are curl's
--    nginx:reload()  nginx:quit()      HUP, QUIT
--    nginx:workers()                   pids
--    nginx:errors()                    what the error log says
--    nginx:stop()
local native = require("spec.native")
local servers = require("spec.support.servers")
local util = require("spec.support.util")

local nginx = {}

local Nginx = {}
Nginx.__index = Nginx

local MODULES = "/usr/lib/nginx/modules/"

local TEMPLATE = [[
user root;
daemon off;
master_process on;
worker_processes $workers;
worker_shutdown_timeout 20s;
load_module $modules/ndk_http_module.so;
load_module $modules/ngx_http_lua_module.so;
error_log $folder/error.log notice;
pid $folder/pid;
env KV_TEST_URL;
env TMPDIR;
$main
events { worker_connections 1024; }
http {
  access_log off;
  client_body_temp_path $folder/body;
  proxy_temp_path $folder/proxy;
  fastcgi_temp_path $folder/fastcgi;
  uwsgi_temp_path $folder/uwsgi;
  scgi_temp_path $folder/scgi;
  lua_package_path "$cwd/lua/?.lua;$cwd/lua/?/init.lua;/usr/share/lua/5.1/?.lua;;";
  lua_package_cpath "$cwd/$build/luajit/?.so;;";
$http
  server {
    listen 127.0.0.1:$port;
    location = /up { return 200 up; }
$server
  }
}
]]

function Nginx:get(path, ...)
  local text, problem = servers.run{"curl", "-sS", "--max-time", "15", "-w", "\n%{http_code}",
    ("http://127.0.0.1:%d%s"):format(self.port, path), ...}
  if not text then return nil, problem end
  local body, status = text:match("^(.*)\n(%d+)$")
  return body, tonumber(status)
end

--- The body of a request that must succeed; more words are curl's.
function Nginx:body(path, ...)
  local body, status = self:get(path, ...)
  if status ~= 200 then error(("%s: %s %s\n%s"):format(path, tostring(status), tostring(body), self:errors()), 2) end
  return body
end

function Nginx:errors()
  return util.read(self.folder .. "/error.log") or ""
end

function Nginx:workers()
  local found, master = {}, self.process:pid()
  for pid in (util.read(("/proc/%d/task/%d/children"):format(master, master)) or ""):gmatch("%d+") do
    found[#found + 1] = pid
  end
  return found
end

local function is_there(pid)
  local stat = util.read("/proc/" .. pid .. "/stat")
  return stat ~= nil and stat:match("%) (%a)") ~= "Z"
end

--- Wait until none of these processes is there: a second is theirs by design, and 20 s is what worker_shutdown_timeout
-- gives those who do not go by themselves.
function nginx.gone(pids)
  return util.eventually(function()
    for _, pid in ipairs(pids) do
      if is_there(pid) then return false end
    end
    return true
  end, "the end of old workers", 10)
end

function Nginx:reload() self.process:kill("HUP") end
function Nginx:quit() self.process:kill("QUIT") end

function Nginx:stop()
  if self.process:running() then
    self.process:kill("TERM")
    if not self.process:wait(10) then self.process:kill("KILL") end
  end
  util.remove(self.folder)
end

function nginx.start(options)
  local self = setmetatable({folder = util.folder(), port = assert(native.port())}, Nginx)
  local words = {workers = options.workers or 1, modules = MODULES, folder = self.folder, port = self.port,
    build = os.getenv("KV_BUILD") or "build", cwd = os.getenv("PWD"), http = options.http or "",
    main = options.main or "", server = options.server or ""}
  util.write(self.folder .. "/nginx.conf", (TEMPLATE:gsub("%$(%l+)", words)))
  self.process = assert(native.spawn{"/usr/sbin/nginx", "-p", self.folder, "-c", self.folder .. "/nginx.conf",
    "-e", self.folder .. "/error.log", stdout = self.folder .. "/out", stderr = self.folder .. "/out"})
  util.eventually(function()
    if not self.process:running() then return true end
    return native.listening(self.port)
  end, "nginx listens")
  if not self.process:running() then
    local said = self:errors() .. (util.read(self.folder .. "/out") or "")
    util.remove(self.folder)
    error("nginx ended: " .. said, 2)
  end
  return self
end

return nginx
