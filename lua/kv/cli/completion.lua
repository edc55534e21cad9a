-- Writes the completion scripts for bash and zsh from the tables of the commands; `make` runs it as a script:
--
--   lua lua/kv/cli/completion.lua bash|zsh
--
-- Words of commands and options are known when the scripts are written. Keys are asked of the store that the command
-- line names (-s, or $KV_URL): the children of the directory that was typed, for a second at most.

local completion = {}

-- Arguments that are keys or directories, by command; "file" and "url" for others.
local ARGUMENTS = {get = "key", put = "key", delete = "key", list = "key", watch = "key", export = "key",
  import = "file"}

local function words_of(command, common)
  local words = {}
  for _, list in ipairs{command.options or {}, common} do
    for _, option in ipairs(list) do
      words[#words + 1] = "--" .. option.name
      if option.short then words[#words + 1] = "-" .. option.short end
    end
  end
  return table.concat(words, " ")
end

-- Patterns "COMMAND:OPTION" of the options whose next word is their argument. A letter may be a flag elsewhere.
local function with_argument(commands, common)
  local patterns = {}
  local function add(name, list)
    for _, option in ipairs(list) do
      if option.argument and option.name ~= "store" then
        patterns[#patterns + 1] = name .. ":--" .. option.name
        if option.short then patterns[#patterns + 1] = name .. ":-" .. option.short end
      end
    end
  end
  add("*", common)
  for _, command in ipairs(commands) do add(command.name, command.options or {}) end
  return table.concat(patterns, "|")
end

local function names_of(commands)
  local names = {}
  for i, command in ipairs(commands) do names[i] = command.name end
  return table.concat(names, " ")
end

local function cases(commands, line)
  local lines = {}
  for i, command in ipairs(commands) do lines[i] = line(command) end
  return table.concat(lines, "\n")
end

local function fill(template, values)
  return (template:gsub("@(%u+)@", values))
end

-- ---------------------------------------------------------------- bash

local BASH = [=[
# Completion of kv's command line for bash. Made from its tables by lua/kv/cli/completion.lua.

# Keys below what was typed, from the store of this command line.
_kv_keys() {
  local directory=${1%"${1##*/}"} url=$2
  [ -n "$url" ] || return 0
  "$KV_PROGRAM" -s "$url" --timeout 1 list -1 "$directory" 2>/dev/null
}

_kv_words() {
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$word")
}

_kv_files() {
  mapfile -t COMPREPLY < <(compgen -f -- "$word")
}

_kv() {
  # Words as they were typed: bash's own are broken at ":" and "=", which URLs have.
  local line=${COMP_LINE:0:COMP_POINT} words word command='' url=$KV_URL skip='' behind='' i
  local KV_PROGRAM=${COMP_WORDS[0]} IFS=$' \t\n'
  COMPREPLY=()
  # shellcheck disable=SC2162 # a backslash quotes
  read -a words <<<"${line}x"
  local last=$((${#words[@]} - 1))
  word=${words[last]%x}
  for ((i = 1; i < last; i++)); do
    case $skip in
      store) url=${words[i]} ;;
      yes) ;;
      *)
        case $command:${words[i]} in
          *:-s|*:--store) skip=store && continue ;;
          *:--store=*) url=${words[i]#--store=} ;;
          @WITH@) skip=yes && continue ;;
          *:--) behind=yes ;;
          *:-*) ;;
          *) [ -n "$command" ] || command=${words[i]} ;;
        esac ;;
    esac
    skip=
  done
  [ -z "$skip" ] || { [ "$command" = export ] && _kv_files; return 0; }
  # Behind kv lock NAME -- and kv elect NAME VALUE -- stands any command.
  if [ -n "$behind" ]; then
    mapfile -t COMPREPLY < <(compgen -c -f -- "$word")
    return 0
  fi
  if [ -z "$command" ]; then
    case $word in
      -*) _kv_words '@COMMON@' ;;
      *) _kv_words '@NAMES@ help' ;;
    esac
    return 0
  fi
  case $word in
    -*)
      case $command in
@OPTIONS@
      esac
      return 0 ;;
  esac
  case $command in
    help) _kv_words '@NAMES@' ;;
    bench) _kv_words 'put get lock watch' ;;
@ARGUMENTS@
  esac
}

complete -F _kv kv
]=]

-- A key may have signs of the shell in it: they are quoted. A directory gets no blank behind it. bash replaces only
-- what stands behind the last ":" or "=".
local BASH_KEYS = [=[
      local key before=''
      case $word in *[:=]*) before=${word%"${word##*[:=]}"} ;; esac
      while IFS= read -r key; do
        case $key in "$word"*) ;; *) continue ;; esac
        printf -v key '%q' "${key#"$before"}"
        COMPREPLY+=("$key")
        case $key in */) compopt -o nospace 2>/dev/null ;; esac
      done < <(_kv_keys "$word" "$url")]=]

