package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const manager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`

// daemonOf answers each "METHOD /path" with its body, and 503 with Docker's own
// words to everything else.
func daemonOf(t *testing.T, answers map[string]string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.56")
		w.Header().Set("Ostype", "linux")
		_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
		body, ok := answers[r.Method+" /"+path]
		switch {
		case strings.HasSuffix(r.URL.Path, "/_ping"):
		case ok:
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, body)
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, `{"message":%q}`, manager)
		}
	}))
	t.Cleanup(srv.Close)
	return "tcp://" + srv.Listener.Addr().String()
}

type result struct {
	code     int
	out, err string
}

// typed runs a command line in an environment of its own.
func typed(t *testing.T, face string, env map[string]string, args ...string) result {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	for _, k := range []string{"DOCKER_HOST", "SKEP_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY"} {
		t.Setenv(k, env[k])
	}
	daemon := &cobra.Command{Use: "daemon [OPTIONS]", Short: "Run the daemon", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintln(cmd.OutOrStdout(), "daemon runs")
		return nil
	}}
	daemon.Flags().Bool("debug", false, "Log more")
	var out, errs bytes.Buffer
	code := Invocation{
		Face: face, Args: args, Version: "1.2.3", Commit: "abc", Stdin: io.NopCloser(strings.NewReader("")), Stdout: &out, Stderr: &errs,
		Extra: []*cobra.Command{daemon},
	}.Run(t.Context())
	return result{code, out.String(), errs.String()}
}

func TestErrorsAndExitCodes(t *testing.T) {
	host := daemonOf(t, nil)
	for _, c := range []struct {
		face string
		args []string
		code int
		err  string
	}{
		{"skep", []string{"nosuch"}, 1, "skep: unknown command: skep nosuch\n\nRun 'skep --help' for more information\n"},
		{"docker", []string{"nosuch"}, 1, "docker: unknown command: docker nosuch\n\nRun 'docker --help' for more information\n"},
		{"skep", []string{"run", "--nosuch"}, 125, "unknown flag: --nosuch\n\nUsage:  skep run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'skep run --help' for more information\n"},
		{"skep", []string{"--nosuch"}, 125, "unknown flag: --nosuch\n\nUsage:  skep [OPTIONS] COMMAND [ARG...]\n\nRun 'skep --help' for more information\n"},
		{"skep", []string{"node", "ls"}, 1, "Error response from daemon: " + strings.ReplaceAll(manager, "docker", "skep") + "\n"},
		{"docker", []string{"node", "ls"}, 1, "Error response from daemon: " + manager + "\n"},
		{"skep", []string{"service", "scale"}, 1, "skep: 'skep service scale' requires at least 1 argument\n\nUsage:  skep service scale SERVICE=REPLICAS [SERVICE=REPLICAS...]\n\nSee 'skep service scale --help' for more information\n"},
		{"skep", []string{"run", "busybox"}, 125, "skep: Error response from daemon: " + strings.ReplaceAll(manager, "docker", "skep") + "\n\nRun 'skep run --help' for more information\n"},
		{"skep", []string{"buildx"}, 1, "skep: unknown command: skep buildx\n\nRun 'skep --help' for more information\n"},
		{"skep", []string{"plugin", "ls"}, 1, "skep: unknown command: skep plugin\n\nRun 'skep --help' for more information\n"},
	} {
		t.Run(c.face+" "+strings.Join(c.args, " "), func(t *testing.T) {
			got := typed(t, c.face, map[string]string{"DOCKER_HOST": host}, c.args...)
			if got.code != c.code || got.err != c.err || got.out != "" {
				t.Errorf("got %d %q (out %q)\nwant %d %q", got.code, got.err, got.out, c.code, c.err)
			}
		})
	}
}

func TestHintsNameTheFace(t *testing.T) {
	host := daemonOf(t, map[string]string{
		"POST /swarm/init": `"n0"`,
		"GET /nodes/n0":    `{"ID":"n0","ManagerStatus":{"Addr":"10.0.0.1:2377"}}`,
		"GET /swarm":       `{"JoinTokens":{"Worker":"SWMTKN-1-w","Manager":"SWMTKN-1-m"}}`,
	})
	for _, face := range []string{"skep", "docker"} {
		got := typed(t, face, map[string]string{"DOCKER_HOST": host}, "swarm", "init")
		want := "Swarm initialized: current node (n0) is now a manager.\n\n" +
			"To add a worker to this swarm, run the following command:\n\n    " + face + " swarm join --token SWMTKN-1-w 10.0.0.1:2377\n\n" +
			"To add a manager to this swarm, run '" + face + " swarm join-token manager' and follow the instructions.\n"
		if got.code != 0 || got.out != want {
			t.Errorf("%s: got %d %q %q", face, got.code, got.out, got.err)
		}
	}
}

func TestContainerOutputIsNotTouched(t *testing.T) {
	line := "Use `docker service ps x` or Use \"docker swarm init\" or \"docker swarm join\"\n"
	frame := append([]byte{1, 0, 0, 0, 0, 0, 0, byte(len(line))}, line...)
	host := daemonOf(t, map[string]string{
		"GET /containers/c/json": `{"Id":"c","Config":{}}`, "GET /containers/c/logs": string(frame),
	})
	got := typed(t, "skep", map[string]string{"DOCKER_HOST": host}, "logs", "c")
	if got.out != line {
		t.Errorf("got %q %q", got.out, got.err)
	}
}

func TestHelp(t *testing.T) {
	got := typed(t, "skep", map[string]string{"DOCKER_HOST": daemonOf(t, nil)}, "--help")
	for _, has := range []string{"Usage:  skep [OPTIONS] COMMAND", "\n  daemon ", "\n  service ", "\n  run "} {
		if !strings.Contains(got.out, has) {
			t.Errorf("help lacks %q:\n%s", has, got.out)
		}
	}
	for _, hasNot := range []string{"Docker", "docker", "\n  plugin ", "manifest", "checkpoint"} {
		for line := range strings.Lines(got.out) {
			// Texts that speak of Docker's own things (its hub, its endpoint) stay.
			if strings.Contains(line, hasNot) && !strings.Contains(line, "Docker Hub") && !strings.Contains(line, "Dockerfile") && !strings.Contains(line, "~/.docker") &&
				!strings.Contains(line, "/root/.docker") && !strings.Contains(line, "DOCKER_HOST") {
				t.Errorf("help has %q: %s", hasNot, line)
			}
		}
	}
	got = typed(t, "skep", nil, "image", "ls", "--help")
	if !strings.Contains(got.out, "skep image ls, skep image list, skep images") {
		t.Errorf("aliases:\n%s", got.out)
	}
}

func TestWhichDaemonIsAsked(t *testing.T) {
	a := daemonOf(t, map[string]string{"GET /info": `{"Name":"a"}`})
	b := daemonOf(t, map[string]string{"GET /info": `{"Name":"b"}`})
	name := func(env map[string]string, args ...string) string {
		got := typed(t, "skep", env, append(args, "info", "--format", "{{.Name}}")...)
		return strings.TrimSpace(got.out)
	}
	if got := name(map[string]string{"SKEP_HOST": a}); got != "a" {
		t.Errorf("SKEP_HOST: %q", got)
	}
	if got := name(map[string]string{"SKEP_HOST": a, "DOCKER_HOST": b}); got != "b" {
		t.Errorf("DOCKER_HOST beside SKEP_HOST: %q", got)
	}
	if got := name(map[string]string{"SKEP_HOST": a, "DOCKER_HOST": a}, "-H", b); got != "b" {
		t.Errorf("-H: %q", got)
	}
	got := typed(t, "skep", nil, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
	if strings.TrimSpace(got.out) != DefaultHost {
		t.Errorf("default: %q %q", got.out, got.err)
	}
}

func TestVersionAndExtra(t *testing.T) {
	if got := typed(t, "skep", nil, "--version"); got.out != "skep version 1.2.3, build abc\n" {
		t.Errorf("%+v", got)
	}
	if got := typed(t, "docker", nil, "-v"); got.out != "Docker version 1.2.3, build abc\n" {
		t.Errorf("%+v", got)
	}
	if got := typed(t, "skep", nil, "daemon", "--help"); !strings.HasPrefix(got.out, "Usage:  skep daemon [OPTIONS]\n") {
		t.Errorf("%+v", got)
	}
	if got := typed(t, "skep", nil, "daemon"); got.out != "daemon runs\n" || got.code != 0 {
		t.Errorf("%+v", got)
	}
}
