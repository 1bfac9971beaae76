package agenttest

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/skep-dev/skep/internal/agent"
	"github.com/skep-dev/skep/internal/engine"
)

// Conform tests what the agent relies on in a Runtime. image is present on the
// host and its containers run until they are told to end; end has one end by
// itself with an exit code.
func Conform(t *testing.T, rt agent.Runtime, image string, end func(id string, code int)) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	request := func(name string) engine.CreateRequest {
		return engine.CreateRequest{Name: name, Swarm: true, Request: container.CreateRequest{
			Config:     &container.Config{Image: image, Labels: map[string]string{"task": name}},
			HostConfig: &container.HostConfig{NetworkMode: "none"},
		}}
	}

	if _, err := rt.Image(ctx, image); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.Image(ctx, "nowhere.invalid/no/image:1"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown image: %v", err)
	}
	if err := rt.Pull(ctx, "nowhere.invalid/no/image:1", nil, func(jsonstream.Message) {}); err == nil {
		t.Error("an image from nowhere was pulled")
	}
	bad := request("conform-none")
	bad.Request.Image = "nowhere.invalid/no/image:1"
	if _, err := rt.Create(ctx, bad); !errdefs.IsNotFound(err) {
		t.Errorf("container of an unknown image: %v", err)
	}
	for name, call := range map[string]func() error{
		"inspect": func() error { _, err := rt.Inspect(ctx, "conform-none"); return err },
		"start":   func() error { return rt.Start(ctx, "conform-none") },
		"stop":    func() error { return rt.Stop(ctx, "conform-none", nil) },
		"remove":  func() error { return rt.Remove(ctx, "conform-none") },
		"changed": func() error { _, err := rt.Changed(ctx, "conform-none", agent.Container{}); return err },
	} {
		if err := call(); !errdefs.IsNotFound(err) {
			t.Errorf("%s of an unknown container: %v", name, err)
		}
	}

	id, err := rt.Create(ctx, request("conform-a"))
	check(err)
	if _, err := rt.Create(ctx, request("conform-a")); !errdefs.IsConflict(err) {
		t.Errorf("a name taken: %v", err)
	}
	c, err := rt.Inspect(ctx, "conform-a")
	check(err)
	if c.ID != id || c.State != container.StateCreated || c.Labels["task"] != "conform-a" || c.Health != "" {
		t.Errorf("created: %+v", c)
	}
	check(rt.Stop(ctx, id, nil)) // not running: left alone
	for range 2 {
		check(rt.Start(ctx, id))
	}
	if c, err = rt.Inspect(ctx, id); err != nil || c.State != container.StateRunning || c.PID == 0 {
		t.Fatalf("started: %+v %v", c, err)
	}
	short, stop := context.WithTimeout(ctx, 30*time.Millisecond)
	if got, err := rt.Changed(short, id, c); err == nil {
		t.Errorf("changed without a change: %+v", got)
	}
	stop()

	type result struct {
		c   agent.Container
		err error
	}
	changed := make(chan result, 1)
	watch := func() {
		go func() {
			now, err := rt.Changed(ctx, id, c)
			for err == nil && now.Gone && now.State == container.StateRunning { // its end follows
				now, err = rt.Changed(ctx, id, now)
			}
			changed <- result{now, err}
		}()
	}
	watch()
	end(id, 3)
	if got := <-changed; got.err != nil || got.c.State != container.StateExited || got.c.ExitCode != 3 {
		t.Errorf("ended by itself: %+v %v", got.c, got.err)
	}
	check(rt.Remove(ctx, id))

	id, err = rt.Create(ctx, request("conform-a")) // the name is free again
	check(err)
	check(rt.Start(ctx, id))
	c, err = rt.Inspect(ctx, id)
	check(err)
	watch()
	grace := 1
	for range 2 {
		check(rt.Stop(ctx, id, &grace))
	}
	if got := <-changed; got.err != nil || got.c.State != container.StateExited || got.c.ExitCode == 0 {
		t.Errorf("stopped: %+v %v", got.c, got.err)
	}
	check(rt.Remove(ctx, id))

	id, err = rt.Create(ctx, request("conform-b"))
	check(err)
	check(rt.Start(ctx, id))
	c, err = rt.Inspect(ctx, id)
	check(err)
	watch()
	check(rt.Remove(ctx, id)) // while it runs
	if got := <-changed; got.err == nil && got.c.State == container.StateRunning {
		t.Errorf("removed: %+v", got.c)
	}
	if _, err := rt.Inspect(ctx, id); !errdefs.IsNotFound(err) {
		t.Errorf("removed: %v", err)
	}
}
