package image

import (
	"context"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	bolt "go.etcd.io/bbolt"
)

// patient is a database in which a change may wait for the next one: each
// transaction flushes the disk twice.
type patient struct {
	*bolt.DB

	mu      sync.Mutex
	waiting []func(*bolt.Tx) error
}

// later has the next transaction that writes begin with f, whose failure is that
// transaction's. Reads do not see what waits.
func (p *patient) later(f func(*bolt.Tx) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(p.waiting, f)
}

// Update implements metadata.Transactor.
func (p *patient) Update(fn func(*bolt.Tx) error) error {
	var begun []func(*bolt.Tx) error
	err := p.DB.Update(func(tx *bolt.Tx) error { // one at a time
		p.mu.Lock()
		begun, p.waiting = p.waiting, nil
		p.mu.Unlock()
		for i, f := range begun {
			if err := f(tx); err != nil {
				p.again(slices.Delete(begun, i, i+1)) // it would fail again
				begun = nil
				return err
			}
		}
		err := fn(tx)
		if err != nil {
			p.again(begun)
			begun = nil
		}
		return err
	})
	if err != nil {
		p.again(begun) // the disk may be full
	}
	return err
}

// again has changes wait whose transaction was undone.
func (p *patient) again(begun []func(*bolt.Tx) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiting = append(begun, p.waiting...)
}

// later makes a change of the leases with the next change there is, of leases, content
// or snapshots.
func (s *Store) later(ctx context.Context, change func(context.Context) error) {
	ctx = s.ctx(context.WithoutCancel(ctx))
	s.bolt.later(func(tx *bolt.Tx) error { return change(boltutil.WithTransaction(ctx, tx)) })
}
