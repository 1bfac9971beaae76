// Package cluster holds skep's nouns: Node, Service, Task, Network and Cluster,
// their states, and what a node is told about them. It knows nothing of storage,
// networks or time; everybody may import it and it imports nobody.
//
// Specs are the Engine API's own types, held as immutable values: whoever wants
// a different spec makes a new one. Objects are skep's own compact records.
package cluster
