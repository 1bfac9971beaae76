package engine

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func TestLifeCycle(t *testing.T) {
	r := newRig(t)
	id := r.run([]string{"sh", "-c", "echo out; echo err >&2; exit 7"}, func(req *CreateRequest) { req.Name = "web" })
	if code := r.end(id); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	insp := r.inspect("web")
	if insp.State.Status != container.StateExited || insp.State.Running || insp.State.ExitCode != 7 || insp.Name != "/web" || insp.ID != id {
		t.Errorf("inspect: %+v", insp.State)
	}
	if got := r.logs(id); !strings.Contains(got, "out\n") || !strings.Contains(got, "err\n") {
		t.Errorf("logs %q", got)
	}
	// It can be started again, and logs go on.
	r.must(r.Start(t.Context(), id[:8]))
	r.end(id)
	if got := strings.Count(r.logs(id), "out\n"); got != 2 {
		t.Errorf("%d lines after the second run, want 2", got)
	}
	_, err := r.tryCreate(nil, func(req *CreateRequest) { req.Name = "web" })
	want := `Conflict. The container name "/web" is already in use by container "` + id + `". You have to remove (or rename) that container to be able to reuse that name.`
	if err == nil || err.Error() != want || !errdefs.IsConflict(err) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	r.must(r.Remove(t.Context(), "web", RemoveOptions{}))
	if _, err := r.Inspect(t.Context(), id, false); !errdefs.IsNotFound(err) || err.Error() != "No such container: "+id {
		t.Errorf("after removal: %v", err)
	}
}
