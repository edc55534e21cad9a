---@meta kv
-- Annotations for editors with lua-language-server: what require("kv") gives. Nothing loads this file; the spec
-- spec/unit/meta_spec.lua sees to it that it names every public function, and none that does not exist.
-- luacheck: ignore 212 241

---Why something failed: the third result of every function that fails. `unavailable` was certainly not applied,
---`unknown` may or may not have been.
---@alias kv.code "invalid"|"exists"|"modified"|"is_dir"|"not_dir"|"too_large"|"denied"|"no_space"|"failed"
---|"unavailable"|"timeout"|"unknown"|"unsupported"|"not_held"|"lost"|"held"|"compacted"|"cancelled"|"closed"|"phase"

---A key with what is known of it.
---@class kv.pair
---@field key string canonical, relative to the store's prefix
---@field value any a string, or what the store's codec made of it; absent with `keys_only`
---@field revision integer grows with every change of the key
---@field created integer the revision at which this life of the key began
---@field dir? boolean only a directory: list with `recursive = false`

---@class kv.event
---@field type "put"|"delete"
---@field key string
---@field value? any of a put, unless the watch was opened with `values = false`
---@field revision integer of a delete: one at which the key is known to be gone
---@field created? integer of a put
---@field prev? any with `prev = true`: the value that this watch saw before
---@field initial? boolean it was there when the watch began
---@field error? string the codec could not decode the value

---@class kv.tls
---@field ca? string file of certificates that are trusted; default: the system's
---@field cert? string file of our certificate
---@field key? string file of its key
---@field verify? boolean default true
---@field server_name? string the name that the server's certificate must have; default: the host

---@class kv.codec
---@field encode fun(value: any): string
---@field decode fun(text: string): any

---@class kv.open_options
---@field prefix? string put in front of every key
---@field timeout? number seconds for one operation, retries and reconnecting included; default 5
---@field connect_timeout? number seconds for one attempt to connect; default 2
---@field username? string
---@field password? string
---@field token? string Consul's ACL token
---@field datacenter? string Consul
---@field session_ttl? number seconds; default of locks' ttl, and of keys with keep_alive; default 15
---@field tls? kv.tls
---@field acl? string ZooKeeper
---@field leading_slash? boolean etcd: keys are stored as /prefix/key; default true
---@field consistency? "strong"|"fast" default "strong"
---@field codec? "json"|"none"|kv.codec what values are; default: byte strings
---@field portable? boolean refuse what would fail on some other backend; default false
---@field sync? "full"|"none" local: "none" gives up durability against power loss; default "full"
---@field map_size? integer local: the most that the store may grow to, in bytes
---@field socket_dir? string OpenResty

---@class kv.timeout_options
---@field timeout? number seconds for the whole call; default: the store's

---@class kv.read_options: kv.timeout_options
---@field consistency? "strong"|"fast" "fast" may read what a member that is behind knows; default: the store's

---@class kv.write_options: kv.timeout_options
---@field ttl? number seconds to live
---@field keep_alive? boolean the key lives while this store is open and its process lives
---@field lease? kv.lease the key lives as long as the lease
---@field dir? boolean make a directory (etcd v2; elsewhere ignored)

---@class kv.list_options: kv.read_options
---@field recursive? boolean everything below (default true), or direct children only
---@field keys_only? boolean leave values out
---@field limit? integer at most so many
---@field after? string only keys behind this one

---@class kv.watch_options
---@field initial? boolean begin with what is there now; default true
---@field after? integer a revision to resume behind; no initial pairs
---@field values? boolean default true; false gives keys and revisions only
---@field prev? boolean give the value before, at the cost of a copy; default false

---@class kv.mirror_options
---@field prev? boolean give on_change the value before; default false

---What store:supports() knows of.
---@alias kv.capability "txn"|"ttl"|"lock"|"semaphore"|"election"|"lease"|"watch"|"resume"|"every_version"|"paging"
---| "nested"
---| "interop"
---| "interop_order"

---@class kv.lock_options
---@field ttl? number seconds; default: the store's session_ttl
---@field value? string shown to others
---@field timeout? number seconds that acquire() waits; default: for ever
---Whose lock to share: the name is then the backend's own, without the store's prefix (docs/locks.md); default false
---@field interop? "etcd"|"consul"|"kazoo"|"curator"|false

