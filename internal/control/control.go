// Package control is the swarm as users see it: it validates what they write,
// fills in what they leave out, gives it its id and proposes it, and shows what
// the managers know in the Engine API's own types. It runs on every manager; on
// one that does not lead, calls are answered by the leader. It never decides
// which tasks exist or where they run. httpapi calls it, dispatch brings it the
// calls of other managers.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/filters"
	"github.com/skep-dev/skep/internal/raftlog"
	"github.com/skep-dev/skep/internal/store"
)

// Raft is this manager's part in the group; *raftlog.Log is one.
type Raft interface {
	// Leading reports whether this manager leads.
	Leading() bool
	// Propose writes changes, whole or not at all; see raftlog.Log.Propose.
	Propose(ctx context.Context, changes ...store.Change) error
	Members() []raftlog.Member
	// CheckRemove refuses, with errdefs.ErrFailedPrecondition, the removal of a
	// manager the group cannot do without.
	CheckRemove(ctx context.Context, nodeID string) error
}

// Forwarder has the leader answer a call. It waits out an election for a while
// and then returns errdefs.ErrUnavailable. Error kinds and texts survive the way.
type Forwarder interface {
	Forward(ctx context.Context, method string, body []byte) ([]byte, error)
}

// Filters are the Engine API's filters.
type Filters = filters.Filters

// API answers the users of one manager. All methods are safe for concurrent use.
type API struct {
	Store   *store.Store
	Raft    Raft
	Forward Forwarder
	Log     *slog.Logger

	methods map[string]handler
}

// handler answers one method's body with the body of the reply.
type handler func(ctx context.Context, body []byte) ([]byte, error)

// proposeWait bounds how long a write may take to be confirmed.
const proposeWait = 15 * time.Second

// maxForwarded bounds a call that another manager sends.
const maxForwarded = 4 << 20

// New returns the API of a manager.
func New(st *store.Store, raft Raft, forward Forwarder, log *slog.Logger) *API {
	a := &API{Store: st, Raft: raft, Forward: forward, Log: log}
	a.methods = map[string]handler{}
	for _, add := range []func(){
		a.clusterMethods, a.nodeMethods, a.serviceMethods, a.taskMethods,
		a.networkMethods, a.secretMethods, a.configMethods,
	} {
		add()
	}
	return a
}

// method makes f callable from other managers under a name.
func method[Req, Resp any](a *API, name string, f func(context.Context, Req) (Resp, error)) {
	a.methods[name] = func(ctx context.Context, body []byte) ([]byte, error) {
		var req Req
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, cluster.Invalidf("%s: %v", name, err)
		}
		resp, err := f(ctx, req)
		if err != nil {
			return nil, err
		}
		return json.Marshal(resp)
	}
}

// Handle answers a call that another manager has forwarded. Where this manager
// does not lead it returns cluster.ErrNotLeader.
func (a *API) Handle(ctx context.Context, name string, body []byte) ([]byte, error) {
	h := a.methods[name]
	if h == nil {
		return nil, cluster.NotImplementedf("this manager knows no call %q", name)
	}
	if len(body) > maxForwarded {
		return nil, cluster.Invalidf("%s: a call of %d bytes is too long", name, len(body))
	}
	if !a.Raft.Leading() {
		return nil, cluster.ErrNotLeader
	}
	return h(ctx, body)
}

// none is the reply of a call that returns nothing.
type none struct{}

// listReq, refReq and updateReq are the requests that most nouns' lists, reads
// and updates have.
type listReq struct{ Filters Filters }

type refReq struct{ Ref string }

type updateReq[Spec any] struct {
	Ref     string
	Version uint64
	Spec    Spec
}

// read answers a read from the leader, who alone knows what is observed; while
// there is no leader, from what this manager knows.
func read[Req, Resp any](ctx context.Context, a *API, name string, req Req, f func(context.Context, Req) (Resp, error)) (Resp, error) {
	if a.Raft.Leading() {
		return f(ctx, req)
	}
	resp, err := forward[Req, Resp](ctx, a, name, req)
	if errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) {
		return f(ctx, req)
	}
	return resp, err
}

// write answers a call here, if this manager leads, or has the leader do it.
func write[Req, Resp any](ctx context.Context, a *API, name string, req Req, f func(context.Context, Req) (Resp, error)) (Resp, error) {
	if a.Raft.Leading() {
		resp, err := f(ctx, req)
		if !errors.Is(err, cluster.ErrNotLeader) {
			return resp, err
		}
	}
	return forward[Req, Resp](ctx, a, name, req)
}

func forward[Req, Resp any](ctx context.Context, a *API, name string, req Req) (Resp, error) {
	var resp Resp
	body, err := json.Marshal(req)
	if err != nil {
		return resp, fmt.Errorf("%s: %w", name, err)
	}
	out, err := a.Forward.Forward(ctx, name, body)
	if err != nil {
		return resp, err
	}
	if err := json.Unmarshal(out, &resp); err != nil {
		return resp, fmt.Errorf("%s: the leader's answer: %w", name, err)
	}
	return resp, nil
}

// propose writes changes and turns what the store says of them into Docker's
// words.
func (a *API) propose(ctx context.Context, changes ...store.Change) error {
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	return inWords(a.Raft.Propose(ctx, changes...))
}

// edits bounds how often a write is made anew because a loop was faster.
const edits = 20

// edit writes what f makes of the state, and has it made anew when the state has
// changed meanwhile: for writes of users that do not name the version they read,
// or whose version says more than what they depend on.
func (a *API) edit(ctx context.Context, f func(v store.View) ([]store.Change, error)) error {
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	for i := 0; ; i++ {
		changes, err := f(a.Store.View())
		if err != nil {
			return err
		}
		err = a.Raft.Propose(ctx, changes...)
		if !errors.Is(err, cluster.ErrStale) || i == edits {
			return inWords(err)
		}
	}
}

// stale reports whether the user read another spec than an object has. What loops
// write of it (a service's ports and progress, a node's role and state) makes
// versions too, but nobody's spec depends on it.
func stale(read, spec, now uint64) bool { return read < spec || read > now }

func inWords(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrStale):
		return outOfSequence()
	case errors.Is(err, raftlog.ErrLost):
		// Not to be tried again blindly: it may have been made.
		return cluster.Unavailablef("rpc error: code = Unavailable desc = %v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return cluster.Unavailablef("rpc error: code = DeadlineExceeded desc = the managers did not confirm the write in time; it may have been made")
	case errdefs.IsAlreadyExists(err):
		return alreadyExists("%s", err.Error())
	}
	return err
}

// The texts below begin as those of Docker's do, whose daemon passes on what its
// managers said over gRPC.

func invalid(format string, args ...any) error {
	return cluster.Invalidf("rpc error: code = InvalidArgument desc = "+format, args...)
}

func alreadyExists(format string, args ...any) error {
	return errdefs.ErrAlreadyExists.WithMessage("rpc error: code = AlreadyExists desc = " + fmt.Sprintf(format, args...))
}

func precondition(format string, args ...any) error {
	return errdefs.ErrFailedPrecondition.WithMessage("rpc error: code = FailedPrecondition desc = " + fmt.Sprintf(format, args...))
}

// unknown makes an error of no kind (500), as Docker's is where its managers
// did not give one.
func unknown(format string, args ...any) error {
	return errors.New("rpc error: code = Unknown desc = " + fmt.Sprintf(format, args...))
}

func outOfSequence() error { return unknown("update out of sequence") }
