package hosts

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rawAPI speaks plain HTTP with a machine's engine, as no client does.
type rawAPI struct {
	f       *fleet
	machine string
	http    *http.Client
}

func (f *fleet) api(machine string) *rawAPI {
	sock := filepath.Join(f.root, machine, "skep.sock")
	return &rawAPI{f: f, machine: machine, http: &http.Client{Timeout: cmdTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sock)
		},
	}}}
}

func (a *rawAPI) send(method, path string, body io.Reader, header ...string) (int, []byte) {
	a.f.t.Helper()
	req, err := http.NewRequest(method, "http://d"+path, body)
	if err != nil {
		a.f.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := a.http.Do(req)
	if err != nil {
		a.f.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		a.f.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, out
}

// refused sends a request that must be answered with code and these words.
func (a *rawAPI) refused(code int, words, method, path, body string, header ...string) {
	a.f.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	got, raw := a.send(method, path, r, header...)
	var e struct{ Message string }
	if err := json.Unmarshal(raw, &e); err != nil || got != code || !strings.Contains(e.Message, words) || len(e.Message) > 8<<10 {
		a.f.t.Errorf("%s %.120s %.120s\ngot  %d %.400s\nwant %d %s", method, path, body, got, raw, code, words)
	}
}

// seen is all that the machine shows; what is refused must not change it.
func (a *rawAPI) seen() string {
	a.f.t.Helper()
	var all []string
	for _, path := range []string{"/swarm", "/services", "/tasks", "/networks", "/secrets", "/configs", "/containers/json?all=1", "/volumes", "/images/json?all=1"} {
		code, raw := a.send("GET", path, nil)
		if code != 200 {
			all = append(all, fmt.Sprint(path, " ", code))
			continue
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			a.f.t.Fatal(path, err)
		}
		raw, _ = json.Marshal(still(v))
		all = append(all, path+" "+string(raw))
	}
	return strings.Join(all, "\n")
}

// still leaves out what time alone changes.
func still(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "Status") // of a container: up for so long; of a task: since
		for k := range v {
			v[k] = still(v[k])
		}
	case []any:
		for i := range v {
			v[i] = still(v[i])
		}
	}
	return v
}

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

// TestBadInput sends a running swarm what nobody should. Each thing is refused
// with the right status and a sentence, changes nothing, and ends no daemon.
func TestBadInput(t *testing.T) {
	f := newFleet(t, "m1", "w1", "x1", "o1")
	f.swarm([]string{"m1"}, []string{"w1"})
	f.do("o1", "swarm init --advertise-addr eth0")
	f.do("m1", "network create --driver overlay --attachable ovl")
	f.do("m1", "service create --name web --no-resolve-image --replicas 2 --publish 8080:80 skep/whoami")
	f.running("m1", "web", 2)
	f.do("m1", "run -d --name box skep/whoami")
	pid := daemons(f)

	t.Run("requests", func(t *testing.T) { badRequests(f.in(t)) })
	t.Run("bent", func(t *testing.T) { bentServices(f.in(t)) })
	t.Run("names", func(t *testing.T) { badNames(f.in(t)) })
	t.Run("archives", func(t *testing.T) { badArchives(f.in(t)) })
	t.Run("join", func(t *testing.T) { badJoins(f.in(t)) })
	t.Run("ports", func(t *testing.T) { badPeers(f.in(t)) })
	t.Run("secrecy", func(t *testing.T) { secrecy(f.in(t)) })

	if now := daemons(f); now != pid {
		t.Errorf("a daemon has ended: %s, before %s", now, pid)
	}
	f.running("m1", "web", 2)
}

// daemons are the daemons' process numbers.
func daemons(f *fleet) string {
	var all []string
	for _, m := range []string{"m1", "w1", "x1", "o1"} {
		raw, err := os.ReadFile(filepath.Join(f.root, m, "machine.json"))
		if err != nil {
			f.t.Fatal(err)
		}
		_, info := f.api(m).send("GET", "/info", nil)
		var v struct{ ID string }
		if err := json.Unmarshal(info, &v); err != nil || v.ID == "" {
			f.t.Errorf("%s does not answer: %s", m, info)
		}
		log, _ := os.ReadFile(filepath.Join(f.root, m, "daemon.log"))
		all = append(all, fmt.Sprintf("%s %s panics %d", v.ID, raw, bytes.Count(log, []byte("panic"))))
	}
	return strings.Join(all, "\n")
}

