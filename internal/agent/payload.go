package agent

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/cluster"
)

// payloadDir is where the files of a task's secrets and configs are.
func (a *Agent) payloadDir(task string) string { return filepath.Join(a.cfg.RunDir, "payloads", task) }

// payload is one file that a task wants in its container.
type payload struct {
	target   string
	uid, gid string
	mode     os.FileMode
	data     []byte
}

// payloads writes a task's secrets and configs and returns their mounts.
func (a *Agent) payloads(t *cluster.WantedTask) ([]mount.Mount, error) {
	files, err := a.payloadsOf(t)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	dir := a.payloadDir(t.ID)
	if err := os.RemoveAll(dir); err != nil { // of a try that was cut off
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var mounts []mount.Mount
	for i, f := range files {
		file := filepath.Join(dir, strconv.Itoa(i))
		if err := f.write(file); err != nil {
			return nil, fmt.Errorf("%s: %w", f.target, err)
		}
		mounts = append(mounts, mount.Mount{Type: mount.TypeBind, Source: file, Target: f.target, ReadOnly: true})
	}
	return mounts, nil
}

func (f payload) write(file string) error {
	uid, err := ownerID(f.uid)
	if err != nil {
		return err
	}
	gid, err := ownerID(f.gid)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, f.data, 0o600); err != nil {
		return err
	}
	if err := os.Chown(file, uid, gid); err != nil {
		return err
	}
	return os.Chmod(file, f.mode.Perm())
}

func ownerID(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, cluster.Invalidf("owner %q is not a number", s)
	}
	return int(n), nil
}

// payloadsOf collects what the task refers to. A secret that has not come yet
// may still come.
func (a *Agent) payloadsOf(t *cluster.WantedTask) ([]payload, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []payload
	for _, ref := range t.Spec.ContainerSpec.Secrets {
		s := a.secrets[ref.SecretID]
		if s == nil {
			return nil, cluster.Unavailablef("secret %s has not reached this node yet", ref.SecretName)
		}
		if s.Spec.Templating != nil {
			return nil, cluster.NotImplementedf("secret %s: templates in secrets are not supported yet", ref.SecretName)
		}
		if ref.File == nil {
			return nil, cluster.Invalidf("secret %s: target file is missing", ref.SecretName)
		}
		f := swarm.ConfigReferenceFileTarget(*ref.File)
		all = append(all, payloadFile(f, "/run/secrets", s.Spec.Data))
	}
	for _, ref := range t.Spec.ContainerSpec.Configs {
		c := a.configs[ref.ConfigID]
		if c == nil {
			return nil, cluster.Unavailablef("config %s has not reached this node yet", ref.ConfigName)
		}
		if c.Spec.Templating != nil {
			return nil, cluster.NotImplementedf("config %s: templates in configs are not supported yet", ref.ConfigName)
		}
		if ref.File == nil {
			return nil, cluster.NotImplementedf("config %s: only configs that are files are supported", ref.ConfigName)
		}
		all = append(all, payloadFile(*ref.File, "/", c.Spec.Data))
	}
	return all, nil
}

func payloadFile(f swarm.ConfigReferenceFileTarget, dir string, data []byte) payload {
	target := f.Name
	if !path.IsAbs(target) {
		target = path.Join(dir, target)
	}
	return payload{target: target, uid: f.UID, gid: f.GID, mode: f.Mode, data: data}
}
