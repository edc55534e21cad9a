-- Our side of the benchmark: one measurement, done by a process of its own, printed as numbers on one line.
--
--   work.lua load URL get|put IN_FLIGHT SECONDS KEY VALUE_SIZE    operations/s, CPU microseconds each
--   work.lua loop URL SECONDS KEY VALUE_SIZE                      gets/s of a plain loop
--   work.lua puts URL IN_FLIGHT SECONDS VALUE_SIZE                puts/s to 1,000 keys, CPU microseconds each
--   work.lua gets URL IN_FLIGHT SECONDS VALUE_SIZE                gets/s of 1,000 keys, CPU microseconds each
--   work.lua mirror URL SECONDS                                   mirror gets/s, reads/s of a plain table
--   work.lua fill URL COUNT VALUE_SIZE                            bytes of keys and values
--   work.lua list URL COUNT                                       peak growth in bytes: anonymous memory, mapped files
--   work.lua watches URL COUNT SECONDS                            connections, bytes for each, wake-ups/s when idle
--   work.lua lock URL SECONDS NAME                                lock + unlock pairs/s, CPU microseconds each
--   work.lua handover URL WAITERS SECONDS NAME                    changes of holder/s, acquisitions/s, overlaps
--   work.lua held URL COUNT SECONDS                               of a core in percent, threads
--   work.lua latency URL SECONDS KEY VALUE_SIZE                   put -> event in microseconds: p50, p99; lost
--   work.lua tree URL DIRECTORY COUNT                             milliseconds: a listing; a watch: synced, all read
--   work.lua tree_memory URL DIRECTORY COUNT                      bytes that the watch keeps for a key (LuaJIT)
--
-- The first fifth of a measured time warms up and is not counted. os.clock() is the CPU time of all threads.

local kv = require("kv")
local process = require("kv.process")

local clock = process.clock
local works = {}

-- Run `operation(worker)` in so many tasks, or in a plain loop when there is one only; returns rate and CPU each.
local function measure(in_flight, seconds, operation)
  local warm, done = seconds / 5, 0
  local begin, cpu, count
  local function start() begin, cpu, count = clock(), os.clock(), done end
  local function result()
    local elapsed, used, n = clock() - begin, os.clock() - cpu, done - count
    assert(n > 0, "nothing was done")
    return n / elapsed, used / n * 1e6
  end
  if in_flight == 1 then
    local warm_until = clock() + warm
    while clock() < warm_until do
      operation(1)
      done = done + 1
    end
    start()
    local finish = begin + seconds - warm
    repeat
      operation(1)
      done = done + 1
    until clock() >= finish
    return result()
  end
  return kv.run(function()
    local stop = false
    for worker = 1, in_flight do
      kv.spawn(function()
        while not stop do
          operation(worker)
          done = done + 1
        end
      end)
    end
    kv.sleep(warm)
    start()
    kv.sleep(seconds - warm)
    stop = true
    return result()
  end)
end

function works.load(url, name, in_flight, seconds, key, size)
  local store, value = assert(kv.open(url)), ("x"):rep(tonumber(size))
  assert(store:put(key, value))
  local operations = {
    get = function() assert(store:get(key)) end,
    put = function() assert(store:put(key, value)) end,
  }
  return measure(tonumber(in_flight), tonumber(seconds), operations[name])
end

-- The clock is looked at once in 1,000 times: at this speed it would be a good part of what is measured.
function works.loop(url, seconds, key, size)
  local store = assert(kv.open(url))
  assert(store:put(key, ("x"):rep(tonumber(size))))
  local function run(length)
    local count, begin = 0, clock()
    repeat
      for _ = 1, 1000 do
        if not store:get(key) then error("the key is gone") end
      end
      count = count + 1000
    until clock() - begin >= length
    return count / (clock() - begin)
  end
  run(seconds / 5)
  return run(seconds * 4 / 5)
end

function works.puts(url, in_flight, seconds, size)
  local store, value, n = assert(kv.open(url)), ("x"):rep(tonumber(size)), 0
  return measure(tonumber(in_flight), tonumber(seconds), function()
    n = n + 1
    assert(store:put(("bench/%d"):format(n % 1000), value))
  end)
end

function works.gets(url, in_flight, seconds, size)
  local store, value, n = assert(kv.open(url)), ("x"):rep(tonumber(size)), 0
  for i = 0, 999 do assert(store:put(("bench/%d"):format(i), value)) end
  return measure(tonumber(in_flight), tonumber(seconds), function()
    n = n + 1
    assert(store:get(("bench/%d"):format(n % 1000)))
  end)
end

function works.mirror(url, seconds)
  local store = assert(kv.open(url))
  local plain, keys = {}, {}
  for i = 1, 100 do
    keys[i] = ("mirror/%d"):format(i)
    plain[keys[i]] = tostring(i)
  end
  assert(store:put_many(plain))
  local mirror = assert(store:mirror("mirror"))
  assert(mirror:wait_ready(5))
  local function rate(read)
    local count, begin = 0, clock()
    repeat
      local sum = 0
      for _ = 1, 1000 do
        for i = 1, 100 do sum = sum + #read(keys[i]) end
      end
      assert(sum > 0)
      count = count + 100000
    until clock() - begin >= seconds / 2
    return count / (clock() - begin)
  end
  return rate(function(key) return mirror:get(key) end), rate(function(key) return plain[key] end)