func badRequests(f *fleet) {
	a := f.api("m1")
	before := a.seen()
	_, raw := a.send("GET", "/services/web", nil)
	var web struct {
		ID      string
		Version struct{ Index uint64 }
		Spec    json.RawMessage
	}
	if err := json.Unmarshal(raw, &web); err != nil {
		f.t.Fatal(err)
	}
	spec := func(change string) string {
		return `{"Name":"bad","TaskTemplate":{"ContainerSpec":{"Image":"skep/whoami"}},` + change + `}`
	}
	with := func(container string) string {
		return `{"Name":"bad","TaskTemplate":{"ContainerSpec":{"Image":"skep/whoami",` + container + `}}}`
	}
	update := fmt.Sprintf("/services/web/update?version=%d", web.Version.Index)
	for _, c := range []struct {
		code              int
		words, path, body string
	}{
		{400, "ContainerSpec: image reference must be provided", "/services/create", `{"Name":"bad","TaskTemplate":{"ContainerSpec":{}}}`},
		{400, `"UPPER/../x" is not a valid repository/tag`, "/services/create", `{"Name":"bad","TaskTemplate":{"ContainerSpec":{"Image":"UPPER/../x"}}}`},
		{400, "port '8080' is already in use by service 'web'", "/services/create", spec(`"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080}]}`)},
		{400, "the port 70000:80 is not between 1 and 65535", "/services/create", spec(`"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":70000}]}`)},
		{400, "invalid JSON", "/services/create", spec(`"EndpointSpec":{"Ports":[{"TargetPort":-80}]}`)},
		{400, "Number of replicas must not be larger than 1000000", "/services/create", spec(`"Mode":{"Replicated":{"Replicas":1000000000000000000}}`)},
		{500, "constraint expected one operator from ==, !=", "/services/create", `{"Name":"bad","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Placement":{"Constraints":["node.role=manager"]}}}`},
		{404, "network nosuch not found", "/services/create", `{"Name":"bad","TaskTemplate":{"ContainerSpec":{"Image":"a"},"Networks":[{"Target":"nosuch"}]}}`},
		{400, "malformed ulimit", "/services/create", with(`"Ulimits":[null]`)},
		{400, "malformed secret reference", "/services/create", with(`"Secrets":[null]`)},
		{400, "malformed config reference", "/services/create", with(`"Configs":[null]`)},
		{400, "holds a control character", "/services/create", with(`"Hostname":"a\nb"`)},
		{400, "may hold a zero byte", "/services/create", with(`"Env":["A=\u0000"]`)},
		{400, "the service's spec is larger than", "/services/create", with(`"Labels":{"a":` + quote(strings.Repeat("x", 2<<20)) + `}`)},
		{400, "request body is larger than", "/services/create", with(`"Labels":{"a":` + quote(strings.Repeat("x", 10<<20)) + `}`)},
		{409, "service web already exists", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`},
		{400, "malformed ulimit", update, `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a","Ulimits":[null]}},"Mode":{"Replicated":{"Replicas":2}}}`},
		{400, "the request body is null", update, `null`},
		{500, "update out of sequence", "/services/web/update?version=1", string(web.Spec)},
		{404, "service nosuch not found", "/services/nosuch/update?version=1", string(web.Spec)},
		{400, "the request body is null", "/containers/create", `null`},
		{400, "config cannot be empty", "/containers/create", `{}`},
		{404, "No such image: nosuch:latest", "/containers/create", `{"Image":"nosuch"}`},
		{400, "a ulimit is null", "/containers/create", `{"Image":"skep/whoami","HostConfig":{"Ulimits":[null]}}`},
		{400, "a block device limit is null", "/containers/create", `{"Image":"skep/whoami","HostConfig":{"BlkioDeviceReadBps":[null]}}`},
		{400, "unknown capability", "/containers/create", `{"Image":"skep/whoami","HostConfig":{"CapAdd":["FLY"]}}`},
		{400, "Minimum memory limit allowed is 6MB", "/containers/create", `{"Image":"skep/whoami","HostConfig":{"Memory":-1}}`},
		{400, "invalid JSON", "/containers/create", `{"Image":"skep/whoami","HostConfig":{"PortBindings":{"99999/tcp":[{}]}}}`},
		{400, "No exec command specified", "/containers/box/exec", `{}`},
		{404, "No such container: nosuch", "/containers/nosuch/exec", `{"Cmd":["x"]}`},
		{404, "nosuch", "/exec/nosuch/start", `{}`},
		{404, "No such container: nosuch", "/containers/nosuch/start", ""},
		{400, "Invalid subnet 10.0.0.0/99", "/networks/create", `{"Name":"bad","IPAM":{"Config":[{"Subnet":"10.0.0.0/99"}]}}`},
		{404, "could not find plugin", "/networks/create", `{"Name":"bad","Driver":"nosuch"}`},
		{403, "operation is not permitted on predefined host network", "/networks/create", `{"Name":"host"}`},
		{404, "plugin \"nosuch\" not found", "/volumes/create", `{"Name":"bad","Driver":"nosuch"}`},
		{400, "secret data must be larger than 0 and less than 512000 bytes", "/secrets/create", `{"Name":"bad"}`},
		{400, "secret data must be larger than 0 and less than 512000 bytes", "/secrets/create", `{"Name":"bad","Data":` + quote(strings.Repeat("QUFB", 200_000)) + `}`},
		{400, "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed", "/configs/create", `{"Name":"../bad","Data":"eA=="}`},
		{400, "config data must be larger than 0 and less than", "/configs/create", `{"Name":"bad","Data":""}`},
		{503, "This node is already part of a swarm", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`},
		{400, "the request body is null", "/swarm/update?version=1", `null`},
		{500, "update out of sequence", "/swarm/update?version=99999999", `{"Name":"default"}`},
	} {
		a.refused(c.code, c.words, "POST", c.path, c.body)
	}
	a.refused(400, "client version 1.12 is too old", "GET", "/v1.12/containers/json", "")
	a.refused(400, "client version 9.1 is too new", "GET", "/v9.1/containers/json", "")
	a.refused(400, "unsupported Content-Type header (text/plain)", "POST", "/services/create", "{}", "Content-Type", "text/plain")
	a.refused(400, "repository name must not be more than 255 characters", "GET", "/images/"+strings.Repeat("x/", 2000)+"/json", "")
	if after := a.seen(); after != before {
		f.t.Errorf("what was refused has changed:\n%s\n--- before\n%s", after, before)
	}
}

// bentServices runs services that pass the managers and that nodes cannot run:
// the task fails, the node does not.
func bentServices(f *fleet) {
	a := f.api("m1")
	for i, c := range []string{
		`"StopSignal":"SIGNONE"`, `"Dir":"../../etc"`, `"User":"../../etc/passwd"`, `"CapabilityAdd":["FLY"]`, `"Sysctls":{"../x":"1"}`,
		`"Mounts":[{"Type":"volume","Source":"../../x","Target":"../y"}]`, `"Mounts":[{"Type":"volume","Source":"v","Target":"/v","VolumeOptions":{"Subpath":"../../../etc"}}]`,
		`"Env":["A={{range 1000000000000}}{{end}}"]`, `"Hostname":"{{printf \"%1000000d\" 1}}"`, `"Hostname":` + quote(strings.Repeat("x", 5000)),
		`"Ulimits":[{"Name":"none","Soft":1,"Hard":1}]`, `"DNSConfig":{"Search":["a\nnameserver 6.6.6.6"]}`, `"Hosts":["1.2.3.4 a\u0000b"]`,
		`"OomScoreAdj":1000000`, `"Privileges":{"Seccomp":{"Mode":"custom","Profile":"eA=="}}`,
	} {
		name := fmt.Sprint("bent", i)
		code, raw := a.send("POST", "/services/create", strings.NewReader(fmt.Sprintf(
			`{"Name":%q,"TaskTemplate":{"ContainerSpec":{"Image":"skep/whoami",%s},"RestartPolicy":{"Condition":"none"},"Placement":{"Constraints":["node.hostname==w1"]}}}`, name, c)))
		if code != 201 {
			if code != 400 {
				f.t.Errorf("%s: %d %s", c, code, raw)
			}
			continue
		}
		f.eventually(c, func() string {
			for _, t := range f.tasks("m1", name) {
				if strings.HasPrefix(t.state, "Rejected") || strings.HasPrefix(t.state, "Failed") {
					if t.err == "" || strings.Contains(t.err, "defect") {
						f.t.Errorf("%s: %q", c, t.err)
					}
					return ""
				}
			}
			return fmt.Sprintf("%+v", f.tasks("m1", name))
		})
		f.do("m1", "service rm "+name)
	}
	f.eventually("their tasks are gone", func() string {
		_, raw := a.send("GET", "/tasks", nil)
		var ts []any
		if err := json.Unmarshal(raw, &ts); err != nil || len(ts) != 2 {
			return fmt.Sprintf("%d tasks, %v", len(ts), err)
		}
		return ""
	})
}

// badNames tries to leave the data root by names of things.
func badNames(f *fleet) {
	a := f.api("m1")
	before := a.seen()
	for _, name := range []string{"../../../etc/passwd", "a/../../b", "a\nb", "a\x00b", "-rf", "%2e%2e", strings.Repeat("x", 300), "é", "${x}", "$(id)", "a b"} {
		q := url.QueryEscape(name)
		p := url.PathEscape(name)
		for _, c := range []struct{ method, path, body string }{
			{"POST", "/containers/create?name=" + q, `{"Image":"skep/whoami"}`},
			{"POST", "/containers/box/rename?name=" + q, ""},
			{"POST", "/volumes/create", `{"Name":` + quote(name) + `}`},
			{"POST", "/secrets/create", `{"Name":` + quote(name) + `,"Data":"eA=="}`},
			{"POST", "/configs/create", `{"Name":` + quote(name) + `,"Data":"eA=="}`},
			{"POST", "/services/create", `{"Name":` + quote(name) + `,"TaskTemplate":{"ContainerSpec":{"Image":"a"}}}`},
			{"POST", "/networks/create", `{"Driver":"overlay","Name":` + quote(name) + `}`},
			{"POST", "/images/skep/whoami/tag?repo=" + q + "&tag=" + q, ""},
			{"DELETE", "/volumes/" + p, ""}, {"GET", "/volumes/" + p, ""}, {"DELETE", "/containers/" + p + "?force=1&v=1", ""},
			{"DELETE", "/networks/" + p, ""}, {"DELETE", "/secrets/" + p, ""}, {"DELETE", "/services/" + p, ""}, {"DELETE", "/images/" + p, ""},
			{"GET", "/exec/" + p + "/json", ""}, {"GET", "/containers/" + p + "/logs?stdout=1", ""}, {"GET", "/images/get?names=" + q, ""},
		} {
			var body io.Reader
			if c.body != "" {
				body = strings.NewReader(c.body)
			}
			code, raw := a.send(c.method, c.path, body)
			if len(name) == 300 && code < 300 && strings.HasPrefix(c.path, "/containers/") {
				// Docker takes names of any length.
				if strings.Contains(c.path, "rename") {
					f.do("m1", "rename "+name+" box")
				} else if c.method == "POST" {
					a.send("DELETE", "/containers/"+p, nil)
				}
				continue
			}
			if code < 300 || code >= 500 && code != 501 {
				f.t.Errorf("%s %s %s: %d %.200s", c.method, c.path, c.body, code, raw)
			}
		}
	}
	if after := a.seen(); after != before {
		f.t.Errorf("what was refused has changed:\n%s\n--- before\n%s", after, before)
	}
	for _, name := range []string{"../x", "a/b", "..", "", "a b", strings.Repeat("x", 300)} {
		if r := f.exec(nil, skepBin(), "machine", "create", name); r.exit == 0 {
			f.t.Errorf("a machine was named %q", name)
		}
	}
}

// badArchives loads and imports what would write outside of the image.
func badArchives(f *fleet) {
	a := f.api("m1")
	mark := filepath.Join(f.root, "escaped")
	var evil bytes.Buffer
	tw := tar.NewWriter(&evil)
	up := strings.Repeat("../", 30)
	for _, h := range []tar.Header{
		{Name: up + mark[1:], Typeflag: tar.TypeReg, Size: 1, Mode: 0o666},
		{Name: mark + "-abs", Typeflag: tar.TypeReg, Size: 1, Mode: 0o666},
		{Name: "out", Typeflag: tar.TypeSymlink, Linkname: f.root},
		{Name: "out/escaped-link", Typeflag: tar.TypeReg, Size: 1, Mode: 0o666},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: up + "etc/passwd"},
		{Name: "etc", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
	} {
		h.Format = tar.FormatPAX
		if err := tw.WriteHeader(&h); err != nil {
			f.t.Fatal(err)
		}
		if h.Size > 0 {
			tw.Write([]byte("x"))
		}
	}
	tw.Close()
	code, raw := a.send("POST", "/images/create?fromSrc=-&repo=evil&tag=1", bytes.NewReader(evil.Bytes()), "Content-Type", "application/x-tar")
	if code != 400 || !bytes.Contains(raw, []byte("the archive cannot be unpacked")) {
		f.t.Errorf("import of an archive that escapes: %d %.300s", code, raw)
	}
	junk := make([]byte, 1<<16)
	rand.Read(junk)
	for name, b := range map[string][]byte{
		"junk": junk, "empty": {}, "zeros": make([]byte, 1<<16), "cut": evil.Bytes()[:1500], "escaping": evil.Bytes(),
		"manifest":      tarOf("manifest.json", `[{"Config":"../../../etc/passwd","RepoTags":["x:1"],"Layers":["../../etc/shadow"]}]`),
		"null manifest": tarOf("manifest.json", `[null]`),
		"bad names":     tarOf("manifest.json", `[{"Config":"c.json","RepoTags":["../../x"],"Layers":[]}]`, "c.json", `{}`),
		"index":         tarOf("oci-layout", `{"imageLayoutVersion":"1.0.0"}`, "index.json", `{"manifests":[{"digest":"sha256:../../../etc/passwd","size":-1}]}`),
		"null index":    tarOf("oci-layout", `{"imageLayoutVersion":"1.0.0"}`, "index.json", `null`),
	} {
		code, raw := a.send("POST", "/images/load", bytes.NewReader(b), "Content-Type", "application/x-tar")
		if code >= 500 || code == 200 && !bytes.Contains(raw, []byte("error")) && name != "null index" {
			f.t.Errorf("load of %s: %d %.300s", name, code, raw)
		}
		f.t.Logf("load of %s: %d %.200s", name, code, raw)
	}
	left, _ := filepath.Glob(mark + "*")
	if len(left) > 0 {
		f.t.Errorf("archives have written outside of their images: %v", left)
	}
	a.refused(501, "importing an image from an address is not built yet", "POST", "/images/create?fromSrc=file:///etc/passwd", "")
}

func tarOf(pairs ...string) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for i := 0; i+1 < len(pairs); i += 2 {
		tw.WriteHeader(&tar.Header{Name: pairs[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(pairs[i+1]))})
		io.WriteString(tw, pairs[i+1])
	}
	tw.Close()
	return b.Bytes()
}

// badJoins are all the ways of not getting into a swarm.
func badJoins(f *fleet) {
	token := f.do("m1", "swarm join-token -q worker")
	other := f.do("o1", "swarm join-token -q worker")
	lead := f.ip("m1") + ":2377"
	in := func() string { return f.do("x1", "info --format {{.Swarm.LocalNodeState}}{{.Swarm.NodeID}}") }
	nodes := f.do("m1", "node ls -q")
	wrong := token[:len(token)-3] + "aaa"
	if wrong == token {
		wrong = token[:len(token)-3] + "bbb"
	}
	x := f.api("x1")
	join := func(token, addr string) string {
		return fmt.Sprintf(`{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"eth0","RemoteAddrs":[%q],"JoinToken":%q}`, addr, token)
	}
	for _, c := range []struct {
		code        int
		words, body string
	}{
		{400, "invalid join token", join("foo", lead)},
		{400, "invalid join token", join(token+"\n", lead)},
		{400, "invalid join token", join(strings.Repeat("SWMTKN-", 10_000), lead)},
		{400, "A valid join token is necessary to join this cluster", join("", lead)},
		{400, "A valid join token is necessary to join this cluster", join(wrong, lead)},
		{400, "remote CA does not match fingerprint", join(other, lead)},
		{503, "connection refused", join(token, f.ip("m1")+":1")},
		{503, "connection refused", join(token, f.ip("x1"))},
		{503, "Timeout was reached before node joined", join(token, lead[:strings.LastIndexByte(lead, '.')]+".250:2377")},
		{400, "must be an address or a host's name", join(token, "a:b:c")},
		{400, "must be an address or a host's name", join(token, "10.0.0.1:99999")},
		{400, "at least 1 RemoteAddr is required to join", fmt.Sprintf(`{"AdvertiseAddr":"eth0","RemoteAddrs":[],"JoinToken":%q}`, token)},
		{400, "advertise address must be", strings.Replace(join(token, lead), `"eth0"`, `"nosuch0"`, 1)},
		{400, "is not an address of this host", strings.Replace(join(token, lead), `"eth0"`, `"6.6.6.6"`, 1)},
		{400, "Availability", strings.Replace(join(token, lead), `{`, `{"Availability":"maybe",`, 1)},
	} {
		x.refused(c.code, c.words, "POST", "/swarm/join", c.body)
		if s := in(); s != "inactive" {
			f.t.Fatalf("after %s: %s", c.body, s)
		}
	}
	f.api("w1").refused(503, "This node is already part of a swarm", "POST", "/swarm/join", join(token, lead))
	if now := f.do("m1", "node ls -q"); now != nodes {
		f.t.Errorf("nodes were\n%s\nnow\n%s", nodes, now)
	}
	if left, _ := filepath.Glob(filepath.Join(f.root, "x1", "data", "swarm", "*")); len(left) > 0 {
		f.t.Errorf("left behind: %v", left)
	}
	// A node that was removed does not come back with its old certificate.
	f.do("x1", "swarm join --advertise-addr eth0 --token "+token+" "+lead)
	id := f.do("x1", "info --format {{.Swarm.NodeID}}")
	f.do("m1", "node rm --force "+id)
	f.eventually("a removed node is told so", func() string {
		_, raw := x.send("GET", "/info", nil)
		var v struct {
			Swarm struct{ LocalNodeState, Error string }
		}
		if err := json.Unmarshal(raw, &v); err != nil || v.Swarm.LocalNodeState == "active" && v.Swarm.Error == "" {
			return fmt.Sprintf("%v %+v", err, v)
		}
		f.t.Logf("a removed node says %+v", v)
		return ""
	})
	if r := f.try("m1", "node inspect "+id); r.exit == 0 {
		f.t.Error("a removed node is back")
	}
	f.do("x1", "swarm leave --force")
}

// badPeers sends the cluster port and the gossip port what peers do not.
func badPeers(f *fleet) {
	ip := f.ip("m1")
	junk := make([]byte, 32<<10)
	rand.Read(junk)
	for range 20 {
		for _, b := range [][]byte{junk, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), {0x16, 3, 1, 0xff, 0xff}, make([]byte, 4096)} {
			for _, port := range []string{":2377", ":7946"} {
				c, err := net.DialTimeout("tcp", ip+port, 5*time.Second)
				if err != nil {
					f.t.Fatal(err)
				}
				c.Write(b)
				c.Close()
			}
			c, err := net.Dial("udp", ip+":7946")
			if err != nil {
				f.t.Fatal(err)
			}
			for n := 1; n < len(b) && n < 1400; n *= 3 {
				c.Write(b[:n])
			}
			c.Close()
		}
	}
	// Many who begin a handshake and do not go on; the swarm goes on beside them.
	var slow []net.Conn
	for range 300 {
		c, err := net.DialTimeout("tcp", ip+":2377", 5*time.Second)
		if err != nil {
			f.t.Fatal(err)
		}
		c.Write([]byte{0x16})
		slow = append(slow, c)
	}
	f.do("m1", "service scale -d web=2")
	if now := f.do("w1", "info --format {{.Swarm.LocalNodeState}}"); now != "active" {
		f.t.Errorf("w1 is %s", now)
	}
	for _, c := range slow {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.ReadAll(c); err != nil && os.IsTimeout(err) {
			f.t.Error("a handshake without end is waited for")
		}
		c.Close()
	}
	// TLS without a certificate does not get as far as Raft.
	c, err := tls.Dial("tcp", ip+":2377", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"skep-raft", "raft"}})
	if err == nil {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
			f.t.Errorf("Raft without a certificate: %d bytes, %v", n, err)
		}
		c.Close()
	}
}
