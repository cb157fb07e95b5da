package machine

import (
	"errors"
	"path/filepath"
)

func platformHome(getenv func(string) string) (Home, error) {
	home := getenv("HOME")
	if home == "" {
		return Home{}, errors.New("HOME is not set")
	}
	library := filepath.Join(home, "Library")
	return under(filepath.Join(library, "Application Support", "berth"), filepath.Join(library, "Caches", "berth")), nil
}
