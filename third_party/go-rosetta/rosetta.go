// Package rosetta answers docker/cli's one question about Apple's Rosetta.
// skep runs on Linux, where the answer is always no; the module that answers it
// on macOS cannot be had from every module proxy.
package rosetta

// Enabled reports whether this process is translated by Rosetta.
func Enabled() bool { return false }
