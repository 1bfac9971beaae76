// Package skep holds the rules of the house as tests: which room may know which.
package skep

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/skep-dev/skep/"

var (
	managerSide = []string{"store", "raftlog", "leader", "control", "services", "rollout", "allocate", "schedule", "reap"}
	loops       = []string{"services", "rollout", "allocate", "schedule", "reap"}
	nodeSide    = []string{"agent", "engine", "image", "volume", "network"}
)

// rules says what each room must not reach, directly or through others of our
// rooms, and why.
var rules = []struct {
	rooms  []string
	banned []string
	why    string
}{
	{loops, loops, "loops meet only in the store: one that calls another cannot be planned, tested or restarted alone"},
	{loops, []string{"raftlog", "leader", "control", "dispatch", "httpapi"}, "loops import store and cluster: they are pure plans with a small loop around them"},
	{nodeSide, []string{"store", "raftlog", "leader", "control"}, "a node knows only what it was told; it never reads replicated state"},
	{managerSide, []string{"engine", "network", "image", "volume", "agent"}, "managers decide, nodes do: a manager must run without an engine"},
	{[]string{"cli"}, []string{"engine", "network", "image", "volume", "agent", "store", "raftlog", "control", "daemon", "machine", "cluster"}, "the command line has no private door: what it can do, any client of the Engine API can do"},
	{[]string{"machine"}, append(slices.Clone(managerSide), nodeSide...), "a machine knows the daemon only as a program that it starts"},
}

// pure lists what plans and the store must not import, and why.
var pure = map[string]string{
	"math/rand":    "randomness would make managers disagree",
	"math/rand/v2": "randomness would make managers disagree",
	"crypto/rand":  "randomness would make managers disagree",
	"os":           "plans and the store do no I/O",
	"net":          "plans and the store do no I/O",
	"net/http":     "plans and the store do no I/O",
}

// imports returns what the non-test files of each of our packages import, by
// the package's path below the module.
func imports(t *testing.T, keep func(file string) bool) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := filepath.WalkDir("internal", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") || !keep(p) {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(p))
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			all[pkg] = append(all[pkg], strings.TrimPrefix(name, module))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// room is the first folder below internal.
func room(pkg string) string {
	r, ok := strings.CutPrefix(pkg, "internal/")
	if !ok {
		return ""
	}
	r, _, _ = strings.Cut(r, "/")
	return r
}

func TestRoomsKeepToTheirNeighbours(t *testing.T) {
	all := imports(t, func(string) bool { return true })
	if len(all) < 5 {
		t.Fatalf("found only %d packages: the walk is broken", len(all))
	}
	// reach: room → room → one import chain that leads there.
	var visit func(from, pkg string, chain []string, seen map[string]bool, found func(string, []string))
	visit = func(from, pkg string, chain []string, seen map[string]bool, found func(string, []string)) {
		for _, i := range all[pkg] {
			if room(i) == "" || seen[i] {
				continue
			}
			seen[i] = true
			next := append(slices.Clone(chain), i)
			if room(i) != from {
				found(room(i), next)
			}
			visit(from, i, next, seen, found)
		}
	}
	for pkg := range all {
		from := room(pkg)
		visit(from, pkg, []string{pkg}, map[string]bool{}, func(to string, chain []string) {
			for _, r := range rules {
				if slices.Contains(r.rooms, from) && slices.Contains(r.banned, to) {
					t.Errorf("%s must not reach %s: %s (%s)", from, to, r.why, strings.Join(chain, " → "))
				}
			}
		})
	}
}

func TestClusterKnowsOnlyTheAPITypes(t *testing.T) {
	for _, i := range imports(t, func(string) bool { return true })["internal/cluster"] {
		std := !strings.Contains(strings.SplitN(i, "/", 2)[0], ".")
		if !std && !strings.HasPrefix(i, "github.com/moby/moby/api/types/") && i != "github.com/containerd/errdefs" {
			t.Errorf("cluster imports %s: the nouns may know the standard library, the Engine API's types and the error kinds only", i)
		}
	}
}

func TestPlansAndStoreArePure(t *testing.T) {
	for pkg, is := range imports(t, func(f string) bool {
		return path.Base(f) == "plan.go" || strings.HasPrefix(filepath.ToSlash(f), "internal/store/")
	}) {
		for _, i := range is {
			if why, bad := pure[i]; bad {
				t.Errorf("%s imports %s: %s", pkg, i, why)
			}
		}
	}
	for _, f := range pureFiles(t) {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range []string{"time.Now(", "time.Since(", "time.Until(", "time.After(", "time.Sleep("} {
			if strings.Contains(string(src), call) {
				t.Errorf("%s calls %s): time comes in as an argument or in the log entry", f, call)
			}
		}
	}
}

func pureFiles(t *testing.T) (files []string) {
	t.Helper()
	err := filepath.WalkDir("internal", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !strings.HasSuffix(p, "_test.go") && strings.HasSuffix(p, ".go") &&
			(filepath.Base(p) == "plan.go" || strings.HasPrefix(p, "internal/store/")) {
			files = append(files, p)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Fatalf("no plan and no store found: %v", err)
	}
	return files
}
