-- What luacheck should know: one dialect for all, and the globals that the specs and hosts bring.
std = "min"
max_line_length = 120
codes = true
include_files = {
  "lua/**/*.lua", "spec/**/*.lua", "examples/**/*.lua", "*.rockspec", ".luacheckrc", ".busted"
}
exclude_files = {"build/**"}
-- What only some versions have is looked up before use.
read_globals = {
  "ngx", "jit", "utf8", "bit", "table.unpack", "table.pack", "math.type", "math.tointeger", "setfenv", "getfenv",
  "loadstring", "unpack", "string.pack", "string.unpack", "warn"
}
ignore = {"212/self", "212/_.*"}
files["spec/**/*.lua"] = {std = "+busted"}
files["*.rockspec"] = {std = "+rockspec"}
files[".luacheckrc"] = {std = "+luacheckrc"}
