// Package pki owns the swarm's identities: the root of trust, join tokens, node
// certificates with their files and renewal, and the TLS configurations that
// every connection between nodes is made with. It never decides who may join
// (dispatch does) and stores nothing in the cluster. dispatch and swarm call it.
//
// A certificate names its holder: CN is the node's id, OU its role, O the
// swarm's id. TLS is 1.3 both ways and always verified against the swarm's own
// root, never the host's.
package pki

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Lifetimes. A certificate starts an hour in the past, so that a host whose
// clock is behind can use it at once.
const (
	RootValidity    = 20 * 365 * 24 * time.Hour
	DefaultValidity = 90 * 24 * time.Hour
	MinValidity     = time.Hour
	backdate        = time.Hour
)

// The organisational units that stand for a node's role.
const (
	ouManager = "swarm-manager"
	ouWorker  = "swarm-worker"
)

// roleOU returns the OU of a role.
func roleOU(r swarm.NodeRole) string {
	if r == swarm.NodeRoleManager {
		return ouManager
	}
	return ouWorker
}

// ouRole returns the role an OU stands for, and whether it is one.
func ouRole(ou []string) (swarm.NodeRole, bool) {
	if len(ou) != 1 {
		return "", false
	}
	switch ou[0] {
	case ouManager:
		return swarm.NodeRoleManager, true
	case ouWorker:
		return swarm.NodeRoleWorker, true
	}
	return "", false
}
