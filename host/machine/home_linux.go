package machine

import (
	"errors"
	"path/filepath"
)

func platformHome(getenv func(string) string) (Home, error) {
	home := getenv("HOME")
	dir := func(env, fallback string) string {
		if d := getenv(env); filepath.IsAbs(d) { // the specification says to ignore others
			return filepath.Join(d, "berth")
		}
		if home == "" {
			return ""
		}
		return filepath.Join(home, fallback, "berth")
	}
	h := Home{
		Config: dir("XDG_CONFIG_HOME", ".config"),
		Data:   dir("XDG_DATA_HOME", ".local/share"),
		State:  dir("XDG_STATE_HOME", ".local/state"),
		Cache:  dir("XDG_CACHE_HOME", ".cache"),
	}
	if h.Config == "" || h.Data == "" || h.State == "" || h.Cache == "" {
		return Home{}, errors.New("HOME is not set")
	}
	h.sockets = socketParent(h.State)
	return h, nil
}
