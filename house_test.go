// Package skep holds the rules of the house as tests: which room may know which,
// what each says of itself, how long things may grow. Nobody imports it.
package skep

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/skep-dev/skep/"

var (
	loops       = []string{"services", "rollout", "allocate", "schedule", "reap"}
	managerSide = append([]string{"store", "raftlog", "leader", "control", "pass"}, loops...)
	between     = []string{"dispatch", "gossip", "pki", "swarm"} // nodes and managers
	nodeSide    = []string{"agent", "engine", "image", "volume", "network", "runtime"}
)

type roomRule struct {
	name string
	may  []string
	why  string
}

// rooms says which other rooms each room's packages may import, and why no more.
// A new room begins here. "*" is every room.
var rooms = []roomRule{
	{"cluster", nil, "the nouns know nobody: everybody knows them"},
	{"version", nil, "a build's name and nothing else"},
	{"durable", nil, "it writes bytes and knows nothing of what they are"},
	{"filters", []string{"cluster"}, "it knows no noun: those who list them do"},
	{"runtime", nil, "shim and stdio live in a program of their own that must stay small"},
	{"store", []string{"cluster"}, "the tables hold the nouns; what changes them is not theirs to know"},
	{"pass", []string{"cluster", "store"}, "it drives the loops and knows none of them"},
	{"services", []string{"cluster", "store", "pass"}, "a loop is a plan over the store"},
	{"rollout", []string{"cluster", "store", "pass"}, "a loop is a plan over the store"},
	{"allocate", []string{"cluster", "store", "pass"}, "a loop is a plan over the store"},
	{"schedule", []string{"cluster", "store", "pass"}, "a loop is a plan over the store"},
	{"reap", []string{"cluster", "store", "pass"}, "a loop is a plan over the store"},
	{"leader", []string{"cluster"}, "it runs loops without knowing what they do"},
	{"raftlog", []string{"cluster", "store", "durable"}, "it never looks into what entries mean"},
	{"pki", []string{"cluster", "durable"}, "it makes and checks certificates; who may join is decided elsewhere"},
	{"gossip", []string{"cluster"}, "it carries no state, so it can carry none that is stale"},
	{"control", []string{"cluster", "filters", "store", "raftlog", "pki"}, "it says what users want, not where tasks run nor how managers talk"},
	{"dispatch", []string{"cluster", "store", "pki"}, "it carries and counts; the log, users' wishes and the node's work are given to it"},
	{"swarm", append([]string{"cluster", "store", "raftlog", "pki", "gossip", "control", "dispatch", "leader", "durable"}, loops...), "it puts the swarm together; the node's work is given to it as an Agent"},
	{"image", []string{"cluster", "filters"}, "a store of one host"},
	{"volume", []string{"cluster", "durable", "filters"}, "a store of one host"},
	{"network", []string{"cluster", "durable"}, "it builds what it is told, and is told in the nouns"},
	{"engine", []string{"cluster", "durable", "filters", "runtime", "image", "network"}, "it runs containers and knows of no swarm"},
	{"agent", []string{"cluster", "engine", "image"}, "it never talks to managers itself: a dispatch.Client feeds it"},
	{"whoami", []string{"cluster", "image"}, "an image and its name"},
	{"servicelogs", []string{"cluster", "engine"}, "neither HTTP nor the way between nodes is its: daemon gives it both"},
	{"swarmevents", []string{"cluster", "store"}, "it reads the state and publishes to whoever asked"},
	{"httpapi", []string{"cluster", "filters", "engine", "image", "control", "servicelogs"}, "it shapes requests and answers; who is a member, and how, is behind an interface"},
	{"cli", nil, "the command line has no private door: what it can do, any client of the Engine API can do"},
	{"machine", []string{"cluster"}, "a machine knows the daemon only as a program that it starts"},
	{"daemon", []string{"*"}, "it is the wiring"},
	{"sim", []string{"*"}, "it is for tests"},
}

