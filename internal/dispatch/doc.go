// Package dispatch is how nodes talk to managers: the cluster port with its
// mutual TLS, the calls on it, and the leader's end of every node's session:
// what each node is told, what it reports, and whether it lives. It decides
// nothing about tasks. swarm runs a Server on every manager, its Lead on the
// leader, and a Client on every node.
//
// A node's session is one stream: assignments down, first complete and then what
// changed; heartbeats, acknowledgements and statuses up. A message goes out as
// soon as there is something to say and the last one is on its way; what happens
// meanwhile is gathered.
package dispatch