function completion.bash(commands, common)
  return fill(BASH, {
    WITH = with_argument(commands, common), NAMES = names_of(commands),
    COMMON = words_of({}, common),
    OPTIONS = cases(commands, function(command)
      return ("        %s) _kv_words '%s' ;;"):format(command.name,
        words_of(command, common))
    end),
    ARGUMENTS = "    get|put|delete|list|watch|export)\n" .. BASH_KEYS .. " ;;\n" ..
      "    import) _kv_files ;;",
  })
end

-- ---------------------------------------------------------------- zsh

local ZSH = [=[
#compdef kv
# Completion of kv's command line for zsh. Made from its tables by lua/kv/cli/completion.lua.

# Keys below what was typed, from the store of this command line.
_kv_keys() {
  local url=${opt_args[-s]:-${opt_args[--store]:-$_kv_url}} directory=${PREFIX%${PREFIX##*/}}
  local -a keys directories
  [[ -n $url ]] || return 1
  keys=(${(f)"$(kv -s "$url" --timeout 1 list -1 "$directory" 2>/dev/null)"})
  directories=(${(M)keys:#*/})
  keys=(${keys:#*/})
  compadd -S '' -a directories
  compadd -a keys
}

_kv() {
  local context state state_descr line curcontext=$curcontext _kv_url=$KV_URL
  typeset -A opt_args
  _arguments -C \
@COMMON@ \
    '1: :->command' \
    '*:: :->arguments' && return 0
  [[ -n ${opt_args[-s]} ]] && _kv_url=${(Q)opt_args[-s]}
  [[ -n ${opt_args[--store]} ]] && _kv_url=${(Q)opt_args[--store]}
  case $state in
    command)
      local -a commands=(
@COMMANDS@
        'help:tell about a command'
      )
      _describe command commands ;;
    arguments)
      case $words[1] in
@CASES@
        help) _values command @NAMES@ ;;
      esac ;;
  esac
}

if [[ $funcstack[1] == _kv ]]; then _kv "$@"; else compdef _kv kv; fi
]=]

-- Text for _arguments: in single quotes, without what it takes apart.
local function zsh_text(text)
  return (text:gsub("\n", " "):gsub("'", "'\\''"):gsub("[%[%]:]", "\\%0"))
end

local function zsh_option(option)
  local help, argument = zsh_text(option.help), ""
  if option.argument then
    local action = option.argument == "FILE" and "_files" or " "
    argument = (":%s:%s"):format(option.argument:lower(), action)
  end
  local repeated = option.many and "*" or ""
  if not option.short then
    return ("'%s--%s[%s]%s'"):format(repeated, option.name, help, argument)
  end
  return ("'(-%s --%s)'{-%s,--%s}'[%s]%s'"):format(option.short, option.name, option.short, option.name, help, argument)
end

local ZSH_ARGUMENTS = {key = "'*:key:_kv_keys'", file = "'*:file:_files'"}
local ZSH_SPECIAL = {lock = "'1:name: ' '*:::command:_normal'",
  elect = "'1:name: ' '2:value: ' '*:::command:_normal'", copy = "'1:source: ' '2:destination: '",
  put = "'1:key:_kv_keys' '2:value: '", bench = "'*:operation:(put get lock watch)'"}

function completion.zsh(commands, common)
  local function all_options(list, indent)
    local lines = {}
    for i, option in ipairs(list) do lines[i] = indent .. zsh_option(option) end
    return table.concat(lines, " \\\n")
  end
  return fill(ZSH, {
    NAMES = names_of(commands),
    COMMON = all_options(common, "    "),
    COMMANDS = cases(commands, function(command)
      return ("        '%s:%s'"):format(command.name, zsh_text(command.summary))
    end),
    CASES = cases(commands, function(command)
      local list = {}
      for _, option in ipairs(command.options or {}) do list[#list + 1] = option end
      for _, option in ipairs(common) do list[#list + 1] = option end
      local arguments = ZSH_SPECIAL[command.name] or ZSH_ARGUMENTS[ARGUMENTS[command.name]] or ""
      return ("        %s) _arguments \\\n%s%s ;;"):format(command.name, all_options(list, "          "),
        arguments ~= "" and " \\\n          " .. arguments or "")
    end),
  })
end

-- Run as a script, by make.
if arg and arg[0] and arg[0]:find("completion%.lua$") then
  package.path = arg[0]:match("^(.*)kv/cli/completion%.lua$") .. "?.lua;" .. package.path
  io.write(completion[arg[1]](require("kv.cli.commands"), require("kv.cli.common")))
end

return completion
