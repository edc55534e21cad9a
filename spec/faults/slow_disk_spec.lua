--- A disk that hangs under the embedded store: what was begun is unknown, what had to wait behind it was never begun,
-- and reads do not wait. (On the servers the same is a commit that hangs: table_spec.lua.)
local native = require("spec.native")
local util = require("spec.support.util")

local BUILD = os.getenv("KV_BUILD") or "build"

local folder, slow, url, children

local function child()
  local process = assert(native.spawn{util.interpreter(), "spec/support/child.lua", url, "", "timeout=20", pipe = true,
    env = {("LD_PRELOAD=%s/support/slow_disk.so"):format(BUILD), "KV_SLOW_DISK=" .. slow}})
  children[#children + 1] = process
  assert.equal("ready", (process:line(60)))
  return process
end

local function ask(process, ...)
  assert(process:write(table.concat({...}, "\t") .. "\n"))
  return assert(process:line(60))
end

-- What is not to come to an end, and how long it is tried.
local function put_for(process, seconds, key, value)
  return ask(process, "put", key, value, "", tostring(seconds))
end

local function code_of(answer) return answer:match("^error (%S+)") or answer end

describe("a disk that hangs", function()
  before_each(function()
    folder, children = util.folder(), {}
    slow, url = folder .. "/slow", "local:" .. folder .. "/store"
  end)
  after_each(function()
    for _, process in ipairs(children) do
      process:kill("KILL")
      process:wait(10)
    end
    util.remove(folder)
  end)

  it("leaves what was begun unknown, and the rest not begun; reads go on", function()
    local first, second = child(), child()
    assert.truthy(ask(first, "put", "key", "before"):find(" before$"))
    assert.truthy(ask(second, "put", "other", "before"):find(" before$"))
    util.write(slow, "")
    assert.equal("unknown", code_of(put_for(first, 3, "key", "during")))
    assert.equal("timeout", code_of(put_for(first, 0.4, "key", "queued")))
    assert.equal("timeout", code_of(put_for(second, 0.4, "other", "elsewhere")))
    assert.truthy(ask(second, "get", "other"):find(" before$"))
    local seen = ask(first, "get", "key")
    assert.truthy(seen:find(" before$") or seen:find(" during$"), seen)
    assert(os.remove(slow))
    util.eventually(function() return ask(second, "get", "key"):find(" during$") end, "what was begun is done", 20)
    assert.truthy(ask(second, "get", "other"):find(" before$"))
    assert.truthy(ask(first, "put", "key", "after"):find(" after$"))
    assert.truthy(ask(second, "put", "other", "after"):find(" after$"))
  end)

  it("takes a lock from its holder only when its time is up, and he knows", function()
    local first, second = child(), child()
    assert.truthy(ask(first, "lock", "door", "3", "20"):find("^held"))
    util.write(slow, "")
    util.eventually(function() return ask(first, "held") == "false" end, "it is lost", 20)
    assert.equal("timeout", code_of(ask(second, "lock", "door", "30", "0.3")))
    assert(os.remove(slow))
    assert.truthy(ask(second, "lock", "door", "30", "20"):find("^held"))
    assert.equal("lost", code_of(ask(first, "release")))
    assert.equal("true", ask(second, "release"))
  end)
end)
