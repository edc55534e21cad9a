--- Real etcd servers for specs: each in a temporary folder, on free ports, healthy when the constructor returns, ended
-- by its pid.
--
--    local etcd = servers.etcd{tls = true, auth = true}
--    kv.open(etcd:url())                  "etcds://127.0.0.1:41234"
--    etcd:kill()  etcd:start()            SIGKILL; again, with its data and ports
--    etcd:pause() etcd:resume()           SIGSTOP, SIGCONT
--    etcd:ctl("compact", "17")            etcdctl, its output
--    etcd:stop()                          ends it and removes its folder
--
-- servers.cluster(3) gives members that know each other. servers.etcd2{} and servers.etcd2_cluster(3) are the same with
-- URLs of the v2 API, and v2("/keys/a") for a request to it. servers.consul{}, servers.consul_cluster(3),
-- servers.zookeeper{} and servers.zookeeper_cluster(3) have the same methods (ZooKeeper: not ctl, but ask("ruok") for
-- the server's four-letter words).
local native = require("spec.native")
local util = require("spec.support.util")

local servers = {}

local START_SECONDS = 60
local ATTEMPTS = 3 -- a free port may be taken by somebody else before the server listens

--- Run a program to its end; returns its output, or fails with it.
function servers.run(command, environment)
  local folder = util.folder()
  local out = folder .. "/output"
  command.stdout, command.stderr, command.env = out, out, environment
  local process = assert(native.spawn(command))
  local how, code = process:wait(60)
  local text = util.read(out) or ""
  util.remove(folder)
  if how ~= "exit" or code ~= 0 then
    return nil, ("%s ended with %s %s: %s"):format(table.concat(command, " "), tostring(how), tostring(code), text)
  end
  return text
end

--- Wait until it is well; nil and why when it is not. One whose port is another's has ended, though its port answers.
local function wait_healthy(self, what)
  local deadline = native.now() + START_SECONDS
  local healthy
  repeat
    healthy = self:healthy()
    local problem = not self.process:running() and "ended"
      or not healthy and native.now() > deadline and "is not healthy"
    if problem then return nil, ("%s %s: %s"):format(what, problem, util.read(self.folder .. "/log") or "") end
    if not healthy then native.sleep(0.02) end
  until healthy
  return true
end

-- ------------------------------------------------------------------ certificates

local function openssl(...)
  return assert(servers.run{"openssl", ...})
end

--- A private certificate authority in a folder, and what it signed: {ca, cert, key, client_cert, client_key, other_ca}.
function servers.certificates(folder)
  local function authority(name)
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
      "/CN=kv test authority " .. name, "-keyout", folder .. "/" .. name .. ".key", "-out",
      folder .. "/" .. name .. ".pem")
    return folder .. "/" .. name .. ".pem"
  end
  local function signed(name, usage)
    local base = folder .. "/" .. name
    util.write(base .. ".ext", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=" .. usage .. "\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=" .. name, "-keyout",
      base .. ".key", "-out", base .. ".csr")
    openssl("x509", "-req", "-in", base .. ".csr", "-CA", folder .. "/ca.pem", "-CAkey", folder .. "/ca.key",
      "-CAcreateserial", "-days", "2", "-extfile", base .. ".ext", "-out", base .. ".pem")
    return base .. ".pem", base .. ".key"
  end
  local made = {ca = authority("ca"), other_ca = authority("other")}
  made.cert, made.key = signed("server", "serverAuth,clientAuth")
  made.client_cert, made.client_key = signed("client", "clientAuth")
  return made
end

-- ------------------------------------------------------------------ starting

local function all_healthy(members)
  for _, member in ipairs(members) do
    local ok, problem = member:wait_healthy()
    if not ok then return nil, problem end
  end
  return true
end

--- What launch() gives, a list of servers, once all are healthy; again with new ones when they do not get there.
local function attempt(launch)
  local problem
  for _ = 1, ATTEMPTS do
    local members = launch()
    local ok, why = all_healthy(members)
    if ok then return members end
    problem = why
    for _, member in ipairs(members) do member:stop() end
  end
  error(problem, 3)
end

-- ------------------------------------------------------------------ etcd

local Etcd = {}
Etcd.__index = Etcd

local ROOT_PASSWORD = "r00t-secret"