end

function works.fill(url, count, size)
  local store, bytes, batch, batched = assert(kv.open(url)), 0, {}, 0
  local filler = ("x"):rep(tonumber(size) - 8)
  for i = 1, tonumber(count) do
    local key, value = ("tree/%07d"):format(i), ("%08d"):format(i) .. filler
    bytes, batch[key], batched = bytes + #key + #value, value, batched + 1
    if batched == 2000 or i == tonumber(count) then
      assert(store:put_many(batch, {timeout = 60}))
      batch, batched = {}, 0
    end
  end
  store:close()
  return bytes
end

-- A number of /proc/self/status, 0 when the kernel does not tell it.
local function status(field)
  for line in io.lines("/proc/self/status") do
    local value = line:match("^" .. field .. ":%s+(%d+)")
    if value then return tonumber(value) end
  end
  return 0
end

-- Pages of files, those of a file on tmpfs too: the local store's map is one. They are the system's page cache
-- seen through a window: every process that maps the file shares them, they are there once however many do, and
-- the system takes them back when it needs room, without writing them anywhere. What a process costs by itself
-- is its anonymous memory.
local function mapped_bytes()
  return (status("RssFile") + status("RssShmem")) * 1024
end

local function anonymous_bytes()
  return status("RssAnon") * 1024
end

local function collect()
  collectgarbage()
  collectgarbage()
end

