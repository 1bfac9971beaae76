// Package raftlog keeps the managers' stores alike: it drives Raft, holds the
// log and its snapshots on disk (encrypted), groups proposals, counts members
// and says who leads. It never looks into what the entries mean, and never makes
// certificates: listener and dialer are given to it. swarm makes the one Log of a
// manager; control and the leader's loops propose through it.
package raftlog
