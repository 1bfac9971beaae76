// Command skep is the command line, the daemon (skep daemon) and, called as
// docker, a stand-in for it. This package only wires.
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/skep-dev/skep/internal/cli"
	"github.com/skep-dev/skep/internal/daemon"
	"github.com/skep-dev/skep/internal/machine"
	"github.com/skep-dev/skep/internal/version"
)

func main() {
	face := cli.FaceSkep
	if filepath.Base(os.Args[0]) == cli.FaceDocker {
		face = cli.FaceDocker
	}
	os.Exit(cli.Run(context.Background(), face, version.Version, version.Commit, os.Args[1:],
		daemon.Command(), machine.Command()))
}
