package main

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

// etcd's own Go client. Keys are given as they are stored.
type etcd3 struct {
	client   *clientv3.Client
	mutex    sync.Mutex
	sessions map[int]*concurrency.Session
}

func init() {
	clients["clientv3"] = func(endpoint string) (peer, error) {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
		return &etcd3{client: client, sessions: map[int]*concurrency.Session{}}, err
	}
}

func (e *etcd3) put(key, value string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := e.client.Put(ctx, key, value)
	return err
}

func (e *etcd3) get(key string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := e.client.Get(ctx, key)
	return err
}

func (e *etcd3) watch(key string, events chan<- struct{}) error {
	now, err := e.client.Get(context.Background(), key)
	if err != nil {
		return err
	}
	changes := e.client.Watch(context.Background(), key, clientv3.WithRev(now.Header.Revision+1))
	go func() {
		events <- struct{}{}
		for answer := range changes {
			for range answer.Events {
				events <- struct{}{}
			}
		}
	}()
	return nil
}

func (e *etcd3) list(directory string) (int, error) {
	found, err := e.client.Get(context.Background(), directory+"/", clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	return len(found.Kvs), nil
}

func (e *etcd3) watchTree(directory string) (int, error) {
	found, err := e.client.Get(context.Background(), directory+"/", clientv3.WithPrefix())
	if err != nil {
		return 0, err
	}
	changes := e.client.Watch(context.Background(), directory+"/", clientv3.WithPrefix(), clientv3.WithCreatedNotify(),
		clientv3.WithRev(found.Header.Revision+1))
	created := <-changes
	return len(found.Kvs), created.Err()
}

// One session, and so one lease, for each owner: a mutex belongs to its session.
func (e *etcd3) session(owner int) (*concurrency.Session, error) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	if e.sessions[owner] == nil {
		session, err := concurrency.NewSession(e.client, concurrency.WithTTL(15))
		if err != nil {
			return nil, err
		}
		e.sessions[owner] = session
	}
	return e.sessions[owner], nil
}

func (e *etcd3) lock(owner int, name string) (func() error, error) {
	session, err := e.session(owner)
	if err != nil {
		return nil, err
	}
	mutex := concurrency.NewMutex(session, name)
	if err = mutex.Lock(context.Background()); err != nil {
		return nil, err
	}
	return func() error { return mutex.Unlock(context.Background()) }, nil
}