// rules says what each room must not reach, directly or through others of our
// rooms, and why.
var rules = []struct {
	rooms  []string
	banned []string
	why    string
}{
	{loops, loops, "loops meet only in the store: one that calls another cannot be planned, tested or restarted alone"},
	{loops, slices.Concat([]string{"raftlog", "leader", "control", "httpapi"}, between), "loops import store and cluster: they are pure plans with a small loop around them"},
	{nodeSide, slices.Concat(managerSide, between), "a node knows only what it was told; it never reads replicated state"},
	{slices.Concat(managerSide, between), slices.Concat(nodeSide, []string{"httpapi", "servicelogs"}), "managers decide, nodes do: a manager must run without an engine"},
	{[]string{"swarmevents"}, nodeSide, "what changes in the swarm is the managers' to tell, whoever publishes it"},
	{[]string{"httpapi"}, []string{"swarm", "dispatch", "agent", "gossip", "leader"}, "the API asks for what it needs by interfaces, so that a daemon without a swarm serves it too"},
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
		all[pkg] = append(all[pkg], []string{}...)
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

func TestRoomsImportOnlyWhomTheyMay(t *testing.T) {
	all := imports(t, func(string) bool { return true })
	seen := map[string]bool{}
	for pkg, is := range all {
		from := room(pkg)
		seen[from] = true
		at := slices.IndexFunc(rooms, func(r roomRule) bool { return r.name == from })
		if at < 0 {
			t.Errorf("%s: the room %s is not in the list of rooms: say there whom it may know", pkg, from)
			continue
		}
		for _, i := range is {
			if to := room(i); to != "" && to != from && !slices.Contains(rooms[at].may, to) && !slices.Contains(rooms[at].may, "*") {
				t.Errorf("%s must not import %s: %s", pkg, i, rooms[at].why)
			}
			if strings.HasPrefix(i, "cmd/") || room(i) == "daemon" || room(i) == "sim" || room(i) == "cli" {
				t.Errorf("%s imports %s, which is nobody's to import but cmd's and tests'", pkg, i)
			}
		}
	}
	for _, r := range rooms {
		if !seen[r.name] {
			t.Errorf("the list of rooms has %s, which is no room", r.name)
		}
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

// source parses the files of the house that are not tests, by package.
func source(t *testing.T) (*token.FileSet, map[string][]*ast.File) {
	t.Helper()
	set, all := token.NewFileSet(), map[string][]*ast.File{}
	for _, root := range []string{"internal", "cmd", "bench"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(set, p, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			pkg := path.Dir(filepath.ToSlash(p))
			all[pkg] = append(all[pkg], f)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return set, all
}

// limit finds where a package comment says what the package does not do.
var limit = regexp.MustCompile(`\b(never|nothing|nobody|nowhere|not|no|none|neither|nor)\b`)

// TestEveryPackageSaysWhatItIs wants one comment a package: what it owns, what it
// never does, and who calls it, by name.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	_, all := source(t)
	users := map[string][]string{}
	for pkg, is := range imports(t, func(string) bool { return true }) {
		for _, i := range is {
			users[i] = append(users[i], path.Base(pkg))
		}
	}
	for pkg, files := range all {
		var docs []string
		for _, f := range files {
			if f.Doc != nil {
				docs = append(docs, strings.Join(strings.Fields(f.Doc.Text()), " "))
			}
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments; it must have one", pkg, len(docs))
			continue
		}
		doc, name := docs[0], files[0].Name.Name
		if name == "main" {
			if !strings.HasPrefix(doc, "Command ") {
				t.Errorf("%s: its comment does not begin with \"Command\"", pkg)
			}
			continue
		}
		if !strings.HasPrefix(doc, "Package "+name+" ") {
			t.Errorf("%s: its comment does not begin with \"Package %s\"", pkg, name)
		}
		if !limit.MatchString(strings.ToLower(doc)) {
			t.Errorf("%s: its comment does not say what it never does", pkg)
		}
		// A loop is run by the leader, and some rooms are called through interfaces.
		callers := append(users[pkg], "leader runs", "engine", "cmd/skep")
		if len(users[pkg]) == 0 {
			callers = append(callers, "tests")
		}
		if !slices.ContainsFunc(callers, func(u string) bool { return strings.Contains(strings.ToLower(doc), u) }) {
			t.Errorf("%s: its comment names none of those who call it (%s)", pkg, strings.Join(users[pkg], ", "))
		}
	}
}

// TestNothingOutgrowsItsRoom holds files under 600 lines and functions under 80:
// what is longer holds two ideas.
func TestNothingOutgrowsItsRoom(t *testing.T) {
	set, all := source(t)
	for _, files := range all {
		for _, f := range files {
			at := set.Position(f.End())
			if at.Line > 600 {
				t.Errorf("%s has %d lines: part it", at.Filename, at.Line)
			}
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || path.Base(path.Dir(filepath.ToSlash(at.Filename))) == "agenttest" { // a suite of tests
					continue
				}
				if n := set.Position(fn.End()).Line - set.Position(fn.Pos()).Line + 1; n > 80 {
					t.Errorf("%s: %s has %d lines: part it", at.Filename, fn.Name.Name, n)
				}
			}
		}
	}
}

// sleepers are the files outside of tests that may sleep: they wait for the
// kernel, which tells nobody when it is done.
var sleepers = []string{"internal/machine/boot.go", "internal/network/link.go", "bench/inside/main.go"}

// TestHabits refuses what hides: code that runs before main, waits that nobody
// can end, and what was left for later without saying so to users.
func TestHabits(t *testing.T) {
	set, all := source(t)
	for pkg, files := range all {
		for _, f := range files {
			name := filepath.ToSlash(set.Position(f.Pos()).Filename)
			for _, c := range f.Comments {
				if regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`).MatchString(c.Text()) {
					t.Errorf("%s: do it, or refuse it by name", set.Position(c.Pos()))
				}
			}
			ast.Inspect(f, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.FuncDecl:
					if n.Name.Name == "init" && n.Recv == nil {
						t.Errorf("%s: no init: wire it where it is used", set.Position(n.Pos()))
					}
				case *ast.SelectorExpr:
					x, ok := n.X.(*ast.Ident)
					if !ok {
						break
					}
					switch x.Name + "." + n.Sel.Name {
					case "time.Sleep":
						if !slices.Contains(sleepers, name) && room(pkg) != "sim" {
							t.Errorf("%s: wait for a condition, a timer and a context, not for time", set.Position(n.Pos()))
						}
					case "os.Exit":
						if f.Name.Name != "main" && room(pkg) != "cli" {
							t.Errorf("%s: return an error: only programs exit", set.Position(n.Pos()))
						}
					}
				}
				return true
			})
		}
	}
}
