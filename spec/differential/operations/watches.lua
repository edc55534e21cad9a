--- Watches, watches of trees, and mirrors.
--
-- Where every change is an event, a watch that was in step before the changes must deliver them all, and they are
-- compared one by one. Where changes may be joined, or where it began while keys changed, its last word on each key is
-- compared, and each event on its way is checked for what may never be: see check().
local watches = {}

-- ------------------------------------------------------------------ opening

watches.watch = {weight = 5, theme = "watch"}

function watches.watch.make(maker, step)
  local random = maker.random
  step.store, step.tree, step.options = maker:store(), random:chance(60), {}
  step.key = step.tree and maker:dir() or maker:key()
  if random:chance(20) then step.options.values = false elseif random:chance(40) then step.options.prev = true end
  if random:chance(15) then
    step.after = maker:past()
  elseif random:chance(30) then
    step.options.initial = false
  end
  step.lazy = not maker.program.portable and not step.after and step.options.initial ~= false and random:chance(20)
end

local function options_of(run, step)
  local options = {}
  for name, value in pairs(step.options) do options[name] = value end
  if step.after then
    local there, previous = run:previous(step.after)
    if not there then return nil end
    options.after = type(previous) == "table" and previous.revision or previous
  end
  return options
end

-- A watch without initial pairs: what is there is known to its consumer all the same.
local function look_around(run, step, watch)
  local store = run:store(step.store)
  local found = step.tree and assert(store:list(step.key)) or {store:get(step.key)}
  for _, pair in ipairs(found) do
    run:pair(step.store, pair)
    watch.state[pair.key] = "as it was"
    watch.last[pair.key] = {revision = pair.revision, created = pair.created, unseen = true}
  end
end

-- Some backends tell of a deleted tree as one, and not to those who come later which keys it had.
local function is_cut_off(run, step)
  return step.after and run.traits.whole_trees and (run.tree_deleted or 0) > step.after.ref
end

function watches.watch.run(run, step)
  local options = options_of(run, step)
  if not options or is_cut_off(run, step) then return "skipped" end
  local store = run:store(step.store)
  local handle, message, code = store[step.tree and "watch_tree" or "watch"](store, step.key, options)
  if not handle then return run.failure(message, code) end
  local done
  if not step.lazy then done, message, code = handle:wait_synced(run.env.bound) end
  if not step.lazy and not done then
    handle:close()
    return run.failure(message, code)
  end
  local watch = {handle = handle, step = step, state = {}, told = {}, last = {}, position = 0}
  watch.exact = run.traits.every_version and not step.lazy
  run.watches[step.id] = watch
  if options.initial == false then look_around(run, step, watch) end
  for key, text in pairs(watch.state) do watch.told[key] = text end
  return "watching"
end

function watches.watch.show(step, text)
  local options = text.options(step.options, step.after and "after = " .. text.previous(step.after))
  return ("local watch%d = %s:%s(%s%s)%s"):format(step.id, step.store, step.tree and "watch_tree" or "watch",
    text.string(step.key), options, step.lazy and "" or (" watch%d:wait_synced()"):format(step.id))
end

-- ------------------------------------------------------------------ events

local function prev_text(run, event)
  return event.prev ~= nil and " prev " .. run.quote(event.prev) or ""
end

local function event_text(run, name, event)
  if event.type == "delete" then return "delete" .. (event.value ~= nil and " WITH A VALUE" or "") end
  local scope = run:full(name, event.key)
  local text = (event.initial and "initial " or "") .. event.type
  if event.value ~= nil then text = text .. " " .. run.quote(event.value) end
  local revision, created = run.names:show(scope, event.revision), run.names:show(scope, event.created)
  text = text .. " " .. revision
  if event.created ~= event.revision then text = text .. " since " .. created end
  return text
end

