package filter

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// maxDigits bounds the decimals of a second that are taken; more than nine say
// nothing.
const maxDigits = 20

// Unix reads a moment as the API's since and until write it: seconds of the epoch,
// with decimals if need be. Errors are errdefs.ErrInvalidArgument.
func Unix(v string) (time.Time, error) {
	whole, decimals, _ := strings.Cut(v, ".")
	secs, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, invalid("invalid timestamp %q: invalid seconds %q", v, whole)
	}
	if len(decimals) > maxDigits || strings.Trim(decimals, "0123456789") != "" {
		return time.Time{}, invalid("invalid timestamp %q: invalid nanoseconds %q", v, decimals)
	}
	nanos, _ := strconv.ParseInt((decimals + "000000000")[:9], 10, 64)
	return time.Unix(secs, nanos), nil
}

// layouts are the ways in which a filter may write a date: more or less of RFC 3339.
var layouts = []string{
	time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15Z07:00", "2006-01-02Z07:00",
	"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02",
}

// Until returns the moment that the filter "until" writes: how long before now, a
// date, or as Unix takes it; zero when there is none. Errors are
// errdefs.ErrInvalidArgument.
func (s Set) Until(now time.Time) (time.Time, error) {
	values := s.Values("until")
	switch {
	case len(values) == 0:
		return time.Time{}, nil
	case len(values) > 1:
		return time.Time{}, invalid("more than one until filter specified")
	}
	v := values[0]
	if d, err := time.ParseDuration(v); err == nil && v != "0" {
		return now.Add(-d), nil
	}
	for _, layout := range layouts {
		if t, err := time.ParseInLocation(layout, v, now.Location()); err == nil {
			return t, nil
		}
	}
	t, err := Unix(v)
	if err != nil {
		return time.Time{}, invalid("invalid value for 'until' filter: failed to parse value as time or duration: %v", err)
	}
	return t, nil
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}
