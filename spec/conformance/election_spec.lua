--- Elections: one leader, whom everybody sees, in the order of the candidates.
local suite = require("spec.support.suite")

local function elected(t, name, value, options)
  local election = assert(t.store:election(name, options))
  assert.equal(election, (assert(election:campaign(value, 10))))
  return election
end

-- What an observer was told: "put VALUE" or "delete".
local function told(t, watch, seconds)
  local event = t.event(watch, seconds)
  if event.type == "put" then
    assert.is_true(event.token > 0)
    return (event.initial and "initial " or "") .. "put " .. event.value, event.token
  end
  assert.is_nil(event.value)
  assert.is_nil(event.token)
  return event.type
end

describe("election", function()
  suite.both("is won, seen by everybody at once, and given up", function(t)
    local election = assert(t.store:election("boss"))
    assert.equal("free", election:state())
    assert.is_false(election:is_leader())
    assert.is_nil((election:leader()))
    assert(election:campaign("worker 7", 10))
    local reader = assert(assert(t:open()):election("boss"))
    assert.same({value = "worker 7", token = election.token}, assert(reader:leader()))
    assert.same({value = "worker 7", token = election.token}, assert(election:leader()))
    assert.is_true(election:is_leader())
    assert.is_false(reader:is_leader())
    assert.equal("held", election:state())
    assert.is_true(election.token > 0 and election.token % 1 == 0)
    assert.is_true(election.ttl > 0)
    assert.equal(true, (election:resign()))
    assert.is_false(election:is_leader())
    local nobody, message = reader:leader()
    assert.is_nil(nobody, message)
    assert.is_nil(message)
  end, "election")

  suite.both("has one leader; others wait as long as they want", function(t)
    local first, second = elected(t, "boss", "a"), assert(t.store:election("boss", {timeout = 0.3}))
    t.fails("timeout", second:campaign("b", 0))
    t.fails("timeout", second:campaign("b"))
    t.fails("held", first:campaign("again", 1))
    assert.equal("a", assert(second:leader()).value)
    assert(first:resign())
    assert(second:campaign("b", 10))
    assert.is_true(second.token > first.token)
    assert.equal("b", assert(first:leader()).value)
    assert(second:resign())
  end, "election")

  suite.both("takes a new value with every campaign, of any bytes", function(t)
    local election, last = assert(t.store:election("boss")), 0
    for _, value in ipairs{"", "a\0b", ("x"):rep(5000), "0123456789abcdef"} do
      assert(election:campaign(value, 10))
      assert.same({value = value, token = election.token}, assert(election:leader()))
      assert.is_true(election.token > last)
      last = election.token
      assert(election:resign())
    end
  end, "election")

  suite.both("does not hinder locks or elections of other names", function(t)
    local lock = assert(assert(t.store:lock("boss")):acquire(10))
    local a, below, escaped = elected(t, "boss", "1"), elected(t, "boss/b", "2"), elected(t, "boss%2Fb", "3")
    assert.equal("1", assert(a:leader()).value)
    assert.equal("2", assert(below:leader()).value)
    assert.equal("3", assert(escaped:leader()).value)
    for _, election in ipairs{below, a, escaped} do assert(election:resign()) end
    assert(lock:release())
  end, "election")

  suite.both("resign twice, or by one who does not lead, is not_held", function(t)
    local election, other = elected(t, "boss", "a"), assert(t.store:election("boss"))
    t.fails("not_held", other:resign())
    t.fails("not_held", other:wait_lost(5))
    assert(election:resign())
    t.fails("not_held", election:resign())
    t.fails("not_held", election:wait_lost(5))
    assert.equal(true, (election:close()))
  end, "election")

  suite.both("tells an observer every leader, and that there is none", function(t)
    local observer = assert(assert(t:open()):election("boss"))
    local watch = assert(observer:observe())
    assert(watch:wait_synced(10))
    t.quiet(watch)
    local first, second = elected(t, "boss", "a"), assert(t.store:election("boss"))
    local text, token = told(t, watch)
    assert.equal("put a", text)
    assert.equal(first.token, token)
    local late = assert(observer:observe())
    assert.equal("initial put a", (told(t, late)))
    assert(first:resign())
    assert.equal("delete", told(t, watch))
    assert.equal("delete", told(t, late))
    assert(second:campaign("b", 10))
    assert.equal("put b", (told(t, watch)))
    assert(second:resign())
    assert.equal("delete", told(t, watch))
    t.quiet(watch)
    assert.is_true(watch:connected())
    watch:close()
    assert.is_nil((watch:next(1)))
  end, "election")

  suite.task("tells every change in order where every version is told, and the last one everywhere", function(t)
    local watch = assert(assert(t:open()):election("boss")):observe()
    assert(watch:wait_synced(10))
    local wanted = {}
    local election = assert(t.store:election("boss"))
    for i = 1, 10 do
      assert(election:campaign("v" .. i, 10))
      if i < 10 then assert(election:resign()) end
      wanted[#wanted + 1] = "put v" .. i
      if i < 10 then wanted[#wanted + 1] = "delete" end
    end
    local seen, last = {}, 0
    repeat
      local text, token = told(t, watch)
      seen[#seen + 1] = text
      if token then
        assert.is_true(token > last)
        last = token
      end
    until text == "put v10"
    if t.store:supports("every_version") then assert.same(wanted, seen) end
    assert(election:resign())
    assert.equal("delete", told(t, watch))
  end, "election")

  suite.task("goes from candidate to candidate in the order of their tokens", function(t)
    local first = elected(t, "boss", "0")
    local watch, order, tasks = assert(first:observe()), {}, {}
    for i = 1, 4 do
      local mine = assert(t.store:election("boss"))
      tasks[i] = t.kv.spawn(function()
        assert(mine:campaign(tostring(i), 30))
        order[#order + 1] = {i, mine.token}
        assert.equal(tostring(i), assert(mine:leader()).value)
        assert(mine:resign())
      end)
      t:eventually(function() return mine:state() == "waiting" end, "candidate " .. i .. " waits")
    end
    assert(first:resign())
    for _, task in ipairs(tasks) do task:join(30) end
    local last = first.token
    for _, entry in ipairs(order) do
      assert.is_true(entry[2] > last)
      last = entry[2]
    end
    assert.equal(4, #order)
    local text, before
    repeat
      before, text = text, told(t, watch)
    until text == "delete" and (before == "put " .. order[4][1] or not t.store:supports("every_version"))
  end, "election")

  suite.task("a candidate that gives up or is cancelled leaves the line", function(t)
    local first = elected(t, "boss", "a")
    local impatient, cancelled, patient = assert(t.store:election("boss")), assert(t.store:election("boss")),
      assert(t.store:election("boss"))
    local one = t.kv.spawn(function() return impatient:campaign("b", 0.3) end)
    local two = t.kv.spawn(function() return cancelled:campaign("c", 30) end)
    local three = t.kv.spawn(function() return patient:campaign("d", 30) end)
    t:eventually(function() return patient:state() == "waiting" end, "all wait")
    t.fails("timeout", one:join(10))
    two:cancel()
    t.fails("cancelled", two:join(10))
    assert(first:resign())
    assert(three:join(10))
    assert.equal("d", assert(first:leader()).value)
    assert(patient:resign())
    assert(cancelled:campaign("c", 5))
    assert(cancelled:resign())
    assert.is_nil((first:leader()))
  end, "election")

  suite.task("cancelled at any moment, a campaign leaves no leader behind", function(t)
    local election, other = assert(t.store:election("boss")), assert(t.store:election("boss"))
    for i = 0, 12 do
      local task = t.kv.spawn(function() return election:campaign("x", 30) end)
      if i > 0 then t.kv.sleep(i * 0.0007) end
      task:cancel()
      local got = task:join(10)
      if got then assert(election:resign()) end
      assert(other:campaign("y", 30))
      assert.equal("y", assert(other:leader()).value)
      assert(other:resign())
      assert.is_nil((other:leader()))
    end
  end, "election")

  suite.task("wait_lost is woken by one's own resigning, and gives up in time before", function(t)
    local election = elected(t, "boss", "a")
    t.fails("timeout", election:wait_lost(0.1))
    local task = t.kv.spawn(function() return election:wait_lost(20) end)
    t.kv.sleep(0.05)
    assert(election:resign())
    t.fails("not_held", task:join(5))
  end, "election")

  suite.task("is renewed past its ttl, as long as its store is open when it is forgotten", function(t)
    local election, other = elected(t, "boss", "a", {ttl = 6}), assert(t.store:election("boss"))
    do elected(t, "forgotten", "f", {ttl = 6}) end
    collectgarbage()
    collectgarbage()
    t.fails("timeout", other:campaign("b", election.ttl * 1.2))
    assert.is_true(election:is_leader())
    assert.equal("a", assert(other:leader()).value)
    assert(election:resign())
    local later = assert(t.store:election("forgotten"))
    t.fails("timeout", later:campaign("b", 0.5))
    assert.equal("f", assert(later:leader()).value)
  end, "election")

  suite.case("of a killed process goes to the next, and the dead one is no leader any more", function(t)
    local child = t:child()
    local token = tonumber(t.ask(child, "campaign", "boss", "old", "2", "10"):match("^leads (%d+)$"))
    local other = assert(t.store:election("boss", {ttl = 2}))
    local watch = assert(other:observe())
    assert.equal("initial put old", (told(t, watch)))
    child:kill("KILL")
    local start = t.now()
    assert(other:campaign("new", 40))
    assert.is_true(other.token > token)
    assert.is_true(t.now() - start < t:inherited_within(2), "it took " .. t.now() - start)
    assert.same({value = "new", token = other.token}, assert(other:leader()))
    local text = told(t, watch)
    if text == "delete" then text = told(t, watch) end
    assert.equal("put new", text)
    assert(other:resign())
  end, "election")

  suite.case("of a killed process with nobody in line has no leader soon", function(t)
    local child = t:child()
    t.ask(child, "campaign", "boss", "old", "2", "10")
    local other = assert(t.store:election("boss"))
    local watch = assert(other:observe())
    assert.equal("initial put old", (told(t, watch)))
    child:kill("KILL")
    assert.equal("delete", told(t, watch, 30))
    assert.is_nil((other:leader()))
  end, "election")

  suite.case("of a stopped process is lost to it before it notices", function(t)
    local child = t:child()
    local token = tonumber(t.ask(child, "campaign", "boss", "old", "2", "10"):match("^leads (%d+)$"))
    child:kill("STOP")
    local other = assert(t.store:election("boss", {ttl = 2}))
    local got, _, code = other:campaign("new", t.backend == "consul" and 45 or 15)
    child:kill("CONT")
    if got then
      assert.is_true(other.token > token)
      assert.equal("false", t.ask(child, "leads"))
      assert.is_truthy(t.ask(child, "resign"):find("^error lost"))
      assert.equal("new", assert(other:leader()).value) -- what the old one tidies up is not the new one's
      assert(other:resign())
    else
      assert.equal("timeout", code)
      assert.equal("local", t.backend)
    end
  end, "election")

  suite.both("guards a transaction", function(t)
    local election, other = elected(t, "boss", "a"), assert(t.store:election("boss"))
    assert(t.store:txn():guard(election):put("data", "1"):commit())
    t.raises(function() t.store:txn():guard({}) end)
    local txn = t.store:txn():guard(election):put("data", "2")
    t.fails("not_held", t.store:txn():guard(other):put("data", "3"):commit())
    assert(election:resign())
    assert(other:campaign("b", 10))
    t.fails("modified", txn:commit())
    assert.equal("1", assert(t.store:get("data")).value)
    assert(other:resign())
  end, "election")

  suite.both("does not show in lists, pages and watches, and delete_tree does not touch it", function(t)
    local root = t:own(assert(t.kv.open(t.url)))
    local watch = assert(t.store:watch_tree(""))
    local election = elected(t, "dir/boss", "v")
    assert.same({}, (t.store:list("")))
    assert(t.store:put("dir/key", "v"))
    assert.equal("dir/key", t.keys(assert(t.store:list("", {limit = 1}))))
    assert.equal("put dir/key v", t.told(watch))
    for _, pair in ipairs(assert(root:list("", {keys_only = true}))) do assert.is_nil(pair.key:match("^%.kv")) end
    assert(t.store:delete_tree("dir"))
    assert(t.store:delete_tree(""))
    assert.is_true(election:is_leader())
    assert.equal("v", assert(election:leader()).value)
    t.fails("timeout", assert(t.store:election("dir/boss")):campaign("w", 0.2))
    assert(election:resign())
  end, "election")

  suite.both("of a view has the view's prefix, and goes with it", function(t)
    local view = t:own(assert(t.store:sub("below")))
    local mine = assert(assert(view:election("boss")):campaign("a", 10))
    local same = assert(t.store:election("below/boss"))
    assert.equal("a", assert(same:leader()).value)
    assert.is_nil((assert(t.store:election("boss")):leader()))
    assert.is_true(view:close())
    assert.is_false(mine:is_leader())
    assert(same:campaign("b", 10))
    assert.equal("b", assert(same:leader()).value)
    assert(same:resign())
  end, "election")

  suite.both("is given up when its store closes", function(t)
    local other = assert(t:open())
    local election = assert(assert(other:election("boss", {ttl = 30})):campaign("a", 10))
    other:close()
    assert.is_false(election:is_leader())
    local mine = elected(t, "boss", "b")
    assert.equal("b", assert(mine:leader()).value)
    assert(mine:resign())
    t.fails("closed", election:campaign("a", 1))
    t.fails("closed", election:observe())
    t.fails("closed", other:election("boss2"))
  end, "election")

  suite.case("is given up at the end of a 5.4 block", function(t)
    if _VERSION ~= "Lua 5.4" then return end
    local chunk = assert((loadstring or load)([[
      local store = ...
      local election <close> = assert(store:election("boss"):campaign("a", 5))
      assert(election:is_leader())
    ]]))
    chunk(t.store)
    assert(elected(t, "boss", "b")):resign()
  end, "election")

  suite.case("refuses bad names, values and options", function(t)
    for _, name in ipairs{"", "a/../b", ".kv", "a\0", ("x"):rep(480)} do
      t.fails("invalid", t.store:election(name))
    end
    assert.is_nil((assert(t.store:election(("x"):rep(200))):leader()))
    t.raises(t.store.election, t.store)
    t.raises(t.store.election, t.store, "boss", {value = "v"})
    t.raises(t.store.election, t.store, "boss", {ttl = "long"})
    local election = assert(t.store:election("boss"))
    t.raises(election.campaign, election)
    t.raises(election.campaign, election, 3)
    t.raises(election.campaign, election, "v", "soon")
    t.raises(election.campaign, election, "v", 1, 2)
    t.raises(election.leader, {})
    t.fails("invalid", election:campaign("v", -1))
  end, "election")
end)