-- The peak has no split of its own. Mapped pages only become more while a listing runs: at its end they are at
-- their peak.
function works.list(url, count)
  local store = assert(kv.open(url))
  assert(store:exists("tree/0000001"))
  collect()
  -- 5 resets the peak to what is in use now.
  local file = assert(io.open("/proc/self/clear_refs", "w"))
  file:write("5")
  file:close()
  local before, mapped = status("VmRSS") * 1024, mapped_bytes()
  local found = assert(store:list("tree", {timeout = 60}))
  assert(#found == tonumber(count), #found)
  mapped = mapped_bytes() - mapped
  return status("VmHWM") * 1024 - before - mapped, mapped
end

-- The descriptors of this process that are TCP sockets.
local function connections()
  local inodes = {}
  for _, name in ipairs{"tcp", "tcp6"} do
    local file = io.open("/proc/self/net/" .. name)
    for line in file and file:lines() or function() end do
      local inode = line:match("^%s*%d+:%s+%S+%s+%S+%s+%S+%s+%S+%s+%S+%s+%S+%s+%S+%s+%S+%s+(%d+)")
      if inode then inodes[inode] = true end
    end
    if file then file:close() end
  end
  local count, listing = 0, io.popen("ls -l /proc/" .. ("%d"):format(process.getpid()) .. "/fd")
  for line in listing:lines() do
    local inode = line:match("socket:%[(%d+)%]")
    if inode and inodes[inode] then count = count + 1 end
  end
  listing:close()
  return count
end

-- Voluntary context switches of all threads: how often somebody woke up and went to sleep again.
local function wake_ups()
  local total, listing = 0, io.popen("cat /proc/" .. ("%d"):format(process.getpid()) .. "/task/*/status")
  for line in listing:lines() do
    total = total + (tonumber(line:match("^voluntary_ctxt_switches:%s+(%d+)")) or 0)
  end
  listing:close()
  return total
end

function works.watches(url, count, seconds)
  local store, watches, base = assert(kv.open(url)), {}, nil
  return kv.run(function()
    local first = assert(store:watch("watched/0"))
    assert(first:wait_synced(10))
    collect()
    base = anonymous_bytes()
    for i = 1, tonumber(count) do watches[i] = assert(store:watch(("watched/%d"):format(i))) end
    for i = 1, #watches do assert(watches[i]:wait_synced(60)) end
    collect()
    local each = (anonymous_bytes() - base) / #watches
    -- One of them proves that they live.
    assert(store:put(("watched/%d"):format(#watches), "x"))
    assert(assert(watches[#watches]:next(10)).value == "x")
    local before = wake_ups()
    process.sleep(tonumber(seconds))
    -- Reading the number and our own sleep wake this thread: the two looks cost the same, measured back to back.
    local after = wake_ups()
    local looking = wake_ups() - after
    local idle = math.max(after - before - looking - 1, 0) / seconds
    return connections(), each, idle
  end)
end

-- ---------------------------------------------------------------- locks

function works.lock(url, seconds, name)
  local store = assert(kv.open(url))
  return measure(1, tonumber(seconds), function()
    local lock = assert(assert(store:lock(name)):acquire(10))
    assert(lock:release())
  end)
end

-- Tasks that all want one lock, each letting go as soon as it has it.
function works.handover(url, waiters, seconds, name)
  local store = assert(kv.open(url))
  name = ("%s-%d"):format(name, process.getpid())
  local changes, acquired, overlaps, inside, holder = 0, 0, 0, 0, nil
  local function wait_in_line(me)
    local lock = assert(assert(store:lock(name)):acquire(30))
    inside = inside + 1
    if inside ~= 1 then overlaps = overlaps + 1 end
    if holder ~= me then changes = changes + 1 end
    holder, acquired, inside = me, acquired + 1, inside - 1
    assert(lock:release())
  end
  return kv.run(function()
    local stop = false
    for i = 1, tonumber(waiters) do
      kv.spawn(function()
        while not stop do wait_in_line(i) end
      end)
    end
    kv.sleep(seconds / 5)
    local begin, before, before_all = clock(), changes, acquired
    kv.sleep(seconds * 4 / 5)
    local elapsed = clock() - begin
    stop = true
    return (changes - before) / elapsed, (acquired - before_all) / elapsed, overlaps
  end)
end

function works.held(url, count, seconds)
  local store, locks = assert(kv.open(url)), {}
  return kv.run(function()
    local tasks = {}
    for i = 1, tonumber(count) do
      tasks[i] = kv.spawn(function() locks[i] = assert(assert(store:lock(("held/%d"):format(i))):acquire(60)) end)
    end
    for _, task in ipairs(tasks) do task:join() end
    local begin, cpu = clock(), os.clock()
    process.sleep(tonumber(seconds))
    local used, elapsed = os.clock() - cpu, clock() - begin
    for _, lock in ipairs(locks) do assert(lock:held(), "a lock was lost") end
    return used / elapsed * 100, status("Threads")
  end)
end

-- ---------------------------------------------------------------- watches

local LOST = 1 -- an event that has not come after so many seconds will not

-- The pause is there because some peers need it to arm their watch again; see peer/main.go.
function works.latency(url, seconds, key, size)
  local store, filler, turn = assert(kv.open(url)), ("x"):rep(tonumber(size) - 8), 0
  -- A new value each time: Consul does not take a write of the same value for a change.
  local function put()
    turn = turn + 1
    assert(store:put(key, ("%08d"):format(turn) .. filler))
  end
  return kv.run(function()
    put()
    local watch = assert(store:watch(key))
    assert(assert(watch:next(10)).initial)
    local taken, missing, finish = {}, 0, clock() + seconds
    repeat
      kv.sleep(0.001)
      local begin = clock()
      local seen = kv.spawn(function()
        local event = watch:next(LOST)
        return event and clock() - begin
      end)
      put()
      local took = seen:join()
      if took then taken[#taken + 1] = took * 1e6 else missing = missing + 1 end
    until clock() >= finish and #taken > 0
    local kept = {}
    for i = math.floor(#taken / 5) + 1, #taken do kept[#kept + 1] = taken[i] end
    table.sort(kept)
    local function part(share) return kept[math.floor(#kept * share) + 1] end
    return part(0.5), part(0.99), missing
  end)
end

-- Watch a tree and read what is there now; returns the watch, when it was synced, and when all was read.
local function read_tree(store, directory, count)
  local begin = clock()
  local watch = assert(store:watch_tree(directory))
  assert(watch:wait_synced(60))
  local synced = clock() - begin
  for _ = 1, count do assert(assert(watch:next(60)).initial) end
  return watch, synced, clock() - begin
end

-- The medians of what `run` returns, in milliseconds. What takes long is not done as often.
local function repeated(run)
  local columns, begin = {}, clock()
  repeat
    collect()
    for i, seconds in ipairs{run()} do
      columns[i] = columns[i] or {}
      table.insert(columns[i], seconds * 1000)
    end
  until #columns[1] == 5 or clock() - begin > 1
  for i, list in ipairs(columns) do
    table.sort(list)
    columns[i] = list[math.floor(#list / 2) + 1]
  end
  return (unpack or table.unpack)(columns)
end

function works.tree(url, directory, count)
  local store = assert(kv.open(url))
  count = tonumber(count)
  local function list()
    local begin = clock()
    local found = assert(store:list(directory, {timeout = 60}))
    assert(#found == count, #found)
    return clock() - begin
  end
  list() -- connects
  local listed = repeated(list)
  return listed, repeated(function()
    local watch, synced, read = read_tree(store, directory, count)
    watch:close()
    return synced, read
  end)
end

-- What malloc() holds but nobody uses is given back first (LuaJIT can call C), so that what is left is in use.
function works.tree_memory(url, directory, count)
  local ffi = require("ffi")
  ffi.cdef("int malloc_trim(size_t pad);")
  local function in_use()
    collect()
    ffi.C.malloc_trim(0)
    return anonymous_bytes()
  end
  local store = assert(kv.open(url))
  assert(#assert(store:list(directory, {timeout = 60})) == tonumber(count))
  local before = in_use()
  local watch = read_tree(store, directory, tonumber(count))
  local each = (in_use() - before) / count
  watch:close()
  return each
end

local function main(name, ...)
  local results = {works[name](...)}
  for i, number in ipairs(results) do results[i] = ("%.3f"):format(number) end
  print(table.concat(results, " "))
end

main((unpack or table.unpack)(arg))
