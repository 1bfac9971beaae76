package hosts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// secrecy: keys are root's alone, and what is secret is shown nowhere.
func secrecy(f *fleet) {
	const secret, password = "s3cr3t-v4lue-xyzzy", "p4ssw0rd-plugh"
	a := f.api("m1")
	code, raw := a.send("POST", "/secrets/create", strings.NewReader(`{"Name":"sec","Data":"czNjcjN0LXY0bHVlLXh5enp5"}`))
	var made struct{ ID string }
	if json.Unmarshal(raw, &made); code != 201 {
		f.t.Fatal(code, string(raw))
	}
	auth := "eyJ1c2VybmFtZSI6InUiLCJwYXNzd29yZCI6InA0c3N3MHJkLXBsdWdoIn0=" // {"username":"u","password":"p4ssw0rd-plugh"}
	code, raw = a.send("POST", "/services/create", strings.NewReader(`{"Name":"sec","TaskTemplate":{"ContainerSpec":{"Image":"skep/whoami",
		"Secrets":[{"SecretID":"`+made.ID+`","SecretName":"sec","File":{"Name":"f","Mode":292}}]},"Placement":{"Constraints":["node.hostname==w1"]}}}`), "X-Registry-Auth", auth)
	if code != 201 {
		f.t.Fatal(code, string(raw))
	}
	f.running("m1", "sec", 1)
	for _, m := range []string{"m1", "w1"} {
		api := f.api(m)
		paths := []string{"/containers/json?all=1", "/info", "/events?since=1&until=" + fmt.Sprint(time.Now().Unix()), "/volumes", "/images/json"}
		if m == "m1" {
			paths = append(paths, "/services", "/services/sec", "/services/sec?insertDefaults=1", "/tasks", "/secrets", "/secrets/sec", "/swarm", "/nodes",
				"/services/sec/logs?stdout=1&stderr=1")
		}
		_, list := api.send("GET", "/containers/json?all=1", nil)
		var cs []struct{ ID string }
		if err := json.Unmarshal(list, &cs); err != nil {
			f.t.Fatal(err)
		}
		for _, c := range cs {
			paths = append(paths, "/containers/"+c.ID+"/json", "/containers/"+c.ID+"/logs?stdout=1&stderr=1")
		}
		for _, p := range paths {
			_, raw := api.send("GET", p, nil)
			for _, s := range []string{secret, "czNjcjN0LXY0bHVlLXh5enp5", password, auth} {
				if bytes.Contains(raw, []byte(s)) {
					f.t.Errorf("%s%s shows %q", m, p, s)
				}
			}
			if bytes.Contains(raw, []byte("PRIVATE KEY")) {
				f.t.Errorf("%s%s shows a private key", m, p)
			}
		}
		log, _ := os.ReadFile(filepath.Join(f.root, m, "daemon.log"))
		for _, s := range []string{secret, password, auth, "PRIVATE KEY", "SWMTKN-1-"} {
			if bytes.Contains(log, []byte(s)) {
				f.t.Errorf("%s's log holds %q", m, s)
			}
		}
		permissions(f, m, secret)
	}
	f.do("m1", "service rm sec")
	f.eventually("the secret is let go", func() string { return f.try("m1", "secret rm sec").err })
}

// permissions checks what other users of the host could read.
func permissions(f *fleet, machine, secret string) {
	root := filepath.Join(f.root, machine)
	if st, err := os.Stat(filepath.Join(root, "skep.sock")); err != nil || st.Mode().Perm() != 0o660 {
		f.t.Errorf("the socket: %v %v", st.Mode(), err)
	}
	for _, dir := range []string{"data/swarm", "data/agent", "data/network"} {
		filepath.WalkDir(filepath.Join(root, dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				f.t.Error(err)
				return nil
			}
			st, err := d.Info()
			if err == nil && p == filepath.Join(root, dir) && st.Mode().Perm() != 0o700 {
				f.t.Errorf("%s: %v", p, st.Mode())
			}
			if err == nil && !d.IsDir() && strings.Contains(p, "certificates") && st.Mode().Perm() != 0o600 {
				f.t.Errorf("%s: %v", p, st.Mode())
			}
			if raw, err := os.ReadFile(p); err == nil && !d.IsDir() {
				// Secrets rest encrypted on managers, and on no worker's disk.
				if bytes.Contains(raw, []byte(secret)) || bytes.Contains(raw, []byte("czNjcjN0LXY0bHVlLXh5enp5")) {
					f.t.Errorf("%s holds a secret in the clear", p)
				}
			}
			return nil
		})
	}
}
