//go:build !darwin && !windows

package autostart

import "os"

func where(name string) string { return desktopFile(os.Getenv, name) }

func enable(e Entry) error { return writeEntry(where(e.Name), desktopEntry(e)) }

func disable(name string) error { return removeEntry(where(name)) }

func enabled(name string) bool {
	body, err := os.ReadFile(where(name))
	return err == nil && desktopOn(string(body))
}
