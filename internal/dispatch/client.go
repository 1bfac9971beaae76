package dispatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/containerd/errdefs"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/pki"
)

// Agent is the node's end: what a session feeds and listens to.
type Agent interface {
	// Assign brings the node to the wanted items: the whole set when complete,
	// else what changed. It returns when the data path follows them. Idempotent.
	Assign(ctx context.Context, complete bool, items []cluster.Item) error
	// Statuses returns what is observed of every task the node has, by task id.
	Statuses() map[string]cluster.Status
	// Changed signals after each change of Statuses. It carries no data, merges,
	// and has one reader.
	Changed() <-chan struct{}
}

// StreamHandler answers what a manager asked for with Open: it decodes the
// request and sends data until it is done or ctx ends.
type StreamHandler func(ctx context.Context, decode func(any) error, send func([]byte) error) error

// Times of the client.
const (
	minRetry    = 100 * time.Millisecond
	maxRetry    = 3 * time.Second
	answerTime  = 3 * time.Second // for a heartbeat to be answered
	checkTime   = time.Second     // the same, when the manager is under suspicion
	sessionOpen = 8 * time.Second // for the first answer of a session
	failedFor   = 10 * time.Second
)

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	Identity *pki.Identity
	Agent    Agent
	// Hello describes the node anew for each session.
	Hello func() Hello
	// Streams answer what managers ask for, by kind.
	Streams map[string]StreamHandler
	// Managers are the addresses known from before.
	Managers []Manager
	// OnSession is called with what the node is told about the swarm, one call
	// at a time.
	OnSession func(Session)
	// OnConnect is called with nil when the node is registered with a leader,
	// and with the reason when a session ended or could not be made.
	OnConnect func(error)
	Dial      Dialer
	Log       *slog.Logger
}

// Client is a node's end of its session. Run keeps one open to the leader.
type Client struct {
	ClientConfig
	codec *codec
	peers *conns
	check chan struct{}

	mu       sync.Mutex
	managers []Manager
	leader   string               // an address that a manager said the leader has
	failed   map[string]time.Time // when a session with an address could not be had
}

// NewClient returns a client.
func NewClient(c ClientConfig) (*Client, error) {
	cd, err := newCodec()
	if err != nil {
		return nil, err
	}
	return &Client{
		ClientConfig: c, codec: cd, check: make(chan struct{}, 1), failed: map[string]time.Time{},
		peers:    &conns{codec: cd, id: c.Identity, dial: c.Dial},
		managers: slices.Clone(c.Managers),
	}, nil
}

// Check has the client make sure at once that its leader still answers.
func (c *Client) Check() {
	select {
	case c.check <- struct{}{}:
	default:
	}
}

// Run keeps a session open until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	defer c.peers.close()
	wait := minRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := c.session(ctx)
		if ctx.Err() != nil {
			break
		}
		if errors.Is(err, errRenewed) {
			continue
		}
		var redirect *redirected
		if errors.As(err, &redirect) {
			c.setLeader(redirect.addr)
		} else {
			c.OnConnect(err)
			c.Log.Debug("session ended", "err", err)
		}
		if time.Since(began) > 2*maxRetry {
			wait = minRetry
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
		}
		if wait = min(2*wait, maxRetry); redirect != nil {
			wait = minRetry
		}
	}
	return nil
}

// redirected says where the leader is.
type redirected struct{ addr string }

func (r *redirected) Error() string { return "the leader is at " + r.addr }

func (c *Client) setLeader(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leader = addr
}

// fail notes that a session with addr could not be had, or was lost.
func (c *Client) fail(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[addr] = time.Now()
	if c.leader == addr {
		c.leader = ""
	}
}

// targets returns the addresses to try: the leader's first, those last that did
// not answer of late.
func (c *Client) targets() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out, last []string
	for _, i := range rand.Perm(len(c.managers)) {
		addr := c.managers[i].Addr
		if t, ok := c.failed[addr]; ok && time.Since(t) < failedFor {
			last = append(last, addr)
		} else {
			out = append(out, addr)
		}
	}
	slices.SortFunc(last, func(a, b string) int { return c.failed[a].Compare(c.failed[b]) })
	out = append(out, last...)
	if c.leader != "" {
		out = append([]string{c.leader}, slices.DeleteFunc(out, func(a string) bool { return a == c.leader })...)
	}
	return out
}

