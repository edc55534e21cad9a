--- Reading and writing: put, get, get_many, put_many, exists, delete, list, pages, delete_tree.
local keys = {}

keys.put = {weight = 26}

function keys.put.make(maker, step)
  step.store, step.key, step.value = maker:store(), maker:key(), maker:value()
  step.life = maker:life(step)
end

function keys.put.run(run, step)
  local options = run:options(step, step.life)
  if not options then return "skipped" end
  return run:answer(step, run:store(step.store):put(step.key, step.value, options))
end

function keys.put.show(step, text)
  return ("local r%d = %s:put(%s, %s%s)"):format(step.id, step.store, text.string(step.key), text.string(step.value),
    text.life(step.life))
end

keys.get = {weight = 6}

function keys.get.make(maker, step)
  step.store = maker:store()
  step.key = maker.random:chance(50) and maker:known_key(step.store) or maker:key()
end

function keys.get.run(run, step)
  return run:answer(step, run:store(step.store):get(step.key))
end

function keys.get.show(step, text)
  return ("local r%d = %s:get(%s)"):format(step.id, step.store, text.string(step.key))
end

keys.exists = {weight = 3, make = keys.get.make}

function keys.exists.run(run, step)
  local there, message, code = run:store(step.store):exists(step.key)
  return there == nil and run.failure(message, code) or tostring(there)
end

function keys.exists.show(step, text)
  return ("%s:exists(%s)"):format(step.store, text.string(step.key))
end

keys.get_many = {weight = 3}

function keys.get_many.make(maker, step)
  step.store, step.keys = maker:store(), {}
  for i = 1, maker.random:upto(5) do step.keys[i] = maker:key() end
end

function keys.get_many.run(run, step)
  local found, message, code = run:store(step.store):get_many(step.keys)
  if not found then return run.failure(message, code) end
  local asked, texts = {}, {}
  for _, key in ipairs(step.keys) do
    local text = found[key] and run:pair(step.store, found[key]) or "nil"
    if not asked[key] then texts[#texts + 1] = key .. ": " .. text end
    asked[key] = true
  end
  for key in pairs(found) do
    if not asked[key] then texts[#texts + 1] = "NOT ASKED FOR: " .. key end
  end
  return table.concat(texts, "; ")
end

function keys.get_many.show(step, text)
  return ("%s:get_many{%s}"):format(step.store, text.strings(step.keys))
end

keys.put_many = {weight = 3}

function keys.put_many.make(maker, step)
  step.store, step.keys, step.values = maker:store(), maker:distinct_keys(maker.random:upto(4)), {}
  for i in ipairs(step.keys) do step.values[i] = maker:value() end
  step.life = maker:life(step)
end

-- Is one of them below another?
local function nested(list)
  for _, key in ipairs(list) do
    for _, other in ipairs(list) do
      if key:sub(1, #other + 1) == other .. "/" then return true end
    end
  end
  return false
end

-- Where a key may be refused for what stands around it, whether the others are written is not promised; and where keys
-- are nodes it depends on their order which was a parent first. There only one is put.
local function is_alone(run, step)
  if run.program.portable or run.traits.directories then return true end
  if not run.traits.nodes then return false end
  if nested(step.keys) or (step.life and step.life.kind ~= "plain") then return true end
  return run:foresee("barred", function(world)
    for _, key in ipairs(step.keys) do
      if world.nodes:is_barred(run:full(step.store, key)) then return true end
    end
    return false
  end)
end

function keys.put_many.run(run, step)
  local options = run:options(step, step.life)
  if not options then return "skipped" end
  local values, alone = {}, is_alone(run, step)
  for i = 1, alone and 1 or #step.keys do values[step.keys[i]] = step.values[i] end
  local done, message, code = run:store(step.store):put_many(values, options)
  return done and tostring(done) or run.failure(message, code)
end

function keys.put_many.show(step, text)
  local parts = {}
  for i, key in ipairs(step.keys) do parts[i] = ("[%s] = %s"):format(text.string(key), text.string(step.values[i])) end
  return ("%s:put_many({%s}%s)"):format(step.store, table.concat(parts, ", "), text.life(step.life))
end

keys.delete = {weight = 10}

function keys.delete.make(maker, step)
  step.store = maker:store()
  step.key = maker.random:chance(60) and maker:known_key(step.store) or maker:key()
end

function keys.delete.run(run, step)
  local found, message, code = run:store(step.store):delete(step.key)
  return found == nil and run.failure(message, code) or tostring(found)
end

function keys.delete.show(step, text)
  return ("%s:delete(%s)"):format(step.store, text.string(step.key))
end

keys.delete_tree = {weight = 3}

function keys.delete_tree.make(maker, step)
  step.store, step.dir = maker:store(), maker:dir()
end

function keys.delete_tree.run(run, step)
  local done, message, code = run:store(step.store):delete_tree(step.dir)
  run.tree_deleted = step.id
  return done and tostring(done) or run.failure(message, code)
end

function keys.delete_tree.show(step, text)
  return ("%s:delete_tree(%s)"):format(step.store, text.string(step.dir))
end

keys.list = {weight = 10}

function keys.list.make(maker, step)
  local random = maker.random
  step.store, step.dir, step.options = maker:store(), maker:dir(), {}
  if random:chance(45) then step.options.recursive = false end
  if random:chance(15) then step.options.keys_only = true end
  if random:chance(30) then step.options.limit = random:upto(4) end
  if random:chance(25) then step.options.after = maker:key() end
end

local function listed(run, step, found, revision)
  if type(revision) ~= "number" then return "NO REVISION; " end
  for _, pair in ipairs(found) do
    if (pair.revision or 0) > revision then return "THE LIST'S REVISION IS TOO SMALL; " end
  end
  run.results[step.id] = found
  return ""
end

function keys.list.run(run, step)
  local found, revision, code = run:store(step.store):list(step.dir, step.options)
  if not found then return run.failure(revision, code) end
  return listed(run, step, found, revision) .. run:list(step.store, found)
end

function keys.list.show(step, text)
  return ("local r%d = %s:list(%s%s)"):format(step.id, step.store, text.string(step.dir), text.options(step.options))
end

keys.pages = {weight = 2}

function keys.pages.make(maker, step)
  keys.list.make(maker, step)
  step.options.limit = maker.random:upto(3)
end

-- Where pages begin and end is the backend's business, how large they are at most is not.
function keys.pages.run(run, step)
  local next_page, message, code = run:store(step.store):pages(step.dir, step.options)
  if not next_page then return run.failure(message, code) end
  local found, large = {}, false
  while true do
    local ok, page = run.env.pcall(next_page)
    if not ok then return "raised " .. (tostring(page):match("%((%l[%l_]+)%)") or tostring(page)) end
    if not page then break end
    large = large or #page > step.options.limit
    for _, pair in ipairs(page) do found[#found + 1] = pair end
  end
  return (large and "A PAGE IS TOO LARGE; " or "") .. run:list(step.store, found)
end

function keys.pages.show(step, text)
  return ("for page in %s:pages(%s%s) do print(#page) end"):format(step.store, text.string(step.dir),
    text.options(step.options))
end

return keys