---@class kv.semaphore_options
---@field ttl? number seconds; default: the store's session_ttl
---@field value? string shown to others
---@field timeout? number seconds that acquire() waits; default: for ever

---@class kv.election_options
---@field ttl? number seconds; default: the store's session_ttl
---@field timeout? number seconds that campaign() waits; default: for ever

---@class kv.txn_put_options
---@field ttl? number seconds to live
---@field keep_alive? boolean
---@field lease? kv.lease

---@class kv.info
---@field backend string
---@field server_version string "" until a server told it
---@field endpoint string host:port in use or the last one tried; a folder for local
---@field connected boolean
---@field capabilities string[]

---@class kv.stats
---@field operations integer
---@field in_flight integer
---@field retries integer
---@field connects integer
---@field reconnects integer
---@field watches integer
---@field events integer
---@field resyncs integer
---@field skipped integer
---@field bytes_sent integer
---@field bytes_received integer
---@field failures table<kv.code, integer>

---@class kv.loop hooks of an event loop that is not known to the module
---@field current? fun(): boolean may the calling coroutine wait by wait()?
---@field wait? fun(waiter: table, seconds?: number) suspend it until wake(waiter), or the time is up; may return early
---@field wake? fun(waiter: table) let it go on; called inside of kv.step() and of any other call

-- ------------------------------------------------------------------ the module

---@class kv
---@field _VERSION string "kv MAJOR.MINOR.PATCH"
local kv = {}

---Open a store. No I/O: the first operation connects.
---@param url? string etcd://, etcds://, local:PATH, local:; default: $KV_URL, else "local:"
---@param opts? kv.open_options
---@return kv.store? store
---@return string? message
---@return kv.code? code "invalid" (URL or option), "unsupported" (no such backend here)
function kv.open(url, opts) end

---The backends that can be had here.
---@return string[]
function kv.backends() end

---Run a function as a task, and everything that it spawns, until all is done. Raises what the function raised, or what
---a task raised that nobody joins, and says so when all tasks wait for each other.
---@param fn function
---@param ... any its arguments
---@return any ... what it returned
function kv.run(fn, ...) end

---Start a function as a task beside the caller's. In OpenResty it gets a timer of its own: it outlives the request, and
---can be started in phases that cannot wait.
---@param fn function
---@param ... any its arguments
---@return kv.task
function kv.spawn(fn, ...) end

---Wait; in a task the others go on.
---@param seconds number
---@return true?
---@return string? message
---@return kv.code? code "cancelled"
function kv.sleep(seconds) end

---As pcall, and what is called may wait: on Lua 5.1, too.
---@param fn function
---@param ... any
---@return boolean ok
---@return any ... what it returned, or what it raised
function kv.pcall(fn, ...) end

---Choose the event loop that waits; nil for none. Without this OpenResty, and a loop that the caller runs in, are
---recognised. See docs/event-loops.md for loops of your own.
---@param loop? "openresty"|"cqueues"|"luv"|"copas"|kv.loop
---@return true?
---@return string? message
---@return kv.code? code "unsupported"
function kv.use(loop) end

---One descriptor that is readable when kv.step() has something to do. Poll it; never read or close it.
---@return integer? descriptor
---@return string? message
---@return kv.code? code
function kv.fd() end

---Do what there is to do, without waiting. Raises what a task raised that nobody joins.
---@return number? seconds until it wants to be called again at the latest
function kv.step() end

-- ------------------------------------------------------------------ tasks

---@class kv.task
local Task = {}

---Wait for the end of the task. Raises what the task raised, with its traceback.
---@param timeout? number seconds; default: as long as it takes
---@return any ... what the task returned; or nil, message, code of the wait: "timeout", "cancelled"
function Task:join(timeout) end

---Make what the task waits for answer "cancelled"; or what it waits for next.
---@return boolean there whether the task had not ended yet
function Task:cancel() end

-- ------------------------------------------------------------------ stores

---@class kv.store
local Store = {}

---Read a key. A key that is not there is a bare nil.
---@param key string
---@param opts? kv.read_options
---@return kv.pair? pair
---@return string? message
---@return kv.code? code
function Store:get(key, opts) end

---Read many keys, pipelined.
---@param keys string[]
---@param opts? kv.read_options
---@return table<string, kv.pair>? pairs by key; what is not there is absent
---@return string? message
---@return kv.code? code
function Store:get_many(keys, opts) end