local function command_of(self)
  local scheme = self.certificates and "https" or "http"
  local client = ("%s://127.0.0.1:%d"):format(scheme, self.port)
  local peer = ("http://127.0.0.1:%d"):format(self.peer_port)
  local known = ("http://127.0.0.1:%d"):format(self.known_port or self.peer_port)
  local command = {"etcd", "--name", self.name, "--data-dir", self.folder .. "/data", "--listen-client-urls", client,
    "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", known,
    "--initial-cluster", self.cluster or (self.name .. "=" .. peer), "--enable-v2=true", "--logger=zap",
    "--log-outputs=stderr", stdout = self.folder .. "/log", stderr = self.folder .. "/log"}
  if self.certificates then
    for _, word in ipairs{"--cert-file", self.certificates.cert, "--key-file", self.certificates.key} do
      command[#command + 1] = word
    end
    if self.options.client_certificates then
      for _, word in ipairs{"--client-cert-auth", "--trusted-ca-file", self.certificates.ca} do
        command[#command + 1] = word
      end
    end
  end
  for _, word in ipairs(self.options.arguments or {}) do command[#command + 1] = word end
  return command
end

--- Run etcdctl on it: its output, or nil and what it said.
function Etcd:try_ctl(...)
  local scheme = self.certificates and "https" or "http"
  local command = {"etcdctl", "--endpoints", ("%s://127.0.0.1:%d"):format(scheme, self.port)}
  if self.certificates then
    for _, word in ipairs{"--cacert", self.certificates.ca, "--cert", self.certificates.client_cert, "--key",
      self.certificates.client_key} do command[#command + 1] = word end
  end
  if self.authenticated then
    command[#command + 1] = "--user"
    command[#command + 1] = "root:" .. ROOT_PASSWORD
  end
  for i = 1, select("#", ...) do command[#command + 1] = tostring((select(i, ...))) end
  return servers.run(command, {"ETCDCTL_API=3"})
end

function Etcd:ctl(...)
  return assert(self:try_ctl(...))
end

--- Start it (again) without waiting for its health.
function Etcd:launch()
  self.process = assert(native.spawn(command_of(self)))
end

function Etcd:healthy()
  return self.process:listens(self.port) and self:try_ctl("endpoint", "health") ~= nil
end

function Etcd:wait_healthy()
  return wait_healthy(self, self.what or "etcd")
end

--- Start it again after kill(), with its data and ports.
function Etcd:start()
  self:launch()
  assert(self:wait_healthy())
end

--- SIGKILL, and wait until it is gone.
function Etcd:kill()
  self.process:kill("CONT")
  self.process:kill("KILL")
  assert(self.process:wait(60), "the server cannot be killed")
end

function Etcd:pause() assert(self.process:kill("STOP")) end
function Etcd:resume() assert(self.process:kill("CONT")) end

function Etcd:stop()
  self:kill()
  util.remove(self.folder)
end

--- How many calls of the service KV it has taken: reads, writes and transactions of the v3 API.
function Etcd:kv_calls()
  local answer = assert(native.exchange(self.port, "GET /metrics HTTP/1.0\r\nHost: kv\r\n\r\n", START_SECONDS))
  local count = 0
  for line in answer:gmatch("grpc_server_started_total{([^\n]*)") do
    if line:find('grpc_service="etcdserverpb.KV"', 1, true) then count = count + tonumber(line:match("} (%S+)")) end
  end
  return count
end

--- The URL of this member; `rest` is what follows the port.
function Etcd:url(rest, user)
  local scheme = self.certificates and "etcds" or "etcd"
  return ("%s://%s127.0.0.1:%d%s"):format(scheme, user and user .. "@" or "", self.port, rest or "")
end

--- The revision that the server is at.
function Etcd:revision()
  return assert(tonumber(self:ctl("get", "any", "-w", "json"):match('"revision":(%d+)')))
end

local function new_member(options, name)
  local self = setmetatable({options = options, name = name, folder = util.folder()}, Etcd)
  self.port, self.peer_port = native.port(), native.port()
  if options.tls then self.certificates = servers.certificates(self.folder) end
  return self
end

local function enable_auth(self)
  self:ctl("user", "add", "root:" .. ROOT_PASSWORD)
  self:ctl("user", "grant-role", "root", "root")
  self:ctl("role", "add", "limited")
  self:ctl("role", "grant-permission", "limited", "readwrite", "--prefix=true", "/allowed/")
  self:ctl("user", "add", "worker:w0rk")
  self:ctl("user", "grant-role", "worker", "limited")
  self:ctl("auth", "enable")
  self.authenticated = true
  self.password = ROOT_PASSWORD
end

--- A server. Options: tls, client_certificates (it wants them), auth (root with .password; worker:w0rk may use
-- /allowed/), arguments.
function servers.etcd(options)
  local self = attempt(function()
    local member = new_member(options or {}, "one")
    member:launch()
    return {member}
  end)[1]
  if self.options.auth then enable_auth(self) end
  return self
end

--- Members of one cluster, all healthy. Options: as servers.etcd, and between: a function of a member's number and its
-- port for the others, that says where they find it, say the port of a proxy. When ports turn out to be taken, it is
-- asked again.
function servers.cluster(count, options)
  return attempt(function()
    local members, parts = {}, {}
    for i = 1, count do
      members[i] = new_member(options or {}, "member" .. i)
      local between = members[i].options.between
      members[i].known_port = between and between(i, members[i].peer_port) or members[i].peer_port
      parts[i] = ("%s=http://127.0.0.1:%d"):format(members[i].name, members[i].known_port)
    end
    for _, member in ipairs(members) do
      member.cluster = table.concat(parts, ",")
      member:launch()
    end
    return members
  end)
end

-- ------------------------------------------------------------------ etcd's v2 API

-- The same server, which offers both.
local Etcd2 = setmetatable({}, {__index = Etcd})
Etcd2.__index = Etcd2

function Etcd2:url(rest, user)
  return (Etcd.url(self, rest, user):gsub("^etcd", "etcd2"))
end

--- Forget everything, as after a lost disk. Only while it is down.
function Etcd2:wipe()
  util.remove(self.folder .. "/data")
end

--- A request to its v2 API by curl: the body of the answer. `path` is what follows "/v2"; the rest goes to curl.
function Etcd2:v2(path, ...)
  local scheme = self.certificates and "https" or "http"
  local command = {"curl", "-s", "-k", "-m", "10", ("%s://127.0.0.1:%d/v2%s"):format(scheme, self.port, path), ...}
  return assert(servers.run(command))
end

--- A server. Options as of servers.etcd(), but for auth: users (root with .password; worker:w0rk may use /allowed).
function servers.etcd2(options)
  local self = setmetatable(servers.etcd(options), Etcd2)
  if not self.options.users then return self end
  local function put(path, body)
    self:v2(path, "-X", "PUT", "-H", "Content-Type: application/json", "-d", body)
  end
  put("/auth/users/root", ('{"user": "root", "password": "%s"}'):format(ROOT_PASSWORD))
  put("/auth/roles/limited", '{"role": "limited", "permissions": {"kv": {"read": ["/allowed*"], ' ..
    '"write": ["/allowed*"]}}}')
  put("/auth/users/worker", '{"user": "worker", "password": "w0rk", "roles": ["limited"]}')
  put("/auth/enable", "")
  self:v2("/auth/roles/guest", "-u", "root:" .. ROOT_PASSWORD, "-X", "DELETE")
  self.password = ROOT_PASSWORD
  return self
end

--- Members of one cluster, all healthy.
function servers.etcd2_cluster(count, options)
  local members = servers.cluster(count, options)
  for _, member in ipairs(members) do setmetatable(member, Etcd2) end
  return members
end

-- ------------------------------------------------------------------ ZooKeeper

local ZooKeeper = {}
ZooKeeper.__index = ZooKeeper

local CLASSES = "/usr/share/java/zookeeper.jar:/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar"

--- Options: tick (milliseconds, 200), extended_types (true), arguments (of the JVM), tls, client_certificates (it wants
-- them).
local function zookeeper_command(self)
  local command = {"java", "-cp", CLASSES, "-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
    "-Dznode.container.checkIntervalMs=300", "-Dzookeeper.forceSync=no",
    "-Dzookeeper.extendedTypesEnabled=" .. tostring(self.options.extended_types ~= false),
    stdout = self.folder .. "/log", stderr = self.folder .. "/log"}
  for _, word in ipairs(self.options.arguments or {}) do command[#command + 1] = word end
  command[#command + 1] = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
  command[#command + 1] = self.folder .. "/zoo.cfg"
  return command
end

local function zookeeper_config(self, members)
  local lines = {
    "tickTime=" .. (self.options.tick or 200), "dataDir=" .. self.folder .. "/data", "clientPort=" .. self.port,
    "clientPortAddress=127.0.0.1", "maxClientCnxns=0", "4lw.commands.whitelist=*", "admin.enableServer=false",
    "maxSessionTimeout=60000", -- else it would be twenty ticks
    "initLimit=50", "syncLimit=10",
  }
  if self.certificates then
    local pem = self.folder .. "/server-both.pem" -- key and certificate in one file
    util.write(pem, util.read(self.certificates.key) .. util.read(self.certificates.cert))
    for _, line in ipairs{"secureClientPort=" .. self.secure_port, "secureClientPortAddress=127.0.0.1",
      "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory", "ssl.keyStore.location=" .. pem,
      "ssl.trustStore.location=" .. self.certificates.ca, "ssl.hostnameVerification=false",
      "ssl.clientAuth=" .. (self.options.client_certificates and "need" or "none")} do
      lines[#lines + 1] = line
    end
  end
  for i, member in ipairs(members or {}) do
    local port = member ~= self and member.known_port or member.peer_port
    lines[#lines + 1] = ("server.%d=127.0.0.1:%d:%d"):format(i, port, member.election_port)
  end
  util.write(self.folder .. "/zoo.cfg", table.concat(lines, "\n") .. "\n")
end

local function new_zookeeper(options, number)
  local self = setmetatable({options = options, number = number, folder = util.folder()}, ZooKeeper)
  self.port, self.peer_port, self.election_port = native.port(), native.port(), native.port()
  if self.options.tls then
    self.certificates = servers.certificates(self.folder)
    self.secure_port = native.port()
  end
  assert(os.execute("mkdir " .. self.folder .. "/data"))
  util.write(self.folder .. "/data/myid", number .. "\n")
  return self
end

--- Start it (again) without waiting for its health.
function ZooKeeper:launch()
  self.process = assert(native.spawn(zookeeper_command(self)))
end

--- One of the four-letter words: what the server says, "" when it does not.
function ZooKeeper:ask(word)
  return native.exchange(self.port, word, 2) or ""
end

function ZooKeeper:healthy()
  return self.process:listens(self.port) and self:ask("srvr"):find("Mode:", 1, true) ~= nil
end

function ZooKeeper:wait_healthy()
  return wait_healthy(self, "ZooKeeper")
end

--- "leader", "follower" or "standalone".
function ZooKeeper:mode()
  return self:ask("srvr"):match("Mode: (%w+)")
end

--- Forget everything, as after a lost disk. Only while it is down.
function ZooKeeper:wipe()
  assert(os.execute("rm -rf " .. self.folder .. "/data/version-2"))
end

function ZooKeeper:url(rest, user)
  return ("zk://%s127.0.0.1:%d%s"):format(user and user .. "@" or "", self.port, rest or "")
end

--- The same through TLS.
function ZooKeeper:secure_url(rest)
  return ("zks://127.0.0.1:%d%s"):format(self.secure_port, rest or "")
end

ZooKeeper.start, ZooKeeper.kill, ZooKeeper.pause, ZooKeeper.resume, ZooKeeper.stop =
  Etcd.start, Etcd.kill, Etcd.pause, Etcd.resume, Etcd.stop

--- One server.
function servers.zookeeper(options)
  return attempt(function()
    local member = new_zookeeper(options or {}, 1)
    zookeeper_config(member)
    member:launch()
    return {member}
  end)[1]
end

--- Members of one cluster, all healthy. Options: as servers.zookeeper, and between: a function of a member's number and
-- the port at which it leads, that says where the others find it; see servers.cluster.
function servers.zookeeper_cluster(count, options)
  return attempt(function()
    local members = {}
    for i = 1, count do
      members[i] = new_zookeeper(options or {}, i)
      local between = members[i].options.between
      members[i].known_port = between and between(i, members[i].peer_port)
    end
    for _, member in ipairs(members) do
      zookeeper_config(member, members)
      member:launch()
    end
    return members
  end)
end

-- ------------------------------------------------------------------ Consul

local Consul = {}
Consul.__index = Consul

local MASTER_TOKEN = "0f0f0f0f-1111-2222-3333-444444444444"

local function quoted(value)
  if type(value) == "string" then return ('"%s"'):format(value) end
  return tostring(value)
end

local function object(fields)
  local parts = {}
  for name, value in pairs(fields) do
    parts[#parts + 1] = ('"%s": %s'):format(name, type(value) == "table" and object(value) or quoted(value))
  end
  return "{" .. table.concat(parts, ", ") .. "}"
end

-- Sessions may be as short as a second: the suite would take an hour with Consul's own minimum of ten.
local function consul_config(self)
  local options, certificates = self.options, self.certificates
  local config = {session_ttl_min = options.session_ttl_min or "1s", bind_addr = self.address,
    client_addr = "127.0.0.1", node_name = self.name,
    disable_update_check = true, data_dir = self.folder .. "/data", log_level = "warn",
    performance = {raft_multiplier = 1}, limits = {http_max_conns_per_client = options.connections or 200},
    ports = {http = certificates and -1 or self.port, https = certificates and self.port or -1, dns = -1, grpc = -1,
      server = self.server_port, serf_lan = self.serf_port, serf_wan = -1}}
  if certificates then
    config.ca_file, config.cert_file, config.key_file = certificates.ca, certificates.cert, certificates.key
    config.verify_incoming_https = options.client_certificates or false
  end
  if options.acl then
    config.acl = {enabled = true, default_policy = "deny", tokens = {master = MASTER_TOKEN, agent = MASTER_TOKEN}}
  end
  return object(config)
end

local function consul_command(self)
  local log = self.folder .. "/log"
  local command = {servers.consul_program(), "agent", "-config-file", self.folder .. "/config.json", stdout = log,
    stderr = log}
  if self.expect then
    for _, word in ipairs{"-server", "-bootstrap-expect=" .. self.expect} do command[#command + 1] = word end
    for _, other in ipairs(self.others or {}) do
      command[#command + 1] = ("-retry-join=%s:%d"):format(other.address, other.serf_port)
    end
  else
    command[#command + 1] = "-dev"
  end
  for _, word in ipairs(self.options.arguments or {}) do command[#command + 1] = word end
  return command
end

local program

--- Where the program is; scripts/get-consul finds or gets it.
function servers.consul_program()
  if program then return program end
  local text = assert(servers.run{"scripts/get-consul"})
  program = assert(text:match("([^\n]+)\n$"), text)
  return program
end

--- Run the command line on it: its output, or nil and what it said.
function Consul:try_ctl(...)
  local command = {servers.consul_program()}
  for i = 1, select("#", ...) do command[#command + 1] = tostring((select(i, ...))) end
  local scheme = self.certificates and "https" or "http"
  local environment = {("CONSUL_HTTP_ADDR=%s://127.0.0.1:%d"):format(scheme, self.port)}
  if self.certificates then
    environment[#environment + 1] = "CONSUL_CACERT=" .. self.certificates.ca
    environment[#environment + 1] = "CONSUL_CLIENT_CERT=" .. self.certificates.client_cert
    environment[#environment + 1] = "CONSUL_CLIENT_KEY=" .. self.certificates.client_key
  end
  if self.options.acl then environment[#environment + 1] = "CONSUL_HTTP_TOKEN=" .. MASTER_TOKEN end
  return servers.run(command, environment)
end

Consul.ctl = Etcd.ctl

function Consul:launch()
  self.process = assert(native.spawn(consul_command(self)))
end

--- It answers, and there is a leader.
function Consul:healthy()
  return self.process:listens(self.port) and self:try_ctl("kv", "delete", "kv-health") ~= nil
end

Consul.wait_healthy = Etcd.wait_healthy
Consul.start = Etcd.start
Consul.kill = Etcd.kill
Consul.pause = Etcd.pause
Consul.resume = Etcd.resume
Consul.stop = Etcd.stop

--- The URL of this server; `rest` is what follows the port.
function Consul:url(rest)
  return ("%s://127.0.0.1:%d%s"):format(self.certificates and "consuls" or "consul", self.port, rest or "")
end

local function new_consul(options, name)
  local self = setmetatable({options = options, name = name, address = "127.0.0.1", folder = util.folder(),
    what = "consul", token = options.acl and MASTER_TOKEN or nil}, Consul)
  self.port, self.server_port, self.serf_port = native.port(), native.port(), native.port()
  if options.tls then self.certificates = servers.certificates(self.folder) end
  return self
end

local function write_config(self)
  util.write(self.folder .. "/config.json", consul_config(self))
end

--- A server. Options: tls, client_certificates (it wants them), acl (with .token), data (it keeps its data when started
-- again), connections (from one address), session_ttl_min, arguments.
function servers.consul(options)
  return attempt(function()
    local member = new_consul(options or {}, "one")
    if member.options.data then member.expect = 1 end
    write_config(member)
    member:launch()
    return {member}
  end)[1]
end

--- Servers of one Consul cluster, all healthy.
function servers.consul_cluster(count, options)
  return attempt(function()
    local members = {}
    for i = 1, count do members[i] = new_consul(options or {}, "server" .. i) end
    for _, member in ipairs(members) do
      member.expect, member.others = count, members
      write_config(member)
      member:launch()
    end
    return members
  end)
end

return servers
