local cli = require("spec.cli.support")
local cjson = require("cjson")

local function succeeds(url, ...)
  local status, out, err = cli.run(url, ...)
  assert.equal(0, status, err)
  assert.equal("", err)
  return out
end

local function fails(wanted, url, ...)
  local status, out, err = cli.run(url, ...)
  assert.equal(wanted, status, err)
  assert.equal("", out)
  assert.equal("kv: ", err:sub(1, 4))
  assert.equal(1, select(2, err:gsub("\n", "\n")), err)
  return err
end

describe("kv get, put, delete", function()
  it("write and read bytes exactly", function()
    local url = cli.url()
    assert.equal("", succeeds(url, "put", "a/b", "one"))
    assert.equal("one", succeeds(url, "get", "/a//b/"))
    succeeds(url, "put", "empty", "")
    assert.equal("", succeeds(url, "get", "empty"))
  end)

  it("read a value from standard input", function()
    local url, bytes = cli.url(), "\0\255\nbinary\n"
    local process = cli.pipe(url, "put", "bin", "-")
    assert(process:write(bytes))
    process:close_input()
    assert.same({"exit", 0}, {process:wait(cli.patience)})
    assert.equal(bytes, succeeds(url, "get", "bin"))
    assert.equal("AP8KYmluYXJ5Cg==", cjson.decode(succeeds(url, "get", "bin", "--json")).base64)
  end)

  it("tell a missing key by exit status 3", function()
    local url = cli.url()
    assert.truthy(fails(3, url, "get", "none"):find('"none"', 1, true))
    assert.truthy(fails(3, url, "delete", "none"):find('"none"', 1, true))
    succeeds(url, "put", "some", "x")
    assert.equal("", succeeds(url, "delete", "some"))
    fails(3, url, "get", "some")
  end)

  it("compare and set", function()
    local url = cli.url()
    local made = cjson.decode(succeeds(url, "put", "k", "1", "--create", "--json"))
    assert.equal(made.revision, made.created)
    fails(1, url, "put", "k", "2", "--create")
    local changed = cjson.decode(succeeds(url, "put", "k", "2", "--if", ("%d"):format(made.revision), "--json"))
    assert.equal(made.created, changed.created)
    fails(1, url, "put", "k", "3", "--if", ("%d"):format(made.revision))
    fails(1, url, "delete", "k", "--if", ("%d"):format(made.revision))
    assert.equal("2", succeeds(url, "get", "k"))
    succeeds(url, "delete", "k", "--if", ("%d"):format(changed.revision))
    fails(2, url, "put", "k", "3", "--create", "--if", "4")
  end)

  it("let a key go after its time", function()
    local util = require("spec.support.util")
    local url = cli.url()
    succeeds(url, "put", "short", "x", "--ttl", "1")
    util.eventually(function() return cli.run(url, "get", "short") == 3 end, "the key is gone", 15)
  end)

  it("delete a tree and nothing beside it", function()
    local url = cli.url()
    for _, key in ipairs{"a", "a/x", "a/y/z", "ab"} do succeeds(url, "put", key, "v") end
    succeeds(url, "delete", "-r", "a")
    assert.equal("ab\n", succeeds(url, "list"))
  end)
end)