---Write a key. Without ttl, keep_alive and lease it is permanent, whatever it was before.
---@param key string
---@param value any a string, or what the store's codec takes
---@param opts? kv.write_options
---@return kv.pair? pair
---@return string? message
---@return kv.code? code
function Store:put(key, value, opts) end

---Write many keys, pipelined; not atomic.
---@param values table<string, any>
---@param opts? kv.write_options timeout is for all of them
---@return true?
---@return string? message names a key that failed
---@return kv.code? code
function Store:put_many(values, opts) end

---Is the key there?
---@param key string
---@param opts? kv.read_options
---@return boolean? there
---@return string? message
---@return kv.code? code
function Store:exists(key, opts) end

---Remove a key.
---@param key string
---@param opts? kv.timeout_options
---@return boolean? there whether it was there
---@return string? message
---@return kv.code? code
function Store:delete(key, opts) end

---The pairs below a directory, sorted by the bytes of their keys.
---@param dir string "" for all
---@param opts? kv.list_options
---@return kv.pair[]? pairs
---@return integer|string|nil revision of the listing, or the message
---@return kv.code? code
function Store:list(dir, opts) end

---The pairs below a directory, page by page. The iterator raises what goes wrong.
---@param dir string "" for all
---@param opts? kv.list_options limit is that of a page
---@return (fun(): kv.pair[]?)? iterator
---@return string? message
---@return kv.code? code
function Store:pages(dir, opts) end

---Remove everything below a directory, and its own key.
---@param dir string "" for all
---@param opts? kv.timeout_options
---@return true?
---@return string? message
---@return kv.code? code
function Store:delete_tree(dir, opts) end

---Write a key only where it is as expected.
---@param key string
---@param value any
---@param previous kv.pair|integer|nil what must be there; nil: nothing may be there
---@param opts? kv.write_options
---@return kv.pair? pair
---@return string? message
---@return kv.code? code "exists", "modified"
function Store:atomic_put(key, value, previous, opts) end

---Remove a key only where it is as expected.
---@param key string
---@param previous kv.pair|integer
---@param opts? kv.timeout_options
---@return true?
---@return string? message
---@return kv.code? code "modified", also when it is gone
function Store:atomic_delete(key, previous, opts) end

---Read, compute, compare and set; again after a conflict.
---@param key string
---@param fn fun(value: any, pair: kv.pair?): any the new value; nil leaves the key alone
---@param opts? kv.write_options timeout is for all rounds: none begins later
---@return kv.pair? pair that is there now
---@return string? message
---@return kv.code? code
function Store:update(key, fn, opts) end

---Build a transaction.
---@return kv.txn
function Store:txn() end

---One heartbeat for many keys.
---@param ttl number seconds
---@param opts? kv.timeout_options
---@return kv.lease? lease
---@return string? message
---@return kv.code? code
function Store:lease(ttl, opts) end

---Watch a key, which need not exist. The watch is an iterator of events.
---@param key string
---@param opts? kv.watch_options
---@return kv.watch? watch
---@return string? message
---@return kv.code? code
---@return kv.watch? closing for 5.4's for loop
function Store:watch(key, opts) end

---Watch everything below a directory, which need not exist.
---@param dir string "" for all
---@param opts? kv.watch_options
---@return kv.watch? watch
---@return string? message
---@return kv.code? code
---@return kv.watch? closing for 5.4's for loop
function Store:watch_tree(dir, opts) end

---Keep a live copy of a directory in memory.
---@param dir string "" for all
---@param opts? kv.mirror_options
---@return kv.mirror? mirror
---@return string? message
---@return kv.code? code
function Store:mirror(dir, opts) end

---A lock, not yet held.
---@param name string
---@param opts? kv.lock_options
---@return kv.lock? lock
---@return string? message
---@return kv.code? code
function Store:lock(name, opts) end

---Call fn(lock, ...) while a lock is held, and let go whatever happens.
---@param name string
---@param opts? kv.lock_options
---@param fn fun(lock: kv.lock, ...: any): ...
---@param ... any
---@return any ... what it returned; or nil, message, code: not obtained (it did not run), or "lost" before its end
function Store:with_lock(name, opts, fn, ...) end

