package step

import (
	"log/slog"
	"sync"
	"time"

	"github.com/berthvm/berth/guest/container"
)

// warmTime is how long after the last step a process is kept for the next.
const warmTime = time.Minute

// warmDelay lets a short step end before the process for the next one is begun.
const warmDelay = 40 * time.Millisecond

// warmer keeps a process ready for the next step, from the first one on until there
// has been none for warmTime. Its methods are safe for concurrent use.
type warmer struct {
	log *slog.Logger
	cfg container.PoolConfig

	mu    sync.Mutex // guards what follows
	pool  *container.Pool
	steps int         // that run
	cold  *time.Timer // ends the pool
}

// begin returns the pool for a step, nil if there can be none. The step calls end.
func (w *warmer) begin() *container.Pool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps++
	if w.cold != nil {
		w.cold.Stop()
		w.cold = nil
	}
	if w.pool == nil {
		pool, err := container.NewPool(w.cfg)
		if err != nil {
			w.log.Warn("steps will start slower", "error", err)
		}
		w.pool = pool
	}
	return w.pool
}

func (w *warmer) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.steps--
	if w.steps > 0 {
		return
	}
	w.cold = time.AfterFunc(warmTime, func() { _ = w.close() })
}

// close ends the process, unless steps run.
func (w *warmer) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.steps > 0 {
		return nil
	}
	pool := w.pool
	w.pool = nil
	return pool.Close()
}