// session opens a session with one manager and serves it to its end.
func (c *Client) session(ctx context.Context) error {
	targets := c.targets()
	if len(targets) == 0 {
		return errors.New("no manager is known")
	}
	addr := targets[0]
	// Captured before the handshake: the session ends when the certificate it
	// was made with is replaced.
	renewed := c.Identity.Changed()
	cc, err := connect(c.codec, c.Dial, addr, credentials.NewTLS(c.Identity.ClientTLS(pki.ProtoRPC, "")))
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opening := time.AfterFunc(sessionOpen, cancel)
	defer opening.Stop()
	stream, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method("Session"))
	if err != nil {
		c.fail(addr)
		return fmt.Errorf("manager at %s: %w", addr, fromGRPC(err))
	}
	s := &clientSession{c: c, cc: cc, stream: stream, sent: map[string]cluster.Status{}, got: make(chan struct{}, 1), ack: make(chan uint64),
		pace: make(chan struct{}, 1), opened: opening}
	err = s.run(ctx, cancel, renewed)
	var redirect *redirected
	if errors.Is(err, errRenewed) || errors.As(err, &redirect) {
		return err
	}
	c.fail(addr)
	return fmt.Errorf("manager at %s: %w", addr, err)
}

// clientSession is one session of a Client. Its sender owns sent and beats.
type clientSession struct {
	c      *Client
	cc     *grpc.ClientConn
	stream grpc.ClientStream
	opened *time.Timer

	sent map[string]cluster.Status
	got  chan struct{} // assignments are there; capacity 1
	ack  chan uint64
	pace chan struct{} // the heartbeat period has changed; capacity 1

	mu       sync.Mutex
	answered uint64 // the last heartbeat answered
	period   time.Duration
	queue    []*assignment
	partial  *assignment
	version  uint64
}

func (s *clientSession) run(ctx context.Context, cancel context.CancelFunc, renewed <-chan struct{}) error {
	hello := s.c.Hello()
	if err := s.stream.SendMsg(&up{Hello: &hello}); err != nil && !errors.Is(err, io.EOF) {
		return fromGRPC(err)
	}
	var wg sync.WaitGroup
	errs := make(chan error, 3)
	part := func(f func(context.Context) error) {
		wg.Go(func() {
			errs <- f(ctx)
			cancel()
		})
	}
	part(func(ctx context.Context) error { return s.receive(ctx, &wg) })
	part(s.apply)
	part(func(ctx context.Context) error { return s.send(ctx, renewed) })
	err := <-errs
	cancel()
	wg.Wait()
	return err
}

// receive takes the manager's messages until the stream ends.
func (s *clientSession) receive(ctx context.Context, wg *sync.WaitGroup) error {
	for first := true; ; first = false {
		d := new(down)
		if err := s.stream.RecvMsg(d); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the manager ended the session")
			}
			return fromGRPC(err)
		}
		if d.Redirect != "" {
			return &redirected{addr: d.Redirect}
		}
		if first {
			s.opened.Stop()
			s.c.OnConnect(nil)
		}
		if d.Session != nil {
			s.told(d.Session)
		}
		if d.Beat != 0 {
			s.mu.Lock()
			s.answered = max(s.answered, d.Beat)
			s.mu.Unlock()
		}
		if d.Assign != nil {
			if err := s.assigned(d.Assign); err != nil {
				return err
			}
		}
		if d.Open != nil {
			wg.Go(func() { s.open(ctx, d.Open) })
		}
	}
}

// told passes on what the manager says about the swarm.
func (s *clientSession) told(info *Session) {
	s.mu.Lock()
	changed := s.period != info.Period
	s.period = info.Period
	s.mu.Unlock()
	if changed {
		select {
		case s.pace <- struct{}{}:
		default:
		}
	}
	if len(info.Managers) > 0 {
		s.c.mu.Lock()
		s.c.managers = info.Managers
		s.c.mu.Unlock()
	}
	s.c.OnSession(*info)
}

// assigned queues an assignment. One that does not follow the last is a gap:
// the session ends, and the next one begins with the complete set.
func (s *clientSession) assigned(a *assignment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.partial; p != nil {
		if p.Version != a.Version || p.Base != a.Base {
			return errors.New("an assignment was broken off")
		}
		a.Items = append(p.Items, a.Items...)
		if len(a.Items) > maxBacklog*4 {
			return errors.New("an assignment has no end")
		}
	}
	if a.More {
		s.partial = a
		return nil
	}
	s.partial = nil
	if a.Base != 0 && a.Base != s.version {
		return fmt.Errorf("assignment %d is for those who have %d, this node has %d", a.Version, a.Base, s.version)
	}
	s.version = a.Version
	s.queue = append(s.queue, a)
	select {
	case s.got <- struct{}{}:
	default:
	}
	return nil
}

