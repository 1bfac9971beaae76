package main

import (
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestSwarm types what a newcomer to a swarm types, at a swarm of one node.
func TestSwarm(t *testing.T) {
	h := newHost(t)
	h.importBusybox(t)
	ns := filepath.Join(h.dir, "netns")
	for _, cmd := range [][]string{
		{"ip", "link", "add", "host0", "type", "veth", "peer", "name", "host1"},
		{"ip", "addr", "add", "10.78.0.1/24", "dev", "host0"},
		{"ip", "link", "set", "host0", "up"},
		{"ip", "link", "set", "host1", "up"},
	} {
		if out, err := exec.Command("nsenter", append([]string{"--net=" + ns}, cmd...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", cmd, err, out)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "swarm"),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("DOCKER_HOST", "unix://"+h.socket)
			env.Setenv("DOCKER_CONFIG", env.WorkDir)
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("NETNS", ns)
			return nil
		},
	})
}
