package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// traced is an error that prints more than it says.
type traced struct{}

func (traced) Error() string { return "no such step" }

func (e traced) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "%s\nmain.go:1", e.Error()) }

// TestErrorText: an error takes one line of the log, whatever it knows besides.
func TestErrorText(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: errorText})).
		Warn("request failed", "status", 500, "error", traced{})
	if got := out.String(); !strings.HasSuffix(got, `status=500 error="no such step"`+"\n") {
		t.Errorf("logged %q", got)
	}
}
