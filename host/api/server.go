package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Backend is the daemon, as the API sees it. Its methods are safe for
// concurrent use.
type Backend interface {
	Status() Status
	// Follow calls emit with every event of the start there was and will be,
	// until the start has ended or ctx does.
	Follow(ctx context.Context, emit func(Event) error) error
	// Cancel gives up the start. It does nothing when more than one follow it.
	Cancel()
	// Stop returns when the machine is off. Its ctx bounds the politeness: when
	// it ends the plug is pulled.
	Stop(ctx context.Context) (Status, error)
	// Pause freezes the machine, and Resume sets it going again.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Save saves the machine's state and returns when the machine is off. One that
	// cannot be saved runs on.
	Save(ctx context.Context) (Status, error)
	Logs(ctx context.Context, q LogQuery, w io.Writer) error
	// Watch calls emit with the machine as it is now and after each change, until
	// the machine is off, which is the last, or ctx ends or emit fails.
	Watch(ctx context.Context, emit func(Snapshot) error) error
	// Usage and StopContainer ask the guest, which must be up.
	Usage(ctx context.Context) (Usage, error)
	StopContainer(ctx context.Context, id string) error
}

// maxStop bounds what a client may ask to wait for a polite stop.
const maxStop = time.Hour

// maxSave bounds a save: a busy disk takes gigabytes in it.
const maxSave = 10 * time.Minute

// NewHandler serves b.
func NewHandler(b Backend) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		reply(w, b.Status())
	})
	mux.HandleFunc("GET /v1/progress", func(w http.ResponseWriter, r *http.Request) {
		b.Follow(r.Context(), lines[Event](w)) // the client sees a stream without an End
	})
	mux.HandleFunc("GET /v1/watch", func(w http.ResponseWriter, r *http.Request) {
		b.Watch(r.Context(), lines[Snapshot](w)) // likewise
	})
	mux.HandleFunc("GET /v1/usage", func(w http.ResponseWriter, r *http.Request) {
		u, err := b.Usage(r.Context())
		if err != nil {
			fail(w, http.StatusServiceUnavailable, err)
			return
		}
		reply(w, u)
	})
	mux.HandleFunc("POST /v1/containers/{id}/stop", func(w http.ResponseWriter, r *http.Request) {
		if err := b.StopContainer(r.Context(), r.PathValue("id")); err != nil {
			fail(w, http.StatusBadGateway, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /v1/cancel", func(w http.ResponseWriter, r *http.Request) {
		b.Cancel()
		w.WriteHeader(http.StatusNoContent)
	})
	for path, do := range map[string]func(context.Context) error{"POST /v1/pause": b.Pause, "POST /v1/resume": b.Resume} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.Context()); err != nil {
				fail(w, http.StatusConflict, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	mux.HandleFunc("POST /v1/save", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), maxSave)
		defer cancel()
		s, err := b.Save(ctx)
		if err != nil {
			fail(w, http.StatusConflict, err)
			return
		}
		reply(w, s)
	})
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		timeout, err := time.ParseDuration(r.FormValue("timeout"))
		if err != nil || timeout < 0 || timeout > maxStop {
			fail(w, http.StatusBadRequest, errors.New("timeout is not a duration between 0 and 1h"))
			return
		}
		// Whoever asked may leave: the stop goes on.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), timeout)
		defer cancel()
		s, err := b.Stop(ctx)
		if err != nil {
			fail(w, http.StatusInternalServerError, err)
			return
		}
		reply(w, s)
	})
	mux.HandleFunc("GET /v1/logs", func(w http.ResponseWriter, r *http.Request) {
		q := LogQuery{Source: r.FormValue("source"), Follow: r.FormValue("follow") == "true"}
		tail, err := strconv.Atoi(r.FormValue("tail"))
		if err != nil || q.Source != LogDaemon && q.Source != LogConsole {
			fail(w, http.StatusBadRequest, errors.New("source is daemon or console, tail a number of lines"))
			return
		}
		q.Tail = tail
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		b.Logs(r.Context(), q, flusher{w}) // the headers are gone: an error ends the stream
	})
	return mux
}

// lines writes each value as a line of JSON, at once.
func lines[T any](w http.ResponseWriter) func(T) error {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	return func(v T) error {
		if err := enc.Encode(v); err != nil {
			return err
		}
		return http.NewResponseController(w).Flush()
	}
}

type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // fails only when the client has left
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(apiError{err.Error()})
}
