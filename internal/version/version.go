// Package version says which build this is. The linker sets it.
package version

// Version and Commit are of skep itself. Both are set at link time.
var (
	Version = "dev"
	Commit  = "unknown"
)