---An election, in which this handle takes no part yet. Election "a" and lock "a" are two things.
---@param name string
---@param opts? kv.election_options
---@return kv.election? election
---@return string? message
---@return kv.code? code "unsupported" where there are no transactions
function Store:election(name, opts) end

---A semaphore, not yet held: a lock with `limit` holders, in a name space of its own.
---@param name string
---@param limit integer 1 to 1000, the same for all who use the name: acquire() is "invalid" behind one who says another
---@param opts? kv.semaphore_options
---@return kv.semaphore? semaphore
---@return string? message
---@return kv.code? code
function Store:semaphore(name, limit, opts) end

---Reach the server.
---@param timeout? number seconds
---@return true?
---@return string? message
---@return kv.code? code
function Store:ping(timeout) end

---What is known of the store. No I/O.
---@return kv.info
function Store:info() end

---Can this backend do it?
---@param name kv.capability|string
---@return boolean
function Store:supports(name) end

---Counters since the store was opened; views share them.
---@return kv.stats
function Store:stats() end

---A view below a prefix. It shares the connection, and is closed on its own.
---@param prefix string
---@return kv.store? store
---@return string? message
---@return kv.code? code
function Store:sub(prefix) end

---Close it: what waits is answered, locks and leases are given back. Ends in bounded time; can be called again.
---@return true
function Store:close() end

-- ------------------------------------------------------------------ watches

---@class kv.watch
---@overload fun(): kv.event?
local Watch = {}

---The next event. After close() a bare nil; "timeout" and "cancelled" leave the watch usable, any other code ends it.
---@param timeout? number seconds; default: as long as it takes
---@return kv.event? event
---@return string? message
---@return kv.code? code
function Watch:next(timeout) end

---Has the initial state arrived, read or not?
---@return boolean
function Watch:synced() end

---Wait until the initial state has arrived.
---@param timeout? number seconds; default: as long as it takes
---@return true?
---@return string? message
---@return kv.code? code
function Watch:wait_synced(timeout) end

---Is the watch in step with a server now?
---@return boolean
function Watch:connected() end

---Everything up to this revision was taken by next(); 0 before the initial state.
---@return integer
function Watch:revision() end

---End the watch. Can be called again.
---@return true
function Watch:close() end

-- ------------------------------------------------------------------ mirrors

---@class kv.mirror
local Mirror = {}

---The value of a key, as of the last news. Never waits.
---@param key string as the store's
---@return any value
function Mirror:get(key) end

---As get, with its revisions.
---@param key string
---@return kv.pair? pair
function Mirror:pair(key) end

---for key, value in mirror:pairs() do: of the moment of the call, in no order.
---@return fun(t: table, key?: string): string?, any
---@return table
---@return nil
function Mirror:pairs() end

---How many keys there are.
---@return integer
function Mirror:size() end

---Has the whole directory arrived?
---@return boolean
function Mirror:ready() end

---Wait until the whole directory has arrived.
---@param timeout? number seconds; default: as long as it takes
---@return true?
---@return string? message
---@return kv.code? code
function Mirror:wait_ready(timeout) end

---Seconds since the mirror was last known to be current; math.huge before the first time.
---@return number
function Mirror:age() end

---Everything up to this revision is in the mirror; 0 before the first state.
---@return integer
function Mirror:revision() end

---Have a function called after each change. It must not wait. The store keeps the mirror from then on.
---@param fn fun(event: kv.event)
---@return kv.mirror
function Mirror:on_change(fn) end

---Stop following. What the mirror has stays readable. Can be called again.
---@return true
function Mirror:close() end

-- ------------------------------------------------------------------ locks

---@class kv.lock
---@field token? integer fencing token of the present or last hold: larger for every later holder of the name
---@field ttl number seconds that the server granted; before the first hold, what will be asked for
local Lock = {}

---Get in line, and wait until it is ours.
---@param timeout? number seconds; default: the lock's own, else for ever; 0 tries once
---@return kv.lock? lock
---@return string? message
---@return kv.code? code "timeout"; "held": this handle has it already
function Lock:acquire(timeout) end

---Let go. A successor's lock is never touched.
---@param timeout? number seconds for the answer; default: the store's
---@return true?
---@return string? message
---@return kv.code? code "not_held", "lost"
function Lock:release(timeout) end

---Is it ours, by the local deadline? No I/O.
---@return boolean
function Lock:held() end