-- What no watch may do, whatever it joins. Returns what is wrong with the event, or nothing.
local function check(run, watch, event)
  local last = watch.last[event.key]
  local is_put, options = event.type == "put", watch.step.options
  local scope = run:full(watch.step.store, event.key)
  if last and event.revision <= last.revision then return " REVISION DOES NOT GROW" end
  if watch.exact and not event.initial and event.revision < watch.position then return " OUT OF ORDER" end
  if is_put and event.value ~= nil and not run.names:agrees(scope, event.revision, event.value) then
    return " NOT ITS VALUE"
  end
  if not is_put and not watch.step.after and not watch.state[event.key] then return " OF NOTHING" end
  if options.prev and not watch.step.after and not (last and last.unseen) then
    local same_life = last and last.value and (not is_put or last.created == event.created)
    if event.prev ~= (same_life and last.value or nil) then return " NOT THE VALUE BEFORE" end
  elseif event.prev ~= nil and not options.prev then
    return " A VALUE BEFORE THAT NOBODY WANTED"
  end
end

local function take(run, watch, event)
  local wrong = check(run, watch, event) or ""
  local is_put = event.type == "put"
  local text = event_text(run, watch.step.store, event)
  watch.last[event.key] = {revision = event.revision, created = event.created, value = is_put and event.value or nil}
  watch.position = math.max(watch.position, event.revision)
  watch.state[event.key] = is_put and text:gsub("^initial ", "") or nil
  return text .. (watch.exact and prev_text(run, event) or "") .. wrong, wrong ~= ""
end

local function same(left, right)
  for key, value in pairs(left) do
    if right[key] ~= value then return false end
  end
  for key in pairs(right) do
    if left[key] == nil then return false end
  end
  return true
end

local function copy(map)
  local result = {}
  for key, value in pairs(map) do result[key] = value end
  return result
end

local function is_complete(watch, count, foreseen)
  if watch.exact then return count >= foreseen.count end
  return same(watch.state, foreseen.state)
end

