package main

import (
	"fmt"
	"time"

	"github.com/docker/libkv"
	"github.com/docker/libkv/store"
	"github.com/docker/libkv/store/boltdb"
	"github.com/docker/libkv/store/etcd"
	"github.com/docker/libkv/store/zookeeper"
)

// libkv, used as its documentation shows.
type viaLibkv struct {
	store store.Store
}

func libkvClient(backend store.Backend, config store.Config) func(string) (peer, error) {
	return func(endpoint string) (peer, error) {
		opened, err := libkv.NewStore(backend, []string{endpoint}, &config)
		return &viaLibkv{opened}, err
	}
}

func init() {
	etcd.Register()
	zookeeper.Register()
	boltdb.Register()
	clients["etcd2"] = libkvClient(store.ETCD, store.Config{})
	clients["zookeeper"] = libkvClient(store.ZK, store.Config{})
	// Opening the file again for each operation, which is its default, would be no measure of the store.
	clients["bolt"] = libkvClient(store.BOLTDB, store.Config{Bucket: "bench", PersistConnection: true})
}

func (l *viaLibkv) put(key, value string) error {
	return l.store.Put(key, []byte(value), nil)
}

func (l *viaLibkv) get(key string) error {
	_, err := l.store.Get(key)
	return err
}

func (l *viaLibkv) watch(key string, events chan<- struct{}) error {
	changes, err := l.store.Watch(key, nil)
	if err != nil {
		return err
	}
	go func() {
		for range changes {
			events <- struct{}{}
		}
	}()
	return nil
}

func (l *viaLibkv) list(directory string) (int, error) {
	pairs, err := l.store.List(directory)
	return len(pairs), err
}

func (l *viaLibkv) watchTree(directory string) (int, error) {
	changes, err := l.store.WatchTree(directory, nil)
	if err != nil {
		return 0, err
	}
	pairs, ok := <-changes
	if !ok {
		return 0, fmt.Errorf("the watch ended")
	}
	return len(pairs), nil
}

// Without a channel to stop the renewal, which is the faster way on Consul: with one, libkv ends the session at
// each unlock, the next owner meets the lock-delay, and Consul's api then waits for five seconds. The sessions
// end with this process.
func (l *viaLibkv) lock(owner int, name string) (func() error, error) {
	locker, err := l.store.NewLock(name, &store.LockOptions{TTL: 20 * time.Second})
	if err != nil {
		return nil, err
	}
	if _, err = locker.Lock(nil); err != nil {
		return nil, err
	}
	return locker.Unlock, nil
}
