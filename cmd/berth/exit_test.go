package main

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/docker/cli/cli"
)

func TestMessage(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("no such machine"), "berth: no such machine"},
		{errors.New("berth: 'berth run' requires at least 1 argument"), "berth: 'berth run' requires at least 1 argument"},
		{fromDocker(errors.New("Error response from daemon: No such container: x")), "Error response from daemon: No such container: x"},
		{cli.StatusError{Status: "docker: Error response from daemon: no\n\nRun 'docker run --help' for more information", StatusCode: 125},
			"berth: Error response from daemon: no\n\nRun 'berth run --help' for more information"},
		{fromDocker(errors.New("the image docker: is fine")), "the image docker: is fine"},
	} {
		if got := message(c.err); got != c.want {
			t.Errorf("message(%q) = %q, want %q", c.err, got, c.want)
		}
	}
}

func TestWordless(t *testing.T) {
	interrupted := signaled{os.Interrupt}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{cli.StatusError{StatusCode: 3}, true},
		{fromDocker(fmt.Errorf("Get \"http://socket/events\": %w", interrupted)), true},
		{fromDocker(errors.New("no such image")), false},
		{interrupted, false}, // a start says that it was given up
	} {
		if got := wordless(c.err); got != c.want {
			t.Errorf("wordless(%q) = %v", c.err, got)
		}
	}
}
