--- A directory of 100,000 keys: written, listed, read in pages, watched, changed and deleted, with nothing left out and
-- nothing told twice. (Etcd's own of that kind is in spec/c/test_etcd_scale.c.)
local kv = require("kv")
local native = require("spec.native")
local servers = require("spec.support.servers")

local COUNT = 100000
local PATIENCE = 600

-- The next `count` events, each of another key of the directory, all of this type.
local function expect(watch, kind, count)
  local seen, deadline = {}, native.now() + PATIENCE
  for n = 1, count do
    local event, message = watch:next(math.max(deadline - native.now(), 0))
    if not event then error(("%s after %d of %d"):format(message, n - 1, count), 2) end
    assert(event.type == kind and event.key:find("^dir/%d+$"), event.type .. " " .. event.key)
    assert(not seen[event.key], event.key .. " is told twice")
    seen[event.key] = true
  end
end

local function quiet(watch)
  local event, message, code = watch:next(0.2)
  assert.is_nil(event)
  assert.equal("timeout", code, message)
end

-- Adds the pairs of an array to those that came before: sorted, and each with its value. Their number so far.
local function check(pairs_there, values, count, last)
  for _, pair in ipairs(pairs_there) do
    assert(values[pair.key] == pair.value and last < pair.key, pair.key)
    last = pair.key
  end
  return count + #pairs_there, last
end

describe("a hundred thousand children:", function()
  for _, backend in ipairs{"consul", "etcd2", "zookeeper"} do
    it(backend, function()
      local server = servers[backend]{arguments = backend == "etcd2" and {"--unsafe-no-fsync"} or nil}
      local store = assert(kv.open(server:url("/app"), {timeout = PATIENCE}))
      local other = assert(kv.open(server:url("/app"), {timeout = PATIENCE}))
      local values = {}
      for i = 1, COUNT do values["dir/" .. i] = "v" end
      assert(store:put_many(values))
      assert.equal(COUNT, (check(assert(store:list("dir")), values, 0, "")))
      local count, last = 0, ""
      for page in store:pages("dir") do count, last = check(page, values, count, last) end
      assert.equal(COUNT, count)
      local watch = assert(other:watch_tree("dir"))
      assert(watch:wait_synced(PATIENCE))
      expect(watch, "put", COUNT)
      assert(store:put("dir/777", "w"))
      expect(watch, "put", 1)
      quiet(watch)
      assert(store:delete_tree("dir"))
      expect(watch, "delete", COUNT)
      quiet(watch)
      assert.same({}, (store:list("dir")))
      store:close()
      other:close()
      server:stop()
    end)
  end
end)
