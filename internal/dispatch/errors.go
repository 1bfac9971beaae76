package dispatch

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skep-dev/skep/internal/cluster"
)

// ErrNoLeader is what a caller is told while nobody leads, in Docker's words.
var ErrNoLeader = cluster.Unavailablef("rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.")

// failed is an error on the wire: its kind and its exact words.
type failed struct {
	Kind string
	Text string
}

// kinds names the error kinds that cross the wire.
var kinds = []struct {
	name string
	err  error
	code codes.Code
}{
	{"stale", cluster.ErrStale, codes.Aborted},
	{"not-leader", cluster.ErrNotLeader, codes.Unavailable},
	{"not-found", errdefs.ErrNotFound, codes.NotFound},
	{"invalid", errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{"exists", errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{"precondition", errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{"conflict", errdefs.ErrConflict, codes.Aborted},
	{"denied", errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{"unauthenticated", errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{"not-implemented", errdefs.ErrNotImplemented, codes.Unimplemented},
	{"exhausted", errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{"unavailable", errdefs.ErrUnavailable, codes.Unavailable},
	{"canceled", context.Canceled, codes.Canceled},
	{"deadline", context.DeadlineExceeded, codes.DeadlineExceeded},
	{"internal", errdefs.ErrInternal, codes.Internal},
}

// toWire returns err for the wire, nil for nil.
func toWire(err error) *failed {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &failed{Kind: k.name, Text: err.Error()}
		}
	}
	return &failed{Text: err.Error()}
}

// fromWire returns the error that was put on the wire: of the same kind, with
// the same words.
func fromWire(f *failed) error {
	if f == nil {
		return nil
	}
	for _, k := range kinds {
		if k.name == f.Kind {
			return &remoteError{text: f.Text, kind: k.err}
		}
	}
	return errors.New(f.Text)
}

// remoteError is an error that another node made.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// grpcError gives err the gRPC code of its kind.
func grpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return status.Error(k.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// fromGRPC gives a gRPC error its kind and bare words back.
func fromGRPC(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, k := range kinds {
		if k.code == st.Code() && k.err != cluster.ErrStale && k.err != cluster.ErrNotLeader {
			return &remoteError{text: st.Message(), kind: k.err}
		}
	}
	return errors.New(st.Message())
}
