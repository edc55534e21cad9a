--- The completion scripts, sourced by the shells that they are for.
local cli = require("spec.cli.support")
local native = require("spec.native")
local util = require("spec.support.util")

local CURRENT = ("%s/%s"):format(os.getenv("KV_BUILD") or "build", os.getenv("KV_LUA") or "lua5.4")
local BUILT = (CURRENT:sub(1, 1) == "/" and "" or os.getenv("PWD") .. "/") .. CURRENT

local function program(name)
  for folder in os.getenv("PATH"):gmatch("[^:]+") do
    local file = io.open(folder .. "/" .. name)
    if file then
      file:close()
      return true
    end
  end
  return false
end

-- Run a script by a shell to its end: what it printed.
local function script(shell, text, ...)
  local folder = util.folder()
  util.write(folder .. "/script", text)
  local process = assert(native.spawn{shell, folder .. "/script", stdout = folder .. "/out", stderr = folder .. "/out",
    ...})
  local how = process:wait(cli.patience)
  if not how then process:kill("KILL") end
  local out = util.read(folder .. "/out")
  assert.equal("exit", how, out)
  return out
end

local function store_with_keys()
  local url = cli.url()
  for _, key in ipairs{"config/colour", "config/size", "config/deep/key", "zoo", "zoo two", "a:b/c"} do
    assert.equal(0, (cli.run(url, "put", key, "v")))
  end
  return url
end

-- What readline does: COMP_WORDS broken at ":" and "=", COMP_LINE whole.
local BASH = [=[
set -u
PATH=$1/bin:$PATH
source "$1/completions/kv.bash"
KV_URL=$2
for COMP_LINE in "${@:3}"; do
  COMP_POINT=${#COMP_LINE}
  read -ra COMP_WORDS <<<"${COMP_LINE//[:=]/ & }x"
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
  COMPREPLY=()
  _kv
  printf '%s|' "${COMPREPLY[@]+"${COMPREPLY[@]}"}"
  echo
done
]=]

local function in_bash(url, ...)
  local lines = {}
  for line in script("bash", BASH, BUILT, url, ...):gmatch("[^\n]*") do
    if line ~= "" then lines[#lines + 1] = line end
  end
  return lines
end

describe("completion for bash", function()
  it("knows commands and their options", function()
    local lines = in_bash("", "kv ver", "kv wat", "kv export --o", "kv copy --d", "kv --st", "kv -s local:/x li",
      "kv help imp", "kv --timeout 3 ge")
    assert.same({"version|", "watch|", "--output|", "--dry-run|--delete|", "--store|", "list|", "import|", "get|"},
      lines)
  end)

  it("knows the keys of the store", function()
    local url = store_with_keys()
    local lines = in_bash(url, "kv get con", "kv get config/", "kv list config/d", "kv delete zo", "kv get a:")
    assert.same({"config/|", "config/colour|config/deep/|config/size|", "config/deep/|", "zoo|zoo\\ two|", "b/|"},
      lines)
    -- The store of the command line goes before $KV_URL, and a key's value is no key.
    assert.same({"zoo|zoo\\ two|"}, in_bash("", ("kv -s %s get zo"):format(url)))
    assert.same({"zoo|zoo\\ two|"}, in_bash(cli.url(), ("kv get --store=%s zo"):format(url)))
  end)

  it("is quiet where there is no store", function()
    assert.same({"|"}, in_bash("", "kv get zo"))
    assert.same({"|"}, in_bash("nonsense:", "kv get zo"))
  end)
end)

-- A zsh of its own in a pseudo terminal; a key that is bound for this writes the line into a file.
local ZSH = [=[
zmodload zsh/zpty
export PATH=$1/bin:$PATH KV_URL=$2 ZDOTDIR=$3 TERM=vt100
cat >$3/.zshrc <<END
unsetopt zle_bracketed_paste list_beep
PS1=
fpath=($1/completions \$fpath)
autoload -Uz compinit && compinit -u -D
show() { print -r -- "\$BUFFER" >>$3/shown; BUFFER=; print done >>$3/ready }
zle -N show
bindkey '^I' complete-word
bindkey '^X' show
print begun >$3/ready
END
wait_for() {
  local i
  for ((i = 0; i < 400; i++)); do
    zpty -rt z output 2>/dev/null
    [[ -s $ZDOTDIR/ready ]] && return 0
    sleep 0.05
  done
  return 1
}
zpty -b z zsh -i
wait_for || exit 1
for line in "${@:4}"; do
  rm -f $ZDOTDIR/ready
  zpty -wn z "$line"$'\t\x18'
  wait_for || exit 1
done
zpty -d z
cat $ZDOTDIR/shown
]=]

local function in_zsh(url, ...)
  local lines = {}
  for line in script("zsh", ZSH, BUILT, url, util.folder(), ...):gmatch("[^\n]+") do lines[#lines + 1] = line end
  return lines
end

describe("completion for zsh", function()
  if not program("zsh") then
    pending("there is no zsh")
    return
  end

  it("knows commands, their options and keys", function()
    local url = store_with_keys()
    assert.same({"kv version ", "kv export --output ", "kv get config/colour ", "kv list config/", "kv -s " .. url ..
      " get config/size "}, in_zsh(url, "kv ver", "kv export --o", "kv get config/c", "kv list con",
      "kv -s " .. url .. " get config/s"))
  end)
end)
