package engine

import (
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// initPath is where Docker shows a container its init.
const initPath = "/sbin/docker-init"

// hasInit says whether the container's command runs below an init of ours. In the
// processes of the host or of another container there is one already.
func (e *Engine) hasInit(hc *container.HostConfig) bool {
	if !hc.PidMode.IsPrivate() {
		return false
	}
	if hc.Init != nil {
		return *hc.Init
	}
	return e.cfg.Init
}

// args are those of the container's first process. Only it knows of the init:
// the record, and so inspect, keeps what the container was made to run.
func (e *Engine) args(rec record) []string {
	args := append([]string{rec.Path}, rec.Args...)
	if e.hasInit(rec.HostConfig) {
		args = append([]string{initPath, "--"}, args...)
	}
	return args
}

// initMount shows the container its init, if it has one.
func (e *Engine) initMount(hc *container.HostConfig) []specs.Mount {
	if !e.hasInit(hc) {
		return nil
	}
	return []specs.Mount{{Destination: initPath, Type: "bind", Source: e.programs.Init, Options: []string{"bind", "ro"}}}
}
