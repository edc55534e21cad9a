--- What the histories say about locks, elections and semaphores. The operations are
--
--    acquire NAME [LIMIT]     ok TOKEN            LIMIT holders at a time; 1 without it
--    guard NAME TOKEN         ok REVISION         a write under the guard of the hold with this token
--    release NAME TOKEN       ok
--    leader NAME              ok TOKEN            who is said to lead; nil: nobody
--    note held NAME TOKEN TIME                    held() was true, and TIME was before it was asked
--
-- and what must hold, worst first:
--  1. the guarded resource never accepts an older holder: in the order of its revisions tokens do not fall, and no
--     guarded write begins after a younger holder was told that the lock is his, and is accepted;
--  2. intervals in which held() was seen to be true do not overlap (more than LIMIT at once);
--  3. tokens are different, and larger for whoever began to acquire after another one had;
--  4. nobody is told of a leader older than one who was told, before the question, that he leads.
local lock_check = {}

local SLACK = 0.5 -- a fault is noted when it is over, and acts a moment before

-- With which codes each may fail under any fault.
local FAILURES = {
  acquire = {timeout = true, closed = true},
  guard = {modified = true, not_held = true, lost = true, unavailable = true, timeout = true, closed = true},
  leader = {unavailable = true, timeout = true, closed = true},
  release = {lost = true, not_held = true, unavailable = true, timeout = true, closed = true},
}

local function name_of(hold)
  return ("%s with token %.0f [%.6f, %.6f]"):format(hold.worker, hold.token, hold.from, hold.to)
end

local function lock_of(locks, name)
  local lock = locks[name]
  if not lock then
    lock = {name = name, limit = 1, holds = {}, by_token = {}, guarded = {}, asked = {}}
    locks[name] = lock
  end
  return lock
end

local readers = {}

