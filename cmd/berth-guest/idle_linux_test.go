package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := whenIdle(http.NotFoundHandler(), func() { calls++ })
		expect := func(when string, want int) {
			t.Helper()
			if synctest.Wait(); calls != want {
				t.Errorf("%s: %d calls, want %d", when, calls, want)
			}
		}
		ask := func() { h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/_ping", nil)) }
		time.Sleep(idleAfter)
		expect("after the start", 1)
		time.Sleep(time.Hour)
		expect("idle", 1)
		ask()
		expect("asked", 1)
		time.Sleep(idleAfter)
		expect("idle again", 2)
		for range 60 { // two minutes
			ask()
			time.Sleep(idleAfter - time.Second)
		}
		expect("never idle", 2)
		for range 30 { // two minutes
			ask()
			time.Sleep(idleAfter + time.Second)
		}
		if calls > 2+9 || calls < 2+7 {
			t.Errorf("asked every few seconds: %d calls", calls-2)
		}
		time.Sleep(time.Hour)
		last := calls
		time.Sleep(time.Hour)
		expect("at the end", last)
	})
}
