package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestIdler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const soon, late = 3 * time.Second, 30 * time.Second
		first, second, stopped := 0, 0, 0
		i := newIdler(stage{after: soon, every: 15 * time.Second, f: func(func() bool) { first++ }},
			stage{after: late, every: time.Minute, f: func(still func() bool) {
				second++
				for range 10 {
					if time.Sleep(time.Second); !still() {
						stopped++
						return
					}
				}
			}})
		h := i.serve(http.NotFoundHandler())
		expect := func(when string, wantFirst, wantSecond int) {
			t.Helper()
			if synctest.Wait(); first != wantFirst || second != wantSecond {
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
		if stopped != 1 {
			t.Errorf("%d calls were told of the use, want 1", stopped)
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
		if first > 4+9 || first < 4+7 || second != 3 {
			t.Errorf("asked every few seconds: %d and %d calls", first-4, second-3)
		}
		time.Sleep(time.Hour)
		last := first
		time.Sleep(time.Hour)
		expect("at the end", last, 4)
	})
}
