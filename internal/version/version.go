// Package version says which build this is. The linker sets it, nobody else
// does; cmd/skep and daemon show it.
package version

// Version and Commit are of skep itself. Both are set at link time.
var (
	Version = "dev"
	Commit  = "unknown"
)
