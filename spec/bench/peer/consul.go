//go:build consul
// +build consul

package main

import (
	"github.com/docker/libkv/store"
	"github.com/docker/libkv/store/consul"
)

func init() {
	consul.Register()
	clients["consul"] = libkvClient(store.CONSUL, store.Config{})
}
