package logfile

import (
	"encoding/json"
	"time"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendEntry appends an entry's line of JSON, newline included. It writes what
// encoding/json would, without its allocations: this runs for every line a
// container prints.
func appendEntry(b []byte, e Entry) []byte {
	b = append(b, `{"log":`...)
	b = appendString(b, e.Line)
	b = append(b, `,"stream":"`...)
	b = append(b, e.Stream...)
	b = append(b, '"')
	if len(e.Attrs) > 0 {
		if attrs, err := json.Marshal(e.Attrs); err == nil {
			b = append(b, `,"attrs":`...)
			b = append(b, attrs...)
		}
	}
	b = append(b, `,"time":"`...)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, '"', '}', '\n')
}

func appendString(b, s []byte) []byte {
	b = append(b, '"')
	for len(s) > 0 {
		c := s[0]
		if c < utf8.RuneSelf {
			s = s[1:]
			switch {
			case c == '"' || c == '\\':
				b = append(b, '\\', c)
			case c == '\n':
				b = append(b, '\\', 'n')
			case c == '\r':
				b = append(b, '\\', 'r')
			case c == '\t':
				b = append(b, '\\', 't')
			case c < ' ' || c == '<' || c == '>' || c == '&':
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			default:
				b = append(b, c)
			}
			continue
		}
		r, n := utf8.DecodeRune(s)
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029':
			b = append(b, `\u202`...)
			b = append(b, hexDigits[r&15])
		default:
			b = append(b, s[:n]...)
		}
		s = s[n:]
	}
	return append(b, '"')
}

// decodeEntry reads one line of a log.
func decodeEntry(line []byte) (Entry, error) {
	var v struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return Entry{}, err
	}
	return Entry{Line: []byte(v.Log), Stream: v.Stream, Attrs: v.Attrs, Time: v.Time}, nil
}
