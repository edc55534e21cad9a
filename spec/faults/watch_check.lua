--- What the histories say about watches. A watcher notes
--
--    note begin WATCH                                    its initial state has arrived
--    note event WATCH put|delete KEY VALUE REVISION      as they came
--    note final WATCH KEY VALUE REVISION                 what was there when it had read its last event (by list)
--    note complete WATCH                                 it had no gap: every version must be there
--
-- and is held against what the writers were told: the final state of every key is delivered; revisions of one key only
-- grow; no event for a change that nobody asked for, or that was refused; an acknowledged write that is told has the
-- revision that its writer was told; and with `complete` every acknowledged write is told.
local watch_check = {}

-- key -> value -> {call=, revision= (acknowledged), refused=}
local function writes_of(operations)
  local keys = {}
  for _, op in ipairs(operations) do
    local value
    if op.kind == "write" then value = op.args[2] elseif op.kind == "cas" then value = op.args[3] end
    if value then
      local key = op.args[1]
      keys[key] = keys[key] or {}
      keys[key][value] = {call = op.call, ret = op.ret, refused = op.outcome == "fail", worker = op.worker,
        revision = op.outcome == "ok" and tonumber(op.result[1]) or nil}
    end
  end
  return keys
end

local take = {}

function take.begin(watch, note) watch.began = note.time end

function take.event(watch, note)
  watch.events[#watch.events + 1] = {time = note.time, type = note.args[2], key = note.args[3], value = note.args[4],
    revision = tonumber(note.args[5])}
end

-- Without a key: nothing was there.
function take.final(watch, note)
  watch.ended = true
  if note.args[2] then watch.final[note.args[2]] = {value = note.args[3], revision = tonumber(note.args[4])} end
end

function take.complete(watch) watch.complete = true end

local function watches_of(notes)
  local watches = {}
  for _, note in ipairs(notes) do
    if take[note.kind] then
      local name = note.worker .. " " .. note.args[1]
      watches[name] = watches[name] or {name = name, events = {}, final = {}, began = math.huge}
      take[note.kind](watches[name], note)
    end
  end
  return watches
end

local function check_event(event, written, last, complain)
  local before = last[event.key]
  if before and event.revision <= before.revision and not (event.type == "delete" and before.type == "put"
    and event.revision == before.revision) then
    complain("%s: the revision did not grow: %.0f after %.0f", event.key, event.revision, before.revision)
  end
  if event.type == "delete" then
    if not before or before.type == "delete" then complain("%s: deleted, but it was not there", event.key) end
    return
  end
  local write = written[event.key] and written[event.key][event.value]
  if not write then
    complain("%s: nobody wrote %s", event.key, tostring(event.value))
  elseif write.refused then
    complain("%s: %s was told, but %s was told that it is not written", event.key, event.value, write.worker)
  elseif write.call > event.time then
    complain("%s: %s was told before it was written", event.key, event.value)
  elseif write.revision and write.revision ~= event.revision then
    complain("%s: %s has revision %.0f, its writer was told %.0f", event.key, event.value, event.revision,
      write.revision)
  end
end

local function check_final(watch, last, complain)
  for key, pair in pairs(watch.final) do
    local told = last[key]
    if not told or told.type == "delete" or told.value ~= pair.value or told.revision ~= pair.revision then
      complain("%s: at the end it is %s (%.0f), told was %s", key, tostring(pair.value), pair.revision,
        told and ("%s %s (%.0f)"):format(told.type, tostring(told.value), told.revision) or "nothing")
    end
  end
  for key, told in pairs(last) do
    if told.type == "put" and not watch.final[key] then
      complain("%s: at the end it is gone, told was %s", key, tostring(told.value))
    end
  end
end

-- Every acknowledged write that was made after the first event's time and inside of what is watched.
local function check_complete(watch, written, complain)
  local told = {}
  for _, event in ipairs(watch.events) do
    if event.type == "put" then told[event.key .. "\0" .. event.value] = true end
  end
  for key, values in pairs(written) do
    for value, write in pairs(values) do
      if write.revision and write.call > watch.began and not told[key .. "\0" .. value] then
        complain("%s: %s (%.0f) was written and never told", key, value, write.revision)
      end
    end
  end
end

--- @tparam[opt] string under only writes to keys that begin so are watched
-- @return problems (texts), counts {watches, events}
function watch_check.check(operations, notes, under)
  local problems, counts = {}, {watches = 0, events = 0, unfinished = 0}
  local written = writes_of(operations)
  if under then
    for key in pairs(written) do
      if key:sub(1, #under) ~= under then written[key] = nil end
    end
  end
  for _, watch in pairs(watches_of(notes)) do
    local function complain(text, ...)
      problems[#problems + 1] = ("watch %s: "):format(watch.name) .. text:format(...)
    end
    counts.watches, counts.events = counts.watches + 1, counts.events + #watch.events
    local last = {}
    for _, event in ipairs(watch.events) do
      check_event(event, written, last, complain)
      last[event.key] = event
    end
    if watch.ended then check_final(watch, last, complain) else counts.unfinished = counts.unfinished + 1 end
    if watch.ended and watch.complete then check_complete(watch, written, complain) end
  end
  return problems, counts
end

return watch_check
