package main

import (
	"net/http"
	"sync"
	"time"
)

const (
	idleAfter = 3 * time.Second
	idleEvery = 15 * time.Second
)

// whenIdle serves as next does, and calls f once nothing has been asked for
// idleAfter, for the first time after the start. Nothing polls: an idle engine has
// no timer running. A client that asks again and again costs a call every idleEvery
// at most. It is for [debug.FreeOSMemory], which gives back to the kernel what a
// burst of requests has used.
func whenIdle(next http.Handler, f func()) http.Handler {
	var (
		mu    sync.Mutex
		timer *time.Timer
		last  time.Time
	)
	idle := func() {
		mu.Lock()
		defer mu.Unlock()
		if wait := idleEvery - time.Since(last); wait > 0 {
			timer.Reset(wait)
			return
		}
		f()
		last = time.Now()
	}
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(idleAfter, idle)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer timer.Reset(idleAfter)
		next.ServeHTTP(w, r)
	})
}
