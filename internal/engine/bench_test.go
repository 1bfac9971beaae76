package engine

import (
	"testing"

	"github.com/moby/moby/api/types/container"
)

// BenchmarkStart measures create, start and the end of busybox's true, and the
// parts of it, in milliseconds.
func BenchmarkStart(b *testing.B) {
	for _, bench := range []struct{ name, seccomp string }{{"seccomp", ""}, {"unconfined", "seccomp=unconfined"}} {
		b.Run(bench.name, func(b *testing.B) {
			r := newRig(b)
			if err := r.pool.Warm(b.Context()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				req := CreateRequest{}
				req.Request.Config = &container.Config{Image: "busybox:1", Cmd: []string{"sleep", "1000"}}
				req.Request.HostConfig = &container.HostConfig{NetworkMode: "none"}
				if bench.seccomp != "" {
					req.Request.HostConfig.SecurityOpt = []string{bench.seccomp}
				}
				resp, err := r.Create(b.Context(), req)
				if err != nil {
					b.Fatal(err)
				}
				if err := r.Start(b.Context(), resp.ID); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := r.Remove(b.Context(), resp.ID, RemoveOptions{Force: true}); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}
