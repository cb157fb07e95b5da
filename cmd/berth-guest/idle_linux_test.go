package main

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const soon, late = 3 * time.Second, 30 * time.Second
		var first, second, stopped atomic.Int32 // the calls come from timers' goroutines
		i := newIdler(stage{after: soon, every: 15 * time.Second, f: func(func() bool) { first.Add(1) }},
			stage{after: late, every: time.Minute, f: func(still func() bool) {
				second.Add(1)
				for range 10 {
					if time.Sleep(time.Second); !still() {
						stopped.Add(1)
						return
					}
				}
			}})
		h := i.serve(http.NotFoundHandler())
		expect := func(when string, wantFirst, wantSecond int32) {
			t.Helper()
			synctest.Wait()
			if first, second := first.Load(), second.Load(); first != wantFirst || second != wantSecond {
				t.Errorf("%s: %d and %d calls, want %d and %d", when, first, second, wantFirst, wantSecond)
			}
		}
		ask := func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/_ping", nil)) }
		time.Sleep(soon)
		expect("after the start", 1, 0)
		time.Sleep(late - soon)
		expect("idle for longer", 1, 1)
		time.Sleep(time.Hour)
		expect("idle", 1, 1)
		ask()
		expect("asked", 1, 1)
		time.Sleep(soon)
		expect("idle again", 2, 1)
		time.Sleep(late - soon + 2*time.Second)
		expect("idle again for longer", 2, 2)
		ask() // while the second is at work
		time.Sleep(soon + 10*time.Second)
		expect("asked meanwhile", 3, 2)
		if n := stopped.Load(); n != 1 {
			t.Errorf("%d calls were told of the use, want 1", n)
		}
		ask()
		time.Sleep(late)
		expect("soon after the second", 4, 2)
		time.Sleep(30 * time.Second)
		expect("a minute after the second", 4, 3)
		for range 60 { // two minutes
			ask()
			time.Sleep(soon - time.Second)
		}
		expect("never idle", 4, 3)
		for range 30 { // two minutes
			ask()
			time.Sleep(soon + time.Second)
		}
		synctest.Wait()
		if n, m := first.Load()-4, second.Load()-3; n > 9 || n < 7 || m != 0 {
			t.Errorf("asked every few seconds: %d and %d calls", n, m)
		}
		time.Sleep(time.Hour)
		last := first.Load()
		time.Sleep(time.Hour)
		expect("at the end", last, 4)
	})
}
