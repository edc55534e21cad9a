local options = require("kv.cli.options")

local KNOWN = {
  {name = "json", short = "j", kind = "flag", help = "h"},
  {name = "recursive", short = "r", kind = "flag", help = "h"},
  {name = "ttl", short = "t", argument = "SECONDS", kind = "seconds", help = "h"},
  {name = "count", argument = "COUNT", kind = "count", help = "h"},
  {name = "if", argument = "REVISION", kind = "revision", help = "h"},
  {name = "value", argument = "TEXT", kind = "text", help = "h"},
}

local function parse(words, how)
  local given = {}
  local rest, _, behind = options.parse(KNOWN, words, 1, given, how)
  return given, rest, behind
end

local function failure(...)
  local ok, raised = pcall(parse, {...})
  assert.is_false(ok)
  assert.equal(2, raised.status)
  return raised.message
end

describe("kv.cli.options", function()
  it("reads long and short forms anywhere", function()
    local given, rest = parse{"a", "-rj", "--ttl=2.5", "b", "--count", "3", "--value", "-x"}
    assert.same({recursive = true, json = true, ttl = 2.5, count = 3, value = "-x"}, given)
    assert.same({"a", "b"}, rest)
    assert.same({ttl = 5}, (parse{"-t5"}))
    assert.same({ttl = 0}, (parse{"-t", "0"}))
    assert.same({["if"] = 0}, (parse{"--if", "0"}))
  end)

  it("takes what is behind -- as it is, and - as an argument", function()
    local given, rest = parse{"-", "--", "--json", "-r"}
    assert.same({}, given)
    assert.same({"-", "--json", "-r"}, rest)
    local _, before, behind = parse({"name", "--", "ls", "-l"}, {split = true})
    assert.same({"name"}, before)
    assert.same({"ls", "-l"}, behind)
    _, _, behind = parse({"name"}, {split = true})
    assert.is_nil(behind)
  end)

  it("says what is wrong", function()
    assert.equal("unknown option --jsn (did you mean --json?)", failure("--jsn"))
    assert.equal("unknown option --quite-different", failure("--quite-different"))
    assert.truthy(failure("-x"):find("unknown option -x", 1, true))
    assert.equal("--ttl needs an argument (SECONDS)", failure("--ttl"))
    assert.equal('--ttl takes a number of seconds, not "soon"', failure("--ttl", "soon"))
    assert.equal('-t takes a number of seconds, not "-1"', failure("-t", "-1"))
    assert.equal('--count takes a whole number from 1, not "0"', failure("--count", "0"))
    assert.equal('--count takes a whole number from 1, not "1.5"', failure("--count=1.5"))
    assert.equal('--if takes a revision (a whole number), not "0x10"', failure("--if", "0x10"))
    assert.equal("--json takes no argument", failure("--json=yes"))
  end)

  it("suggests what was probably meant, and nothing far-fetched", function()
    local words = {"get", "put", "delete", "list", "watch", "lock", "info", "version"}
    for wrong, right in pairs{wacth = "watch", lits = "list", delet = "delete", versoin = "version", gte = "get",
      ver = "version", watc = "watch"} do
      assert.equal((" (did you mean %s?)"):format(right), options.suggestion(wrong, words), wrong)
    end
    for _, wrong in ipairs{"frobnicate", "xyz", "remove"} do
      assert.equal("", options.suggestion(wrong, words), wrong)
    end
  end)
end)
