package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// Verb is what was asked of a registry.
type Verb string

// The verbs that Explain tells apart.
const (
	Pull Verb = "pull"
	Push Verb = "push"
)

// Explain turns what a resolver returned into docker's words about ref, marked
// with the kind of failure. A nil error stays nil.
func Explain(err error, ref reference.Named, verb Verb) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.Is(err, ErrStalled) {
		return say(errdefs.ErrUnavailable, "%w: nothing came from %s for too long", ErrStalled, reference.Domain(ref))
	}
	var known *explained
	if errors.As(err, &known) {
		return err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return say(errdefs.ErrUnavailable, "cannot reach registry %s: %w", reference.Domain(ref), op)
	}
	name := reference.FamiliarString(ref)
	var status remoteerrors.ErrUnexpectedStatus
	var multiple docker.Errors
	switch {
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return denied(ref, verb, err)
	case errors.As(err, &status):
		return explainStatus(status, ref, verb)
	case errors.As(err, &multiple):
		return fmt.Errorf("%s: %w", name, err)
	case errdefs.IsNotFound(err):
		return say(errdefs.ErrNotFound, "manifest for %s not found: manifest unknown: manifest unknown", name)
	}
	return err
}

func explainStatus(status remoteerrors.ErrUnexpectedStatus, ref reference.Named, verb Verb) error {
	message := errorMessage(status.Body)
	switch status.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return denied(ref, verb, errors.New(message))
	case http.StatusNotFound:
		return say(errdefs.ErrNotFound, "manifest for %s not found: manifest unknown: manifest unknown", reference.FamiliarString(ref))
	}
	if status.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return say(errdefs.ErrFailedPrecondition, "registry %s has less of a blob than the manifest says", reference.Domain(ref))
	}
	if message == "" {
		message = status.Status
	}
	var kind error = errdefs.ErrUnknown
	if status.StatusCode >= http.StatusInternalServerError {
		kind = errdefs.ErrUnavailable
	}
	return say(kind, "received unexpected HTTP status from %s: %s", reference.Domain(ref), message)
}

// denied is not found for a pull: a registry does not tell the two apart.
func denied(ref reference.Named, verb Verb, reason error) error {
	text := reason.Error()
	if text == "" || errors.Is(reason, docker.ErrInvalidAuthorization) {
		text = "denied: requested access to the resource is denied"
	}
	var kind error = errdefs.ErrNotFound
	if verb == Push {
		kind = errdefs.ErrPermissionDenied
	}
	return say(kind, string(verb)+" access denied for %s, repository does not exist or may require 'docker login': %s", reference.FamiliarName(ref), text)
}

// explained is an error whose text is for users; kind is one of errdefs'.
type explained struct {
	text string
	kind error
	err  error // what fmt.Errorf wrapped, or nil
}

func (e *explained) Error() string   { return e.text }
func (e *explained) Unwrap() []error { return []error{e.kind, e.err} }

// say returns an error of a kind; the format is fmt.Errorf's.
func say(kind error, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &explained{text: err.Error(), kind: kind, err: err}
}
