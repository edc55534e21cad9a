--- Transactions: all or nothing.
local suite = require("spec.support.suite")

describe("txn", function()
  suite.both("writes and deletes several keys at one revision", function(t)
    assert(t.store:put("old", "v"))
    local result = assert(t.store:txn():put("a", "1"):put("b/c", "2"):delete("old"):commit())
    assert.equal("number", type(result.revision))
    assert.equal("table", type(result.pairs))
    local list, revision = assert(t.store:list(""))
    assert.equal("a b/c", t.keys(list))
    assert.equal("1", list[1].value)
    assert.equal("2", list[2].value)
    assert.equal(result.revision, math.max(list[1].revision, list[2].revision))
    assert.is_true(revision >= result.revision)
  end, "txn")

  suite.both("gives back the pairs that it wrote", function(t)
    local before = assert(t.store:put("b", "0"))
    local result = assert(t.store:txn():put("a", "1"):put("b", "2"):commit())
    local by_key = {}
    for name, pair in pairs(result.pairs) do by_key[type(name) == "string" and name or pair.key] = pair end
    assert.same(assert(t.store:get("a")), by_key.a)
    assert.same(assert(t.store:get("b")), by_key.b)
    assert.equal(before.created, by_key.b.created)
    assert(t.store:atomic_put("a", "3", by_key.a))
  end, "txn")

  suite.both("commits when its checks hold", function(t)
    local pair = assert(t.store:put("checked", "v"))
    local txn = t.store:txn()
    txn:check("checked", pair)
    txn:check_absent("absent")
    txn:put("checked", "w")
    txn:put("absent", "now there")
    assert(txn:commit())
    assert.equal("w", assert(t.store:get("checked")).value)
    assert.equal("now there", assert(t.store:get("absent")).value)
    assert(t.store:txn():check("checked", assert(t.store:get("checked")).revision):delete("checked"):commit())
    assert.is_false(t.store:exists("checked"))
  end, "txn")

  suite.both("does nothing at all when one check fails", function(t)
    local one = assert(t.store:put("one", "1"))
    local two = assert(t.store:put("two", "2"))
    assert(t.store:put("two", "changed"))
    local message = t.fails("modified",
      t.store:txn():check("one", one):check("two", two):put("one", "x"):put("three", "x"):delete("two"):commit())
    assert.is_truthy(message:find("two", 1, true), message)
    t.fails("modified", t.store:txn():check_absent("one"):put("three", "x"):commit())
    t.fails("modified", t.store:txn():check("gone", one):put("three", "x"):commit())
    t.fails("modified", t.store:txn():check("one", one.revision + 1000):put("three", "x"):commit())
    assert.equal("one two", t.keys(assert(t.store:list(""))))
    assert.same(one, assert(t.store:get("one")))
    assert.equal("changed", assert(t.store:get("two")).value)
  end, "txn")

  suite.both("checks alone are a transaction", function(t)
    local pair = assert(t.store:put("key", "v"))
    assert(t.store:txn():check("key", pair):commit())
    t.fails("modified", t.store:txn():check_absent("key"):commit())
  end, "txn")

  suite.both("deleting what is not there is fine", function(t)
    assert(t.store:txn():delete("nothing"):put("key", "v"):commit())
    assert.equal("key", t.keys(assert(t.store:list(""))))
  end, "txn")

  suite.both("takes 64 operations", function(t)
    local txn = t.store:txn()
    for i = 1, 32 do txn:check_absent("key" .. i) end
    for i = 1, 32 do txn:put("key" .. i, tostring(i)) end
    assert(txn:commit())
    assert.equal(32, #assert(t.store:list("")))
  end, "txn")

  suite.both("refuses more than 64 operations", function(t)
    local txn = t.store:txn()
    local function build()
      for i = 1, 33 do txn:check_absent("key" .. i) end
      for i = 1, 32 do txn:put("key" .. i, tostring(i)) end
      return txn:commit()
    end
    t.fails("invalid", build())
    assert.same({}, (t.store:list("")))
  end, "txn")

  suite.both("refuses two checks or two writes of one key", function(t)
    t.fails("invalid", t.store:txn():put("key", "1"):put("key", "2"):commit())
    t.fails("invalid", t.store:txn():put("key", "1"):delete("/key/"):commit())
    t.fails("invalid", t.store:txn():check_absent("key"):check("key", 1):put("key", "1"):commit())
    assert.same({}, (t.store:list("")))
    -- one check and one write of a key are what it is for
    assert(t.store:txn():check_absent("key"):put("key", "1"):commit())
  end, "txn")

  suite.both("refuses bad keys", function(t)
    t.fails("invalid", t.store:txn():put("good", "1"):put("bad/../key", "2"):commit())
    t.fails("invalid", t.store:txn():check_absent(".kv"):put("good", "2"):commit())
    t.fails("invalid", t.store:txn():delete(""):put("good", "2"):commit())
    assert.same({}, (t.store:list("")))
  end, "txn")

  suite.case("raises for misuse", function(t)
    local txn = t.store:txn()
    t.raises(txn.put, txn, "key")
    t.raises(txn.put, txn, "key", {})
    t.raises(txn.check, txn, "key")
    t.raises(txn.check, txn, "key", "1")
    t.raises(txn.guard, txn, "lock")
    t.raises(txn.put, txn, "key", "v", {tll = 1})
  end, "txn")

  suite.both("works in a view below a prefix", function(t)
    local sub = t:own(assert(t.store:sub("below")))
    local result = assert(sub:txn():check_absent("key"):put("key", "v"):commit())
    for _, pair in pairs(result.pairs) do assert.equal("key", pair.key) end
    assert.equal("v", assert(t.store:get("below/key")).value)
  end, "txn")

  suite.both("writes with a time to live", function(t)
    local start = t.now()
    assert(t.store:txn():put("short", "v", {ttl = 1}):put("long", "v"):commit())
    t:goes("short", start, 1)
    assert.equal("long", t.keys(assert(t.store:list(""))))
  end, "txn", "ttl")

  suite.both("is seen whole by a watch", function(t)
    local watch = t:own(assert(t.store:watch_tree("")))
    assert(watch:wait_synced(10))
    local result = assert(t.store:txn():put("a", "1"):put("b", "2"):commit())
    local first, second = t.event(watch), t.event(watch)
    assert.same({a = "1", b = "2"}, {[first.key] = first.value, [second.key] = second.value})
    assert.equal(result.revision, math.max(first.revision, second.revision))
  end, "txn")

  suite.task("moves a token between many without losing it", function(t)
    -- Eight tasks move one unit at a time between accounts; the sum stays.
    local accounts = {"a", "b", "c", "d"}
    for _, name in ipairs(accounts) do assert(t.store:put(name, "10")) end
    local tasks = {}
    for i = 1, 8 do
      tasks[i] = t.kv.spawn(function()
        local done = 0
        while done < 5 do
          local from, to = accounts[(i + done) % 4 + 1], accounts[(i + done + 1) % 4 + 1]
          local there = assert(t.store:get_many{from, to})
          local result, message, code = t.store:txn():check(from, there[from]):check(to, there[to])
            :put(from, tostring(there[from].value - 1)):put(to, tostring(there[to].value + 1)):commit()
          if result then done = done + 1 else assert.equal("modified", code, message) end
        end
      end)
    end
    for _, task in ipairs(tasks) do task:join() end
    local sum = 0
    for _, pair in ipairs(assert(t.store:list(""))) do sum = sum + pair.value end
    assert.equal(40, sum)
  end, "txn")
end)

describe("guard", function()
  suite.both("commits while the lock is held", function(t)
    local lock = assert(assert(t.store:lock("door")):acquire(10))
    assert(t.store:txn():guard(lock):put("inside", "1"):commit())
    assert.equal("1", assert(t.store:get("inside")).value)
    assert(lock:release())
  end, "txn", "lock")

  suite.both("refuses when the lock is not held any more", function(t)
    local lock = assert(assert(t.store:lock("door")):acquire(10))
    assert(lock:release())
    local txn, message, code = t.store:txn():guard(lock)
    local result
    if txn then result, message, code = txn:put("inside", "1"):commit() end
    assert.is_nil(result)
    assert.is_truthy(code == "not_held" or code == "lost" or code == "modified", message)
    assert.is_false(t.store:exists("inside"))
  end, "txn", "lock")

  suite.case("refuses a former holder whose entry another removed", function(t)
    local lock = assert(assert(t.store:lock("door", {ttl = 60})):acquire(10))
    local txn = t.store:txn():guard(lock):put("inside", "1")
    assert(lock:release())
    local successor = assert(assert(t.store:lock("door", {ttl = 60})):acquire(10))
    local result, _, code = txn:commit()
    assert.is_nil(result)
    assert.is_truthy(code == "not_held" or code == "lost" or code == "modified", code)
    assert.is_false(t.store:exists("inside"))
    assert(t.store:txn():guard(successor):put("inside", "2"):commit())
    assert(successor:release())
  end, "txn", "lock")
end)
