package dockerapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"

	"github.com/berthvm/berth/guest/engine"
)

var errNoPage = errdefs.ErrNotFound.WithMessage("page not found")

// errBegun is returned by handlers that have answered already.
var errBegun = errors.New("dockerapi: answered")

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// status is the one place where errors become status codes.
func status(err error) int {
	switch {
	case errors.Is(err, engine.ErrNotModified):
		return http.StatusNotModified
	case errdefs.IsNotFound(err):
		return http.StatusNotFound
	case errdefs.IsInvalidArgument(err), errdefs.IsOutOfRange(err):
		return http.StatusBadRequest
	case errdefs.IsConflict(err), errdefs.IsAlreadyExists(err), errdefs.IsFailedPrecondition(err), errdefs.IsAborted(err):
		return http.StatusConflict
	case errdefs.IsUnauthorized(err):
		return http.StatusUnauthorized
	case errdefs.IsPermissionDenied(err):
		return http.StatusForbidden
	case errdefs.IsNotImplemented(err):
		return http.StatusNotImplemented
	case errdefs.IsUnavailable(err):
		return http.StatusServiceUnavailable
	case errors.Is(err, context.Canceled):
		return 499 // the client is gone; nobody reads this
	}
	return http.StatusInternalServerError
}

// writeError answers with an error and returns its status code.
func writeError(w http.ResponseWriter, err error) int {
	if errors.Is(err, errBegun) {
		return http.StatusOK
	}
	code := status(err)
	if code == http.StatusNotModified {
		w.WriteHeader(code)
		return code
	}
	body, merr := encode(common.ErrorResponse{Message: err.Error()})
	if merr != nil {
		body = []byte(`{"message":"internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body)
	return code
}
