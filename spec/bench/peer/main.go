// The peers of the benchmark in Go: etcd's own client with its concurrency package, and libkv with each of its
// backends. They do what work.lua does, and print numbers on one line as it does.
//
//	peer CLIENT ENDPOINT load OPERATION IN_FLIGHT SECONDS KEY SIZE  operations/s, CPU microseconds each
//	peer CLIENT ENDPOINT lock SECONDS NAME                          lock + unlock pairs/s, CPU microseconds each
//	peer CLIENT ENDPOINT handover WAITERS SECONDS NAME              changes of holder/s, acquisitions/s, overlaps
//	peer CLIENT ENDPOINT latency SECONDS KEY SIZE                   put -> event in microseconds: p50, p99; lost
//	peer CLIENT ENDPOINT tree DIRECTORY COUNT                       milliseconds: a listing, a watch's first delivery
//	peer clients                                                    the clients that are there, one a line
//
// OPERATION is get, put, or gets and puts (1,000 keys in turn). CLIENT is clientv3, etcd2, zookeeper, bolt, and
// consul when built with -tags consul (libkv's Consul part is in Debian 11 only: get-consul-api). The first
// fifth of a measured time warms up and is not counted. Built with Debian's sources: GO111MODULE=off
// GOPATH=/usr/share/gocode go build.
package main

import (
	"fmt"
	"io/ioutil"
	"log"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A peer's ways to do what is measured.
type peer interface {
	put(key, value string) error
	get(key string) error
	// watch sends once for what is there now, then once for each change.
	watch(key string, events chan<- struct{}) error
	list(directory string) (int, error)
	// watchTree returns once the first state was delivered, with its number of keys.
	watchTree(directory string) (int, error)
	// lock waits until it holds; each call is another owner's.
	lock(owner int, name string) (unlock func() error, err error)
}

var clients = map[string]func(endpoint string) (peer, error){}

const lost = time.Second // an event that has not come by then will not

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "peer: %s: %v\n", what, err)
	os.Exit(1)
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fail("getrusage", err)
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(usage.Utime) + seconds(usage.Stime)
}

// work repeats an operation in so many goroutines for that long; returns rate and CPU of what was counted.
func work(inFlight int, seconds float64, operation func(worker int) error) (float64, float64) {
	var done uint64
	var stop int32
	var workers sync.WaitGroup
	for i := 0; i < inFlight; i++ {
		workers.Add(1)
		go func(worker int) {
			defer workers.Done()
			for atomic.LoadInt32(&stop) == 0 {
				if err := operation(worker); err != nil {
					fail("operation", err)
				}
				atomic.AddUint64(&done, 1)
			}
		}(i)
	}
	total := time.Duration(seconds * float64(time.Second))
	time.Sleep(total / 5)
	begin, cpu, count := time.Now(), cpuSeconds(), atomic.LoadUint64(&done)
	time.Sleep(total - total/5)
	elapsed := time.Since(begin).Seconds()
	cpu, count = cpuSeconds()-cpu, atomic.LoadUint64(&done)-count
	atomic.StoreInt32(&stop, 1)
	workers.Wait()
	if count == 0 {
		fail("work", fmt.Errorf("nothing was done in %.1f s", elapsed))
	}
	return float64(count) / elapsed, cpu / float64(count) * 1e6
}

func load(p peer, operation string, inFlight int, seconds float64, key string, size int) {
	value := strings.Repeat("x", size)
	var turn uint64
	next := func() string { return fmt.Sprintf("%s/%d", key, atomic.AddUint64(&turn, 1)%1000) }
	prepare := func(name string) {
		if err := p.put(name, value); err != nil {
			fail("put", err)
		}
	}
	if operation == "get" {
		prepare(key)
	}
	for i := 0; operation == "gets" && i < 1000; i++ {
		prepare(next())
	}
	operations := map[string]func(int) error{
		"get":  func(int) error { return p.get(key) },
		"put":  func(int) error { return p.put(key, value) },
		"gets": func(int) error { return p.get(next()) },
		"puts": func(int) error { return p.put(next(), value) },
	}
	rate, cpu := work(inFlight, seconds, operations[operation])
	fmt.Printf("%.1f %.2f\n", rate, cpu)
}

func lock(p peer, seconds float64, name string) {
	rate, cpu := work(1, seconds, func(int) error {
		unlock, err := p.lock(0, name)
		if err != nil {
			return err
		}
		return unlock()
	})
	fmt.Printf("%.1f %.2f\n", rate, cpu)
}