describe("kv list", function()
  local url
  setup(function()
    url = cli.url()
    for _, pair in ipairs{{"b/2", "two\n"}, {"a", "one"}, {"b/1", "\255"}, {"b/c/d", ""}} do
      succeeds(url, "put", pair[1], pair[2])
    end
  end)

  it("prints keys sorted", function()
    assert.equal("a\nb/1\nb/2\nb/c/d\n", succeeds(url, "list"))
    assert.equal("b/1\nb/2\nb/c/d\n", succeeds(url, "list", "b/"))
    assert.equal("", succeeds(url, "list", "none"))
  end)

  it("prints values, children, and parts", function()
    assert.equal("b/1\t\\xff\nb/2\ttwo\\n\nb/c/d\t\n", succeeds(url, "list", "-l", "b"))
    assert.equal("a\nb/\n", succeeds(url, "list", "--shallow"))
    assert.equal("b/2\nb/c/d\n", succeeds(url, "list", "--after", "b/1"))
    assert.equal("a\nb/1\n", succeeds(url, "list", "--limit", "2"))
  end)

  it("prints one JSON object a line", function()
    local found = {}
    for line in succeeds(url, "list", "b", "--json"):gmatch("[^\n]+") do found[#found + 1] = cjson.decode(line) end
    assert.equal(3, #found)
    assert.equal("/w==", found[1].base64)
    assert.equal("two\n", found[2].value)
    assert.is_nil(cjson.decode((succeeds(url, "list", "b/c", "--json", "--keys-only"))).value)
  end)
end)

describe("kv", function()
  it("explains itself", function()
    local help = succeeds(nil, "--help")
    for _, name in ipairs{"get", "put", "delete", "list", "watch", "lock", "elect", "copy", "export", "import", "bench",
      "info", "version"} do
      assert.truthy(help:find("\n  " .. name .. " ", 1, true), name)
      local own = succeeds(nil, name, "--help")
      assert.truthy(own:find("Usage: kv [-s URL] " .. name, 1, true), name)
      assert.equal(own, succeeds(nil, "help", name))
    end
    assert.truthy(succeeds(nil, "version"):find("^kv %d+%.%d+%.%d+ %(.*local.*%)\n$"))
  end)

  it("is in README.md as it explains itself", function()
    local readme = require("spec.support.util").read("README.md")
    for line in succeeds(nil, "--help"):gmatch("[^\n]+") do
      assert.truthy(readme:find("\n    " .. line .. "\n", 1, true), line)
    end
  end)

  it("answers misuse with status 2 and something to act on", function()
    assert.truthy(fails(2, nil, "wacth", "x"):find("did you mean watch?", 1, true))
    assert.truthy(fails(2, nil, "get"):find("Usage: kv [-s URL] get KEY", 1, true))
    assert.truthy(fails(2, nil, "get", "a", "b"):find('"b"', 1, true))
    assert.truthy(fails(2, nil, "get", "a"):find("KV_URL", 1, true))
    assert.truthy(fails(2, "local:", "get", ""):find("kv: get", 1, true))
    assert.truthy(fails(2, "local:", "get", ".kv/x"):find(".kv", 1, true))
    assert.truthy(fails(2, "local:", "put", "k", "-5"):find("--", 1, true))
    fails(2, "nonsense", "get", "a")
    fails(2, "local:", "lock", "name")
    fails(2, "local:", "lock", "name", "-n", "-t", "1", "--", "true")
    fails(2, "local:", "elect", "name", "value")
    fails(2, "local:", "elect", "name", "value", "--")
    assert.equal(2, (cli.run(nil)))
  end)

  it("takes the store from KV_URL, and -s before it", function()
    local native = require("spec.native")
    local url = cli.url()
    native.setenv("KV_URL", url)
    local ok, problem = pcall(function()
      succeeds(nil, "put", "from", "environment")
      assert.equal("environment", succeeds(nil, "get", "from"))
      fails(3, cli.url(), "get", "from")
    end)
    native.setenv("KV_URL")
    if not ok then error(problem, 0) end
  end)

  it("tells a server that is not there by status 1", function()
    local port = require("spec.native").port()
    local message = fails(1, ("etcd://127.0.0.1:%d"):format(port), "get", "a", "--timeout", "1")
    assert.truthy(message:find(tostring(port), 1, true))
    fails(1, ("etcd://127.0.0.1:%d"):format(port), "info", "--timeout", "0.5")
  end)

  it("tells about the store", function()
    local url = cli.url()
    assert.truthy(succeeds(url, "info"):find("backend +local\n"))
    local known = cjson.decode(succeeds(url, "info", "--json"))
    assert.equal("local", known.backend)
    assert.is_true(#known.capabilities > 3)
  end)
end)

describe("kv bench", function()
  it("measures each operation, and leaves nothing behind", function()
    local url = cli.url()
    succeeds(url, "put", "mine", "1")
    local names = {}
    for line in succeeds(url, "bench", "--json", "--seconds", "0.1", "--tasks", "4", "--keys", "10"):gmatch("[^\n]+") do
      local result = cjson.decode(line)
      names[#names + 1] = result.operation
      assert.is_true(result.count > 0 and result.per_second > 0)
      assert.is_true(result.p50_ms <= result.p99_ms and result.p99_ms <= result.max_ms)
    end
    assert.same({"put", "get", "lock", "watch"}, names)
    assert.equal("mine\n", succeeds(url, "list"))
    assert.truthy(succeeds(url, "bench", "get", "--seconds", "0.05"):find("\nget +%d+ +[%d.]+ +[%d.]+ +[%d.]+\n$"))
    fails(2, url, "bench", "pot")
  end)

  it("cleans up when it is interrupted", function()
    local util, kv = require("spec.support.util"), require("kv")
    local url = cli.url()
    local process = cli.start(url, "bench", "put", "--seconds", "60")
    local store = assert(kv.open(url))
    util.eventually(function() return #store:list("", {keys_only = true}) > 0 end, "it has begun")
    process:kill("INT")
    assert.same({"exit", 128 + 2}, {process:wait(cli.patience)})
    assert.equal(0, #store:list(""))
    store:close()
  end)
end)
