// The peer for the etcd part of the benchmark: etcd's own Go client doing the same puts and gets on one key.
//
//	clientv3 ENDPOINT put|get IN_FLIGHT SECONDS KEY VALUE_SIZE
//
// Prints "operations-per-second cpu-microseconds-per-operation". The first fifth of the time warms up and is not counted.
// Built with Debian's sources: GO111MODULE=off GOPATH=/usr/share/gocode go build.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
)

func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "clientv3: %s: %v\n", what, err)
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

func main() {
	if len(os.Args) != 7 {
		fmt.Fprintln(os.Stderr, "usage: clientv3 ENDPOINT put|get IN_FLIGHT SECONDS KEY VALUE_SIZE")
		os.Exit(2)
	}
	inFlight, err := strconv.Atoi(os.Args[3])
	if err != nil {
		fail("IN_FLIGHT", err)
	}
	seconds, err := strconv.ParseFloat(os.Args[4], 64)
	if err != nil {
		fail("SECONDS", err)
	}
	size, err := strconv.Atoi(os.Args[6])
	if err != nil {
		fail("VALUE_SIZE", err)
	}
	key, value := os.Args[5], strings.Repeat("x", size)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}, DialTimeout: 5 * time.Second})
	if err != nil {
		fail("connect", err)
	}
	if _, err = client.Put(context.Background(), key, value); err != nil {
		fail("put", err)
	}
	operation := func(ctx context.Context) error { _, err := client.Put(ctx, key, value); return err }
	if os.Args[2] == "get" {
		operation = func(ctx context.Context) error { _, err := client.Get(ctx, key); return err }
	}

	var done uint64
	var stop int32
	var workers sync.WaitGroup
	for i := 0; i < inFlight; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for atomic.LoadInt32(&stop) == 0 {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				err := operation(ctx)
				cancel()
				if err != nil {
					fail(os.Args[2], err)
				}
				atomic.AddUint64(&done, 1)
			}
		}()
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
		fail(os.Args[2], fmt.Errorf("nothing was done in %.1f s", elapsed))
	}
	fmt.Printf("%.1f %.2f\n", float64(count)/elapsed, cpu/float64(count)*1e6)
}
