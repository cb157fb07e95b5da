package autostart

import "os"

func where(name string) string { return launchAgentFile(os.Getenv("HOME"), name) }

func enable(e Entry) error { return writeEntry(where(e.Name), launchAgent(e)) }

func disable(name string) error { return removeEntry(where(name)) }

func enabled(name string) bool {
	_, err := os.Stat(where(name))
	return err == nil
}