-- Take events until what the model foresaw is there, and then what else lies there. Returns texts by key, their number,
-- and the code at the end.
local function collect(run, watch, foreseen)
  local deadline, texts, count, wrong = run.env.now() + run.env.bound, {}, 0, {}
  while true do
    local enough = not foreseen or (not foreseen.ended and is_complete(watch, count, foreseen))
    local event, _, code = watch.handle:next(enough and 0 or math.max(0, deadline - run.env.now()))
    if not event then return texts, count, code, wrong end
    local text, is_wrong = take(run, watch, event)
    texts[event.key] = texts[event.key] and texts[event.key] .. ", " .. text or text
    if is_wrong then wrong[#wrong + 1] = event.key .. ": " .. text end
    count = count + 1
  end
end

-- What changed for the consumer since the last time.
local function changes(watch)
  local texts = {}
  for key, text in pairs(watch.state) do
    if watch.told[key] ~= text then texts[key] = text end
  end
  for key in pairs(watch.told) do
    if not watch.state[key] then texts[key] = "gone" end
  end
  return texts
end

local function lines(texts, wrong)
  local result = {}
  for key, text in pairs(texts) do result[#result + 1] = key .. ": " .. text end
  table.sort(result)
  for _, text in ipairs(wrong) do result[#result + 1] = "WRONG EVENT " .. text end
  return #result == 0 and "no event" or table.concat(result, "; ")
end

-- One that resumes before such a deletion ends, as its consumer may know some of the keys. That is no difference.
local function may_end(run, watch, code)
  return code == "compacted" and run.traits.whole_trees and watch.step.after and not run.world
end

watches.events = {weight = 8, theme = "watch"}

function watches.events.make(maker, step)
  step.watch = maker:any("watch", function(id) return maker.run.watches[id] end)
  return step.watch ~= nil
end

function watches.events.run(run, step)
  local watch = run.watches[step.watch]
  if not watch then return "skipped" end
  local texts, count, code, wrong = collect(run, watch, not run.world and run.hints[run.at].events)
  run:foresee("events", function() return {count = count, state = copy(watch.state), ended = code ~= "timeout"} end)
  if may_end(run, watch, code) then return run.hints[run.at].told end
  if code ~= "timeout" then return "ended: " .. tostring(code) end
  if not watch.exact then texts = changes(watch) end
  watch.told = copy(watch.state)
  local told = lines(texts, watch.exact and {} or wrong)
  run:foresee("told", function() return told end)
  return told
end

function watches.events.show(step)
  return ("print the events of watch%d"):format(step.watch)
end

watches.unwatch = {weight = 1, theme = "watch", make = watches.events.make}

function watches.unwatch.run(run, step)
  local watch = run.watches[step.watch]
  if not watch then return "skipped" end
  run.watches[step.watch] = nil
  local closed = watch.handle:close()
  local event, message, code = watch.handle:next(0)
  return ("%s, %s"):format(tostring(closed), event and "AN EVENT" or run.failure(message, code))
end

function watches.unwatch.show(step)
  return ("watch%d:close()"):format(step.watch)
end

watches.resume = {weight = 1, theme = "watch", make = watches.events.make}

--- Close a watch, and open another that goes on behind it.
function watches.resume.run(run, step)
  local old = run.watches[step.watch]
  if not old or not old.exact or not run.traits.resume then return "skipped" end
  local text = watches.events.run(run, step)
  if text:find("^ended") then return text end
  local known = run:await(function() return old.handle:revision() >= old.position end)
  local revision = old.handle:revision()
  old.handle:close()
  local resumed = {store = old.step.store, tree = old.step.tree, key = old.step.key, after = true,
    options = {prev = old.step.options.prev, values = old.step.options.values}}
  local store = run:store(resumed.store)
  local handle, message, code = store[resumed.tree and "watch_tree" or "watch"](store, resumed.key,
    {prev = resumed.options.prev, values = resumed.options.values, after = revision})
  run.watches[step.watch] = nil
  if not handle then return run.failure(message, code) end
  local synced
  synced, message, code = handle:wait_synced(run.env.bound)
  run.watches[step.watch] = {handle = handle, step = resumed, exact = true, state = old.state, told = old.told,
    last = {}, position = 0}
  if not synced and not may_end(run, run.watches[step.watch], code) then return run.failure(message, code) end
  return text .. (known and ", resumed" or ", ITS REVISION STAYS BEHIND")
end

function watches.resume.show(step)
  return ("print the events of watch%d, and resume it behind watch%d:revision()"):format(step.watch, step.watch)
end

-- ------------------------------------------------------------------ mirrors

watches.mirror = {weight = 1, theme = "watch"}

function watches.mirror.make(maker, step)
  step.store, step.dir = maker.random:pick{"s0", "s1", "s3"}, maker:dir()
end

function watches.mirror.run(run, step)
  local mirror, message, code = run:store(step.store):mirror(step.dir)
  if not mirror then return run.failure(message, code) end
  local ready
  ready, message, code = mirror:wait_ready(run.env.bound)
  if not ready then
    mirror:close()
    return run.failure(message, code)
  end
  run.mirrors[step.id] = mirror
  return "ready"
end

function watches.mirror.show(step, text)
  return ("local mirror%d = %s:mirror(%s)"):format(step.id, step.store, text.string(step.dir))
end

watches.reflect = {weight = 2, theme = "watch"}

function watches.reflect.make(maker, step)
  step.mirror = maker:any("mirror")
  step.store = step.mirror and maker:store_of(step.mirror)
  return step.mirror ~= nil
end

local function content(run, step, mirror)
  local texts = {}
  for key, value in mirror:pairs() do
    local pair = mirror:pair(key)
    if not pair or pair.value ~= value or mirror:get(key) ~= value then return "DISAGREES WITH ITSELF" end
    local revision = run.names:show(run:full(step.store, key), pair.revision)
    texts[#texts + 1] = ("%s %s %s"):format(key, run.quote(value), revision)
  end
  if mirror:size() ~= #texts then return "NOT ITS SIZE" end
  table.sort(texts)
  return #texts .. " pairs; " .. table.concat(texts, "; ")
end

function watches.reflect.run(run, step)
  local mirror = run.mirrors[step.mirror]
  if not mirror then return "skipped" end
  local foreseen = run:foresee("content", function() return content(run, step, mirror) end)
  local seen
  run:await(function()
    seen = content(run, step, mirror)
    return seen == foreseen
  end)
  return seen
end

function watches.reflect.show(step)
  return ("print what is in mirror%d"):format(step.mirror)
end

return watches