-- When it was told it was held already: so surely at op.ret only if held() says so, and never before op.call.
function readers.acquire(lock, op, problems)
  lock.limit = tonumber(op.args[2]) or 1
  if op.outcome ~= "ok" then return end
  local token = assert(tonumber(op.result[1]))
  local hold = {worker = op.worker, token = token, call = op.call, told = op.ret, from = op.ret, to = op.ret}
  local other = lock.by_token[token]
  if other then
    problems[#problems + 1] = ("lock %s: the same token twice: %s, %s"):format(lock.name, name_of(other), name_of(hold))
  end
  lock.by_token[token] = hold
  lock.holds[#lock.holds + 1] = hold
end

function readers.guard(lock, op)
  if op.outcome ~= "ok" then return end
  lock.guarded[#lock.guarded + 1] = {worker = op.worker, token = assert(tonumber(op.args[2])), call = op.call,
    revision = assert(tonumber(op.result[1]))}
end

function readers.leader(lock, op)
  local token = op.outcome == "ok" and tonumber(op.result[1])
  if token then lock.asked[#lock.asked + 1] = {worker = op.worker, token = token, call = op.call} end
end

local function read(operations, notes, problems)
  local locks = {}
  for _, op in ipairs(operations) do
    if readers[op.kind] then readers[op.kind](lock_of(locks, op.args[1]), op, problems) end
  end
  for _, note in ipairs(notes) do
    if note.kind == "held" then
      local hold = lock_of(locks, note.args[1]).by_token[tonumber(note.args[2])]
      -- From the end of the first such call to the beginning of the last one it was held without a gap.
      if hold and hold.worker == note.worker then
        local before = tonumber(note.args[3])
        if not hold.seen then hold.from = note.time end
        hold.seen = true
        hold.to = math.max(hold.to, before)
      end
    end
  end
  return locks
end

local function check_resource(lock, problems)
  table.sort(lock.guarded, function(a, b) return a.revision < b.revision end)
  local highest
  for _, write in ipairs(lock.guarded) do
    if highest and write.token < highest.token then
      problems[#problems + 1] = ("lock %s: the resource accepted token %.0f of %s (revision %.0f) after %.0f of %s")
        :format(lock.name, write.token, write.worker, write.revision, highest.token, highest.worker)
    else
      highest = write
    end
  end
end

-- For each of a list {token=, call=}: must not be older than the youngest holder who was told before it began.
local function check_age(lock, list, complain)
  local holds, at = {}, 0
  for i, hold in ipairs(lock.holds) do holds[i] = hold end
  table.sort(holds, function(a, b) return a.told < b.told end)
  table.sort(list, function(a, b) return a.call < b.call end)
  local youngest
  for _, one in ipairs(list) do
    while holds[at + 1] and holds[at + 1].told < one.call do
      at = at + 1
      if not youngest or holds[at].token > youngest.token then youngest = holds[at] end
    end
    if youngest and one.token < youngest.token then complain(one, youngest) end
  end
end

local function check_ages(lock, problems)
  check_age(lock, lock.guarded, function(write, youngest)
    problems[#problems + 1] = ("lock %s: a write with token %.0f of %s, begun at %.6f, was accepted after %s held it")
      :format(lock.name, write.token, write.worker, write.call, name_of(youngest))
  end)
  check_age(lock, lock.asked, function(question, youngest)
    problems[#problems + 1] = ("election %s: %s, asking at %.6f, was told of token %.0f after %s led"):format(lock.name,
      question.worker, question.call, question.token, name_of(youngest))
  end)
end

-- A member of etcd that was stopped as the leader, and goes on, may revoke leases that the next leader has renewed
-- since: a fault of etcd before 3.4.31 and 3.5.13. The holder learns of it at his next renewal.
local function was_revoked(hold, at, resumed)
  for _, time in ipairs(resumed) do
    if hold.from < time and time < at + SLACK then return true end
  end
  return false
end

-- `inside` without those whose lease the server took away too early; their number.
local function take_revoked(inside, at, resumed, of_server)
  local count = 0
  for hold in pairs(inside) do
    if hold.from < at and was_revoked(hold, at, resumed) then
      of_server[#of_server + 1] = "a deposed leader revoked the lease of " .. name_of(hold)
      inside[hold] = nil
      count = count + 1
    end
  end
  return count
end

local function check_intervals(lock, problems, resumed, of_server)
  local events = {}
  for _, hold in ipairs(lock.holds) do
    if hold.seen and hold.to > hold.from then
      events[#events + 1] = {time = hold.from, hold = hold, begin = true}
      events[#events + 1] = {time = hold.to, hold = hold}
    end
  end
  table.sort(events, function(a, b)
    if a.time ~= b.time then return a.time < b.time end
    return not a.begin and b.begin or false
  end)
  local inside, count = {}, 0
  for _, event in ipairs(events) do
    if event.begin then
      inside[event.hold] = true
      count = count + 1
      if count > lock.limit then count = count - take_revoked(inside, event.time, resumed, of_server) end
      if count > lock.limit then
        local names = {}
        for hold in pairs(inside) do names[#names + 1] = name_of(hold) end
        problems[#problems + 1] = ("lock %s: %d holders at once where %d may be: %s"):format(lock.name, count,
          lock.limit, table.concat(names, "; "))
      end
    elseif inside[event.hold] then
      inside[event.hold] = nil
      count = count - 1
    end
  end
end

-- Who began after another one was told must have a larger token. With several permits at a time as well.
local function check_tokens(lock, problems)
  local by_call, by_told = {}, {}
  for i, hold in ipairs(lock.holds) do by_call[i], by_told[i] = hold, hold end
  table.sort(by_call, function(a, b) return a.call < b.call end)
  table.sort(by_told, function(a, b) return a.told < b.told end)
  local at, highest = 0, nil
  for _, hold in ipairs(by_call) do
    while by_told[at + 1] and by_told[at + 1].told < hold.call do
      at = at + 1
      if not highest or by_told[at].token > highest.token then highest = by_told[at] end
    end
    if highest and hold.token <= highest.token then
      problems[#problems + 1] = ("lock %s: the token did not rise: %s after %s"):format(lock.name, name_of(hold),
        name_of(highest))
    end
  end
end

--- @tparam[opt] table resumed when members of an etcd that is known to revoke too early went on after a stop
-- @return problems (texts), counts {locks, holds, guarded, refused}, and what is laid at the server's door (texts)
function lock_check.check(operations, notes, resumed)
  local problems, counts, of_server = {}, {locks = 0, holds = 0, guarded = 0, refused = 0}, {}
  for _, lock in pairs(read(operations, notes, problems)) do
    counts.locks = counts.locks + 1
    counts.holds = counts.holds + #lock.holds
    counts.guarded = counts.guarded + #lock.guarded
    if lock.limit == 1 then
      check_resource(lock, problems)
      check_ages(lock, problems)
    end
    check_intervals(lock, problems, resumed or {}, of_server)
    check_tokens(lock, problems)
  end
  for _, op in ipairs(operations) do
    if FAILURES[op.kind] and op.outcome == "fail" then
      if op.kind == "guard" then counts.refused = counts.refused + 1 end
      if not FAILURES[op.kind][op.result[1]] then
        problems[#problems + 1] = ("%s %s %s failed with %s: %s"):format(op.worker, op.kind, op.args[1],
          tostring(op.result[1]), tostring(op.result[2]))
      end
    end
  end
  return problems, counts, of_server
end

return lock_check