---"suspended": the renewal fails, the deadline lies ahead.
---@return "free"|"waiting"|"held"|"suspended"|"lost"
function Lock:state() end

---Wait for the loss of the lock.
---@param timeout? number seconds; default: as long as it takes
---@return string? reason
---@return string? message
---@return kv.code? code "timeout": still held; "not_held", also after one's own release
function Lock:wait_lost(timeout) end

---Who holds it now? nil when nobody does.
---@param timeout? number seconds; default: the store's
---@return {value: string, token: integer}? holder
---@return string? message
---@return kv.code? code
function Lock:holder(timeout) end

---All methods of a lock; holder() is the one who has held longest.
---@class kv.semaphore: kv.lock
---@field limit integer how many hold it at most

---A lock that everybody can see: who holds it is the leader.
---@class kv.election
---@field token? integer fencing token of the present or last time it led: larger for every later leader
---@field ttl number seconds that the server granted; before the first time, what will be asked for
local Election = {}

---Get in line to lead with this value, and wait until it does: then it is what everybody reads.
---@param value string
---@param timeout? number seconds; default: the election's own, else for ever; 0 tries once
---@return kv.election? election
---@return string? message
---@return kv.code? code "timeout"; "held": this handle leads already
function Election:campaign(value, timeout) end

---Let the next candidate lead. Nobody reads our value any more before he can.
---@param timeout? number seconds for the answer; default: the store's
---@return true?
---@return string? message
---@return kv.code? code "not_held", "lost"
function Election:resign(timeout) end

---Does this handle lead, by the local deadline? No I/O.
---@return boolean
function Election:is_leader() end

---"suspended": the renewal fails, the deadline lies ahead.
---@return "free"|"waiting"|"held"|"suspended"|"lost"
function Election:state() end

---Who leads now? nil when nobody does.
---@param timeout? number seconds; default: the store's
---@return {value: string, token: integer}? leader
---@return string? message
---@return kv.code? code
function Election:leader(timeout) end

---Watch who leads. Events: {type="put", key=, value=, token=, revision=, initial=} for each leader, the present one
---first, and {type="delete", key=, revision=} when nobody leads any more.
---@return kv.watch? watch
---@return string? message
---@return kv.code? code
function Election:observe() end

---Wait until it does not lead any more.
---@param timeout? number seconds; default: as long as it takes
---@return string? reason
---@return string? message
---@return kv.code? code "timeout": it still leads; "not_held", also after its own resigning
function Election:wait_lost(timeout) end

---Resign if it leads. Can be called again.
---@return true?
---@return string? message
---@return kv.code? code
function Election:close() end

-- ------------------------------------------------------------------ leases

---@class kv.lease
---@field ttl number seconds that the server granted
local Lease = {}

---Is it alive, by the local deadline? No I/O.
---@return boolean
function Lease:alive() end

---Wait until the lease has ended.
---@param timeout? number seconds; default: as long as it takes
---@return string? reason
---@return string? message
---@return kv.code? code
function Lease:wait_lost(timeout) end

---Give it back: its keys go.
---@param timeout? number seconds; default: the store's
---@return true?
---@return string? message
---@return kv.code? code
function Lease:revoke(timeout) end

---As revoke(), and can be called again.
---@return true?
---@return string? message
---@return kv.code? code
function Lease:close() end

-- ------------------------------------------------------------------ transactions

---@class kv.txn
local Txn = {}

---Commit only if the key is still at this revision.
---@param key string
---@param previous kv.pair|integer
---@return kv.txn
function Txn:check(key, previous) end

---Commit only if the key is not there.
---@param key string
---@return kv.txn
function Txn:check_absent(key) end

---Commit only while this lock is held with its present token.
---@param lock kv.lock|kv.semaphore|kv.election
---@return kv.txn
function Txn:guard(lock) end

---Write a key.
---@param key string
---@param value any
---@param opts? kv.txn_put_options
---@return kv.txn
function Txn:put(key, value, opts) end

---Remove a key; that it is not there is fine.
---@param key string
---@return kv.txn
function Txn:delete(key) end

---Do it, all or nothing. What was wrong with a part is told here.
---@param opts? kv.timeout_options
---@return {revision: integer, pairs: table<string, kv.pair>}? result pairs of what was put, by key
---@return string? message
---@return kv.code? code "modified": a check failed; "not_held": a guard's lock
function Txn:commit(opts) end

return kv
