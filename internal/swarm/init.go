package swarm

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/control"
	"github.com/skep-dev/skep/internal/dispatch"
	"github.com/skep-dev/skep/internal/pki"
)

// foundWait bounds how long a new swarm may take to have a leader.
const foundWait = 20 * time.Second

// Init makes a new swarm with this host as its first manager, or, with
// ForceNewCluster, makes this manager the only one of the swarm it is in.
func (n *Node) Init(ctx context.Context, req api.InitRequest) (nodeID string, err error) {
	err = n.do(ctx, func(run context.Context) error {
		nodeID, err = n.init(run, req)
		return err
	})
	return nodeID, err
}

func (n *Node) init(run context.Context, req api.InitRequest) (string, error) {
	cur := n.cur.Load()
	if cur != nil && !req.ForceNewCluster {
		return "", errAlready
	}
	addrs, err := n.chooser().choose(req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr, forced(cur, req))
	if err != nil {
		return "", err
	}
	if cur != nil {
		return n.takeOver(run, cur, addrs)
	}
	if req.AutoLockManagers || req.Spec.EncryptionConfig.AutoLockManagers {
		return "", cluster.NotImplementedf("autolock (--autolock) is not built yet")
	}
	if p := req.DataPathPort; p != 0 && (p < 1024 || p > 49151) {
		return "", cluster.Invalidf("Datapath port number is not in valid range (1024-49151) : %d", p)
	}
	m, err := n.found(req, addrs)
	if err != nil {
		return "", err
	}
	n.begin(run, m)
	if err := n.founded(run, m); err != nil {
		n.end(m)
		n.cur.Store(nil)
		return "", joinErr(err, wipe(n.cfg.Dir))
	}
	m.saveState()
	return m.id.Peer().NodeID, nil
}

// forced returns the address a manager that is taken over had, in case the user
// names no other.
func forced(cur *member, req api.InitRequest) (a detected) {
	if cur != nil && req.AdvertiseAddr == "" {
		st, _, _ := cur.snapshot()
		a = st.Advertise.Addr()
	}
	return a
}

func (n *Node) chooser() chooser {
	return chooser{host: n.cfg.Host, advertise: n.cfg.DefaultAdvertise}
}

// found makes the root, this node's identity and the first entry. Nothing but
// the certificates is on disk when it returns.
func (n *Node) found(req api.InitRequest, addrs addresses) (*member, error) {
	now := time.Now()
	root, err := pki.NewRoot(now)
	if err != nil {
		return nil, err
	}
	rootKey, err := root.KeyPEM()
	if err != nil {
		return nil, err
	}
	st := &state{NodeID: cluster.NewID(), addresses: addrs}
	addr := addrs.Advertise.String()
	st.Managers = []dispatch.Manager{{NodeID: st.NodeID, Addr: addr}}
	desc := n.cfg.Describe()
	f := control.Founding{
		ClusterID: cluster.NewID(), NodeID: st.NodeID, Addr: addr, Availability: req.Availability,
		Description: &desc, Spec: req.Spec, Request: req,
		RootCA: cluster.RootCA{Cert: root.CertPEM(), Key: rootKey, WorkerToken: pki.NewToken(root), ManagerToken: pki.NewToken(root)},
	}
	entry, err := control.Bootstrap(f)
	if err != nil {
		return nil, initWords(err)
	}
	lis, err := n.cfg.Listen(addrs.Listen.String())
	if err != nil {
		return nil, cluster.Unavailablef("cluster port: %v", err)
	}
	m, err := n.foundMember(st, root, f)
	if err != nil {
		return nil, joinErr(err, lis.Close())
	}
	m.boot = &boot{lis: lis, entry: entry, founded: make(chan struct{})}
	return m, nil
}

func (n *Node) foundMember(st *state, root *pki.Root, f control.Founding) (*member, error) {
	if err := wipe(n.cfg.Dir); err != nil { // of an init that was broken off
		return nil, err
	}
	csr, key, err := pki.NewRequest()
	if err != nil {
		return nil, err
	}
	sub := pki.Subject{NodeID: st.NodeID, Role: api.NodeRoleManager, ClusterID: f.ClusterID}
	cert, err := root.Issue(csr, sub, time.Now(), f.Spec.CAConfig.NodeCertExpiry)
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(filepath.Join(n.cfg.Dir, dirCerts), root, cert, key)
	if err != nil {
		return nil, err
	}
	if err := id.Save(); err != nil {
		return nil, err
	}
	return n.newMember(st, id)
}

// initWords puts an invalid spec in the words of Docker's init, which updates
// the settings of a swarm that it has made already.
func initWords(err error) error {
	if errdefs.IsInvalidArgument(err) && strings.HasPrefix(err.Error(), "rpc error:") {
		return cluster.Invalidf("error updating cluster settings: %v", err)
	}
	return err
}

// founded waits until the new swarm has its first entry.
func (n *Node) founded(run context.Context, m *member) error {
	timer := time.NewTimer(foundWait)
	defer timer.Stop()
	select {
	case <-m.boot.founded:
		return nil
	case <-m.done:
		_, _, err := m.snapshot()
		return fmt.Errorf("the swarm could not be made: %w", orShutdown(err))
	case <-timer.C:
		_, _, err := m.snapshot()
		return cluster.Unavailablef("the swarm could not be made within %v: %v", foundWait, err)
	case <-run.Done():
		return errShuttingDown
	}
}

func orShutdown(err error) error {
	if err == nil {
		return errShuttingDown
	}
	return err
}

// takeOver makes this manager the only one of its swarm.
func (n *Node) takeOver(run context.Context, cur *member, addrs addresses) (string, error) {
	if cur.id.Peer().Role != api.NodeRoleManager {
		return "", errWorker
	}
	n.end(cur)
	st, _, _ := cur.snapshot()
	st.addresses = addrs
	st.Managers = []dispatch.Manager{{NodeID: st.NodeID, Addr: addrs.Advertise.String()}}
	if err := st.save(n.cfg.Dir); err != nil {
		return "", err
	}
	m, err := n.resume(&st)
	if err != nil {
		return "", err
	}
	m.force = true
	m.boot = &boot{founded: make(chan struct{})}
	n.begin(run, m)
	if err := n.founded(run, m); err != nil {
		return "", err
	}
	m.saveState()
	return st.NodeID, nil
}
