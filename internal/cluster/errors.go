package cluster

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Error kinds are containerd's errdefs; the Engine API's status codes follow
// from them in one place (httpapi). These make an error of a kind whose text is
// exactly the one given, as Docker's clients expect it.

// NotFoundf makes an error of the kind errdefs.ErrNotFound (404).
func NotFoundf(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

// Invalidf makes an error of the kind errdefs.ErrInvalidArgument (400).
func Invalidf(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// Conflictf makes an error of the kind errdefs.ErrConflict (409).
func Conflictf(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

// Unavailablef makes an error of the kind errdefs.ErrUnavailable (503).
func Unavailablef(format string, args ...any) error {
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf(format, args...))
}

// NotImplementedf makes an error of the kind errdefs.ErrNotImplemented (501).
func NotImplementedf(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...))
}

// Deniedf makes an error of the kind errdefs.ErrPermissionDenied (403).
func Deniedf(format string, args ...any) error {
	return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(format, args...))
}

// ErrNotLeader is returned by a write that reached a manager which does not
// lead (any more). The caller finds the leader and tries again.
var ErrNotLeader = errors.New("this manager is not the leader")

// ErrStale is returned by a write whose object has changed since it was read.
var ErrStale = errors.New("update out of sequence")
