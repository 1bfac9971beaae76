package transcripts

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// group is the flags of one command. Each is typed with line, %s being the flag
// and its value, and what line prints must hold want; a want that begins with "!"
// must not be there. A line of its own may be given instead of arguments.
//
// A want proves something only if it is the flag's doing: line is typed without
// any flag too, and a want that is met by that is an error. What a command of
// which an earlier one's traces stay (keeps) prints is compared with what was
// printed last.
type group struct {
	command string
	machine string
	before  string
	line    string
	after   string
	keeps   bool
	flags   []flagCase
}

type flagCase struct {
	flag    string // with a value only where the value makes the difference
	args    string // the flag as it is typed; a whole command line if it begins with "docker"
	want    string
	refused bool // want is what names it in the refusal
	unseen  bool // it does nothing that could be seen where it is tried
}

// met reports whether a command went well and printed what is wanted.
func (c flagCase) met(b block) bool {
	want, not := strings.CutPrefix(c.want, "!")
	return b.exit == 0 && strings.Contains(b.stdout+b.stderr, want) != not
}

// TestFlags types every flag of every command of a swarm. Each does what it is
// for, or is refused by name and stands in docs/not-built.md.
func TestFlags(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/flags")
	if err != nil {
		t.Fatal(err)
	}
	todo := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		todo[strings.TrimSpace(l)] = true
	}
	f := newFleet(t)
	f.need(t, []string{"manager1", "worker1", "worker2", "worker3"})
	defer func() {
		if t.Failed() {
			f.showLogs(t, nil)
		}
	}()
	f.swarm(t, []string{"manager1", "worker1"})
	refused := map[string]bool{}
	for _, g := range flagGroups {
		t.Run(strings.ReplaceAll(g.command, " ", "-"), func(t *testing.T) {
			if g.machine == "" {
				g.machine = "manager1"
			}
			if g.before != "" {
				f.do(t, g.machine, g.before)
			}
			without := block{exit: 1}
			if strings.Contains(g.line, "%s") {
				without = f.typeFlag(t, g, "")
			}
			for _, c := range g.flags {
				delete(todo, strings.Join(strings.Fields(g.command + " " + c.flag)[:3], " "))
				if c.refused {
					refused[g.command+" "+c.flag] = true
				}
				b := f.tryFlag(t, g, c, without)
				if g.keeps && !c.refused {
					without = b
				}
			}
		})
	}
	for _, name := range slices.Sorted(maps.Keys(todo)) {
		t.Errorf("nobody has tried %s", name)
	}
	checkNotBuilt(t, refused)
}

// typeFlag types a group's line with a flag.
func (f *fleet) typeFlag(t *testing.T, g group, args string) block {
	line := args
	if !strings.HasPrefix(line, "docker") {
		line = strings.ReplaceAll(g.line, "%s", args)
	}
	b := f.run(t, g.machine, line)
	if g.after != "" {
		f.run(t, g.machine, g.after)
	}
	b.command = line
	return b
}

// tryFlag tries one flag; without is what its command printed without it.
func (f *fleet) tryFlag(t *testing.T, g group, c flagCase, without block) block {
	t.Helper()
	b := f.typeFlag(t, g, c.args)
	out := b.stdout + b.stderr
	own := strings.HasPrefix(c.args, "docker")
	switch {
	case c.refused && (b.exit == 0 || !strings.Contains(out, c.want)):
		t.Errorf("%s %s: exit %d, want a refusal that names %q\n%s$ %s", g.command, c.flag, b.exit, c.want, out, b.command)
	case c.refused:
	case !c.met(b):
		t.Errorf("%s %s: exit %d, want %q\n%s$ %s", g.command, c.flag, b.exit, c.want, out, b.command)
	case !own && !c.unseen && c.met(without):
		t.Errorf("%s %s: %q is so without it too\n%s$ %s", g.command, c.flag, c.want, out, b.command)
	}
	return b
}

// checkNotBuilt compares what is refused with the list of what is not built.
func checkNotBuilt(t *testing.T, refused map[string]bool) {
	t.Helper()
	text, err := os.ReadFile(repo(t, "docs", "not-built.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:swarm|node|service|network|secret|config) [a-z-]+ --[^`]+)`").FindAllStringSubmatch(string(text), -1) {
		listed[m[1]] = true
	}
	for name := range refused {
		if !listed[name] {
			t.Errorf("docs/not-built.md does not say that %s is refused", name)
		}
	}
	for name := range listed {
		if !refused[name] {
			t.Errorf("docs/not-built.md says that %s is refused; no test finds it so", name)
		}
	}
}

// no is a flag that is refused; the refusal names it.
func no(flag, args, name string) flagCase {
	return flagCase{flag: flag, args: args, want: name, refused: true}
}

// ok is a flag that works.
func ok(flag, args, want string) flagCase { return flagCase{flag: flag, args: args, want: want} }

// unseen is a flag that is taken, and whose doing cannot be seen where it is tried.
func unseen(flag, args, want string) flagCase {
	return flagCase{flag: flag, args: args, want: want, unseen: true}
}

const (
	createLine = "docker service create -d --no-resolve-image --replicas 0 --name f %s busybox:1 sleep 60 && docker service inspect --format '{{json .Spec}}' f"
	updateLine = "docker service update -d --no-resolve-image %s u && docker service inspect --format '{{json .Spec}}' u"
)

// created is a command line that creates f without the usual number of replicas.
func created(args string) string {
	return fmt.Sprintf("docker service create -d --no-resolve-image --name f %s busybox:1 sleep 60 && docker service inspect --format '{{json .Spec}}' f", args)
}