// Waiters that all want one lock, each letting go as soon as it has it. It ends without waiting for them: a
// peer that crawls would take long, and its lock has a name of this process.
func handover(p peer, waiters int, seconds float64, name string) {
	name = fmt.Sprintf("%s-%d", name, os.Getpid())
	var changes, acquired, overlaps, inside, holder int64
	for i := 1; i <= waiters; i++ {
		go func(owner int) {
			for {
				unlock, err := p.lock(owner, name)
				if err != nil {
					fail("lock", err)
				}
				if atomic.AddInt64(&inside, 1) != 1 {
					atomic.AddInt64(&overlaps, 1)
				}
				if atomic.SwapInt64(&holder, int64(owner)) != int64(owner) {
					atomic.AddInt64(&changes, 1)
				}
				atomic.AddInt64(&acquired, 1)
				atomic.AddInt64(&inside, -1)
				if err := unlock(); err != nil {
					fail("unlock", err)
				}
			}
		}(i)
	}
	total := time.Duration(seconds * float64(time.Second))
	time.Sleep(total / 5)
	begin, before, beforeAll := time.Now(), atomic.LoadInt64(&changes), atomic.LoadInt64(&acquired)
	time.Sleep(total - total/5)
	elapsed := time.Since(begin).Seconds()
	fmt.Printf("%.2f %.2f %d\n", float64(atomic.LoadInt64(&changes)-before)/elapsed,
		float64(atomic.LoadInt64(&acquired)-beforeAll)/elapsed, atomic.LoadInt64(&overlaps))
}

// The pause lets a peer that has to arm its watch again do so: what is measured is the way of an event, not how
// many are lost.
func latency(p peer, seconds float64, key string, size int) {
	filler, turn := strings.Repeat("x", size-8), 0
	// A new value each time: Consul does not take a write of the same value for a change.
	put := func() {
		turn++
		if err := p.put(key, fmt.Sprintf("%08d%s", turn, filler)); err != nil {
			fail("put", err)
		}
	}
	put()
	events := make(chan struct{}, 1)
	if err := p.watch(key, events); err != nil {
		fail("watch", err)
	}
	select {
	case <-events:
	case <-time.After(5 * time.Second):
		fail("watch", fmt.Errorf("no first value"))
	}
	var taken []float64
	missing := 0
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for time.Now().Before(end) || len(taken) == 0 {
		time.Sleep(time.Millisecond)
		begin := time.Now()
		arrived := make(chan time.Duration, 1)
		go func() {
			select {
			case <-events:
				arrived <- time.Since(begin)
			case <-time.After(lost):
				arrived <- -1
			}
		}()
		put()
		if took := <-arrived; took < 0 {
			missing++
		} else {
			taken = append(taken, float64(took)/float64(time.Microsecond))
		}
	}
	taken = taken[len(taken)/5:]
	sort.Float64s(taken)
	fmt.Printf("%.1f %.1f %d\n", taken[len(taken)/2], taken[len(taken)*99/100], missing)
}

func tree(p peer, directory string, count int) {
	once := func(run func(string) (int, error)) float64 {
		begin := time.Now()
		found, err := run(directory)
		if err == nil && found != count {
			err = fmt.Errorf("%d keys", found)
		}
		if err != nil {
			fail("tree", err)
		}
		return float64(time.Since(begin)) / float64(time.Millisecond)
	}
	// What takes long is not done as often.
	repeated := func(run func(string) (int, error)) float64 {
		var taken []float64
		for begin := time.Now(); len(taken) == 0 || len(taken) < 5 && time.Since(begin) < time.Second; {
			taken = append(taken, once(run))
		}
		sort.Float64s(taken)
		return taken[len(taken)/2]
	}
	once(p.list) // connects
	fmt.Printf("%.2f %.2f\n", repeated(p.list), repeated(p.watchTree))
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "clients" {
		for name := range clients {
			fmt.Println(name)
		}
		return
	}
	words := map[string]int{"load": 5, "lock": 2, "handover": 3, "latency": 3, "tree": 2}
	if len(os.Args) < 4 || clients[os.Args[1]] == nil || len(os.Args)-4 != words[os.Args[3]] || words[os.Args[3]] == 0 {
		fmt.Fprintln(os.Stderr, "usage: peer CLIENT ENDPOINT load|lock|handover|latency|tree ... (see main.go)")
		os.Exit(2)
	}
	log.SetOutput(ioutil.Discard) // ZooKeeper's Go client tells of its connection
	arguments := os.Args[4:]
	number := func(i int) float64 {
		value, err := strconv.ParseFloat(arguments[i], 64)
		if err != nil {
			fail(arguments[i], err)
		}
		return value
	}
	p, err := clients[os.Args[1]](os.Args[2])
	if err != nil {
		fail("connect", err)
	}
	switch os.Args[3] {
	case "load":
		load(p, arguments[0], int(number(1)), number(2), arguments[3], int(number(4)))
	case "lock":
		lock(p, number(0), arguments[1])
	case "handover":
		handover(p, int(number(0)), number(1), arguments[2])
	case "latency":
		latency(p, number(0), arguments[1], int(number(2)))
	case "tree":
		tree(p, arguments[0], int(number(1)))
	}
}
