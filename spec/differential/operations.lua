--- The operations that programs are made of, by name. Each has
--    weight                  how often it is chosen
--    make(maker, step)       fills the step; false: not possible now. maker: see generate.lua
--    run(run, step)          does it, and returns its line of the transcript. run: see run_program.lua
--    show(step, text)        the step as Lua, for people. text: see source.lua
--    tasks                   it needs tasks: not in programs that run from the main thread
local operations = {}

for _, part in ipairs{"keys", "atomic", "txn", "life", "watches", "locks"} do
  for name, operation in pairs(require("spec.differential.operations." .. part)) do
    assert(not operations[name], name)
    operations[name] = operation
  end
end

return operations
