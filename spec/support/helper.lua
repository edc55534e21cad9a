--- Loaded by busted before the specs. busted forgets loaded modules from file to file; what is loaded here stays, so
-- that one Lua state has one kv, as programs do.
require("spec.native")
require("spec.support.util")
pcall(require, "kv") -- a spec that needs it says what is wrong