// apply gives the agent its assignments, one after another, and acknowledges
// each once the node follows it. One that cannot be followed is tried again.
func (s *clientSession) apply(ctx context.Context) error {
	for {
		s.mu.Lock()
		var a *assignment
		if len(s.queue) > 0 {
			a, s.queue = s.queue[0], s.queue[1:]
		}
		s.mu.Unlock()
		if a == nil {
			select {
			case <-s.got:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		items, err := s.c.codec.items(a.Items)
		if err != nil {
			return err
		}
		if err := s.c.Agent.Assign(ctx, a.Base == 0, items); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("assignment %d: %w", a.Version, err)
		}
		select {
		case s.ack <- a.Version:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// send sends heartbeats, acknowledgements and what the agent observes.
func (s *clientSession) send(ctx context.Context, renewed <-chan struct{}) error {
	var beat uint64
	var deadline <-chan time.Time // for the answer to beat
	next := time.NewTimer(0)
	defer next.Stop()
	observe := true // all statuses once at the start
	for {
		u := new(up)
		if observe {
			u.Statuses, observe = s.news(), false
		}
		select {
		case u.Ack = <-s.ack:
		default:
		}
		if err := s.post(ctx, u); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-renewed:
			return errRenewed
		case <-s.c.Agent.Changed():
			observe = true
		case <-s.pace:
			next.Reset(s.interval())
		case v := <-s.ack:
			if err := s.post(ctx, &up{Ack: v}); err != nil {
				return err
			}
		case <-s.c.check:
			beat++
			deadline = time.After(checkTime)
			if err := s.post(ctx, &up{Beat: beat}); err != nil {
				return err
			}
		case <-next.C:
			beat++
			if deadline == nil {
				deadline = time.After(answerTime)
			}
			next.Reset(s.interval())
			if err := s.post(ctx, &up{Beat: beat}); err != nil {
				return err
			}
		case <-deadline:
			deadline = nil
			s.mu.Lock()
			late := s.answered < beat
			s.mu.Unlock()
			if late {
				return errors.New("the manager does not answer")
			}
		}
	}
}

// errRenewed ends a session so that the next one is made with the new certificate.
var errRenewed = errors.New("the certificate was renewed")

// interval returns the time to the next heartbeat: the period, ± 10 %.
func (s *clientSession) interval() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.period
	if p <= 0 {
		p = defaultPeriod
	}
	return p - p/10 + rand.N(p/5+1)
}

func (s *clientSession) post(ctx context.Context, u *up) error {
	if u.Ack == 0 && u.Beat == 0 && len(u.Statuses) == 0 {
		return nil
	}
	err := s.stream.SendMsg(u)
	if errors.Is(err, io.EOF) {
		<-ctx.Done() // why the stream has ended RecvMsg knows, and its goroutine says
		return ctx.Err()
	}
	return fromGRPC(err)
}

// news returns the statuses the manager has not been sent in this session.
func (s *clientSession) news() []TaskStatus {
	now := s.c.Agent.Statuses()
	var out []TaskStatus
	for id, st := range now {
		if old, ok := s.sent[id]; !ok || !sameStatus(old, st) {
			out = append(out, TaskStatus{ID: id, Status: st})
			s.sent[id] = st
		}
	}
	for id := range s.sent {
		if _, ok := now[id]; !ok {
			delete(s.sent, id)
		}
	}
	slices.SortFunc(out, func(a, b TaskStatus) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// open answers a manager's request in a stream of its own.
func (s *clientSession) open(ctx context.Context, o *open) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method("Reverse"))
	if err == nil {
		err = stream.SendMsg(&frame{Stream: o.Stream})
	}
	if err != nil {
		s.c.Log.Debug("stream for a manager", "kind", o.Kind, "err", err)
		return
	}
	go func() { // ends with the stream
		var f frame
		_ = stream.RecvMsg(&f) // the manager sends nothing: it returns when the manager is done
		cancel()
	}()
	err = cluster.NotImplementedf("this node cannot answer %q", o.Kind)
	if h := s.c.Streams[o.Kind]; h != nil {
		err = h(ctx, func(v any) error { return s.c.codec.dec.Unmarshal(o.Body, v) },
			func(b []byte) error { return stream.SendMsg(&frame{Data: b}) })
	}
	if err != nil && ctx.Err() == nil {
		err = stream.SendMsg(&frame{Err: toWire(err)})
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil && ctx.Err() == nil {
		s.c.Log.Debug("stream for a manager", "kind", o.Kind, "err", err)
	}
	if err == nil {
		<-ctx.Done() // until the manager has read it all
	}
}

// Call makes a call to the leader, through whichever manager answers, and tries
// again until ctx ends while there is none.
func (c *Client) Call(ctx context.Context, name string, in any, out redirecter) error {
	wait, last := minRetry, error(ErrNoLeader)
	for ctx.Err() == nil {
		targets := c.targets()
		for hops := 0; len(targets) > 0 && hops < 8; hops++ {
			addr := targets[0]
			targets = targets[1:]
			out.reset()
			err := c.peers.call(ctx, addr, name, in, out)
			if err == nil && out.redirect() == "" {
				return nil
			}
			if err == nil {
				targets = append([]string{out.redirect()}, targets...)
				continue
			}
			if last = err; !errdefs.IsUnavailable(err) && !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
		}
		wait = min(2*wait, maxRetry)
	}
	return last
}
