package tray

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthvm/berth/host/machine"
)

// ErrShown is returned by Hold when the user has an icon already.
var ErrShown = errors.New("the icon is shown already")

// dismissTimeout bounds how long an icon may take to go.
const dismissTimeout = 10 * time.Second

func lockFile(h machine.Home) string { return filepath.Join(h.State, "tray.lock") }
func quitFile(h machine.Home) string { return filepath.Join(h.State, "tray.quit") }

// LogFile is where an icon's program says what went wrong.
func LogFile(h machine.Home) string { return filepath.Join(h.State, "tray.log") }

// Hold makes this process the one that shows the user's icon, for as long as it
// lives or until the lock is given back. The error is ErrShown if there is one.
func Hold(h machine.Home) (*machine.Lock, error) {
	lock, err := machine.TryLock(lockFile(h))
	if errors.Is(err, machine.ErrLocked) {
		return nil, ErrShown
	}
	if err != nil {
		return nil, err
	}
	os.Remove(quitFile(h)) // it was for a predecessor
	return lock, nil
}

// Shown reports whether the user has an icon.
func Shown(h machine.Home) bool { return machine.Locked(lockFile(h)) }

// Dismissed returns when Dismiss was called, which it sees by the file it writes,
// or when ctx ends.
func Dismissed(ctx context.Context, h machine.Home) error {
	f, err := watchFiles(h.State)
	if err != nil {
		return err
	}
	defer f.close()
	f.refresh()
	for {
		if _, err := os.Stat(quitFile(h)); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-f.w.Events:
			if !ok {
				return errors.New("the file system's events have ended")
			}
		case <-f.w.Errors:
		}
	}
}

// Dismiss makes the user's icon go and waits until it has. It leaves no file.
func Dismiss(ctx context.Context, h machine.Home) error {
	defer func() {
		for _, file := range []string{quitFile(h), lockFile(h), LogFile(h)} {
			os.Remove(file)
		}
	}()
	if !Shown(h) {
		return nil
	}
	if err := machine.WriteFile(quitFile(h), nil, 0o600); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dismissTimeout)
	defer cancel()
	lock, err := machine.WaitLock(ctx, lockFile(h))
	if err != nil {
		return fmt.Errorf("the icon does not go: %w", err)
	}
	return lock.Unlock()
}
