package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// The Engine API in the version that the peer speaks, without a client library:
// both sides are asked the same bytes.
const apiVersion = "/v1.41"

const imageName = "127.0.0.1:1/bench:1"

// statusError is an answer of the API that is not a success.
type statusError struct {
	code    int
	message string
}

func (e statusError) Error() string { return fmt.Sprintf("%d: %s", e.code, e.message) }

// unlessBusy returns nil for what passes by itself while managers elect.
func unlessBusy(err error) error {
	if e, ok := errors.AsType[statusError](err); ok && e.code >= 500 {
		return nil
	}
	return err
}

func (h *host) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	return h.send(ctx, method, path, "application/json", body, out)
}

func (h *host) send(ctx context.Context, method, path, contentType string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://host"+apiVersion+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := h.api.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		var e struct{ Message string }
		if json.Unmarshal(b, &e) != nil {
			e.Message = string(b)
		}
		return fmt.Errorf("%s %s: %w", method, path, statusError{resp.StatusCode, e.Message})
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// load gives an image to a host.
func (h *host) load(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return h.send(ctx, "POST", "/images/load?quiet=1", "application/x-tar", f, nil)
}

func filters(kv ...string) string {
	f := map[string][]string{}
	for i := 0; i < len(kv); i += 2 {
		f[kv[i]] = append(f[kv[i]], kv[i+1])
	}
	b, _ := json.Marshal(f) // a map of strings always marshals
	return "filters=" + url.QueryEscape(string(b))
}

// service returns the spec of a service of tasks that sleep.
func service(name string, replicas uint64) swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: imageName}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
}

func (h *host) create(ctx context.Context, spec swarm.ServiceSpec) (id string, err error) {
	var resp struct{ ID string }
	err = h.call(ctx, "POST", "/services/create", spec, &resp)
	return resp.ID, err
}

// change updates a service.
func (h *host) change(ctx context.Context, id string, change func(*swarm.ServiceSpec)) error {
	var s swarm.Service
	if err := h.call(ctx, "GET", "/services/"+id, nil, &s); err != nil {
		return err
	}
	change(&s.Spec)
	return h.call(ctx, "POST", fmt.Sprintf("/services/%s/update?version=%d", id, s.Version.Index), s.Spec, nil)
}

// running waits until n tasks of a service run and no other number is wanted.
func (h *host) running(ctx context.Context, id string, n uint64) error {
	every := 50 * time.Millisecond
	if n <= 10 {
		every = 10 * time.Millisecond
	}
	return await(ctx, fmt.Sprintf("%d tasks running", n), every, func() (bool, error) {
		var s []swarm.Service
		if err := h.call(ctx, "GET", "/services?status=true&"+filters("id", id), nil, &s); err != nil {
			return false, unlessBusy(err)
		}
		if len(s) != 1 || s[0].ServiceStatus == nil {
			return false, nil
		}
		return s[0].ServiceStatus.RunningTasks == n && s[0].ServiceStatus.DesiredTasks == n, nil
	})
}

func (h *host) tasks(ctx context.Context, service string) (ts []swarm.Task, err error) {
	err = h.call(ctx, "GET", "/tasks?"+filters("service", service), nil, &ts)
	return ts, err
}

// containers counts the containers of a side's hosts, stopped ones too.
func (s *side) containers(ctx context.Context) (n int, err error) {
	for _, h := range s.hosts {
		var cs []struct{ ID string }
		if err := h.call(ctx, "GET", "/containers/json?all=1", nil, &cs); err != nil {
			return 0, err
		}
		n += len(cs)
	}
	return n, nil
}

// remove removes a service and waits until its containers are gone, down to left.
func (s *side) remove(ctx context.Context, id string, left int) error {
	if err := s.hosts[0].call(ctx, "DELETE", "/services/"+id, nil, nil); err != nil {
		return err
	}
	return s.emptied(ctx, left)
}

func (s *side) emptied(ctx context.Context, left int) error {
	return await(ctx, fmt.Sprintf("%d containers left", left), 30*time.Millisecond, func() (bool, error) {
		n, err := s.containers(ctx)
		return n <= left, err
	})
}

// network makes an attachable overlay network.
func (h *host) network(ctx context.Context, name string) error {
	return h.call(ctx, "POST", "/networks/create", map[string]any{"Name": name, "Driver": "overlay", "Attachable": true, "CheckDuplicate": true}, nil)
}
