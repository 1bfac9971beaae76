package transcripts

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What differs from run to run is replaced by names in angle brackets. A name
// with a number always stands for the same value within a transcript, so that an
// id that is shown in one place must be the id shown in another.

// rule replaces what a pattern finds. If the pattern has a group, only the group
// is replaced.
type rule struct {
	name     string
	pattern  *regexp.Regexp
	numbered bool
}

var rules = []rule{
	{"token", regexp.MustCompile(`SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}`), true},
	{"pem", regexp.MustCompile(`-----BEGIN CERTIFICATE-----(?:\n|\\n)[A-Za-z0-9+/=\n\\]+-----END CERTIFICATE-----(?:\n|\\n)`), true},
	{"issuer", regexp.MustCompile(`(?:Issuer Subject:\t|"CertIssuerSubject": ?")([A-Za-z0-9+/]+=*)`), true},
	{"public key", regexp.MustCompile(`(?:Issuer Public Key:\t|"CertIssuerPublicKey": ?")([A-Za-z0-9+/]+=*)`), true},
	{"digest", regexp.MustCompile(`sha256:[0-9a-f]{64}`), true},
	{"time", regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z| \+0000 utc)`), false},
	{"date", regexp.MustCompile(`Date: ([A-Z][a-z]{2}, .* GMT)`), false},
	{"ago", regexp.MustCompile(`(?:\d+ (?:second|minute)s?|About a minute|Less than a second) ago`), false},
	{"index", regexp.MustCompile(`"Version": ?\{\s*"Index": ?(\d+)`), false},
	{"length", regexp.MustCompile(`Content-Length: (\d\d+)`), false},
	{"memory", regexp.MustCompile(`(?:Total Memory: |Memory:\t\t|"MemoryBytes": ?|"MemTotal": ?)([0-9.]+(?:GiB|MiB)?)`), false},
	{"cpus", regexp.MustCompile(`(?: CPUs: |CPUs:\t\t\t|"NanoCPUs": ?|"NCPU": ?)(\d+)`), false},
	{"port", regexp.MustCompile(`127\.0\.0\.1:(\d+)->`), false},
	{"node", regexp.MustCompile(`"Node":"([a-z0-9]+)"`), false},
	{"pid", regexp.MustCompile(`"PID": ?(\d+)`), false},
	{"runtimes", regexp.MustCompile(`Runtimes: (.*)`), false},
	{"kernel", regexp.MustCompile(`Kernel Version: (.*)`), false},
	{"system", regexp.MustCompile(`Operating System: (.*)`), false},
	{"engine", regexp.MustCompile(`\n ID: (.*)`), false},
	{"version", regexp.MustCompile(`Engine Version:\t\t(.*)`), false},
	{"release", regexp.MustCompile(`\n (?:containerd|runc|init) version: (.*)`), false},
	{"folder", regexp.MustCompile(`Docker Root Dir: (.*)`), false},
	{"name", regexp.MustCompile(`\b([a-z]+_[a-z]+)(?:\.\d| +(?:replicated|global)|","Ports")`), true},
	{"mac", regexp.MustCompile(`\b[0-9a-f]{2}(?::[0-9a-f]{2}){5}\b`), false},
}

// Ids: whole, and cut to twelve characters where command lines show them so.
var idRules = []*regexp.Regexp{
	regexp.MustCompile(`\b[0-9a-f]{64}\b`),
	regexp.MustCompile(`\b[0-9a-z]{25}\b`),
	regexp.MustCompile(`(?m)(?:^|\.\d+\.)([0-9a-z]{12})(?:@| *$| )`),
	regexp.MustCompile(`"(?:Name|ID)": ?"([0-9a-z]{12})"`),
}

// names holds what each numbered name stands for in one transcript.
type names struct {
	fixed  [][2]string         // value and name of what is known before, longest value first
	values map[string][]string // kind to the values in the order they were seen
	bound  map[string]string   // name as written to the whole value

	version *regexp.Regexp
}

// newNames returns names that know the machines' addresses and the version.
func newNames(addrs map[string]string, version string) *names {
	n := &names{values: map[string][]string{}, bound: map[string]string{}}
	for host, ip := range addrs {
		n.fixed = append(n.fixed, [2]string{ip, "<" + host + ">"})
		n.bound["<"+host+">"] = ip
	}
	slices.SortFunc(n.fixed, func(a, b [2]string) int { return len(b[0]) - len(a[0]) })
	n.version = regexp.MustCompile(`(?m)(?:^|[ "/])(` + regexp.QuoteMeta(version) + `)(?:$|[ ")])`)
	return n
}

// clone returns a copy: names that a repeated command binds are of its last try.
func (n *names) clone() *names {
	c := *n
	c.bound = maps.Clone(n.bound)
	c.values = make(map[string][]string, len(n.values))
	for k, v := range n.values {
		c.values[k] = slices.Clone(v)
	}
	return &c
}

// expand puts values for the names in a command.
func (n *names) expand(command string) string {
	return anyName.ReplaceAllStringFunc(command, func(name string) string {
		if v, ok := n.bound[name]; ok {
			return v
		}
		return name
	})
}

var anyName = regexp.MustCompile(`<[a-z][a-z0-9 :]*>`)

// normal replaces what differs from run to run.
func (n *names) normal(text string) string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	for _, r := range rules {
		text = replaceGroup(r.pattern, text, func(v string) string {
			if !r.numbered {
				return "<" + r.name + ">"
			}
			return n.number(r.name, v)
		})
	}
	for _, pattern := range idRules {
		text = replaceGroup(pattern, text, n.id)
	}
	text = replaceGroup(n.version, text, func(string) string { return "<version>" })
	for _, f := range n.fixed {
		text = regexp.MustCompile(`\b`+regexp.QuoteMeta(f[0])+`\b`).ReplaceAllString(text, f[1])
	}
	return squeeze(text)
}

// replaceGroup replaces the pattern's group, or all of it if it has none.
func replaceGroup(p *regexp.Regexp, text string, f func(string) string) string {
	var w strings.Builder
	at := 0
	for _, m := range p.FindAllStringSubmatchIndex(text, -1) {
		from, to := m[0], m[1]
		if len(m) > 2 {
			from, to = m[2], m[3]
		}
		w.WriteString(text[at:from])
		w.WriteString(f(text[from:to]))
		at = to
	}
	return w.String() + text[at:]
}

func (n *names) number(kind, value string) string {
	i := slices.Index(n.values[kind], value)
	if i < 0 {
		i = len(n.values[kind])
		n.values[kind] = append(n.values[kind], value)
	}
	name := fmt.Sprintf("<%s%d>", kind, i+1)
	n.bound[name] = value
	return name
}

// id numbers ids by their first twelve characters, and says how many are shown
// if it is not the usual 25.
func (n *names) id(value string) string {
	name := n.number("id", value[:12])
	if len(value) != 25 {
		name = fmt.Sprintf("%s:%d>", strings.TrimSuffix(name, ">"), len(value))
	}
	n.bound[name] = value
	return name
}

var (
	columns  = regexp.MustCompile(`(\S) {3,}`)
	progress = regexp.MustCompile(`^(overall progress: |\d+/\d+: |verify: Waiting |rollback: )`)
	overall  = regexp.MustCompile(`^overall progress: `)
	// onNode is a row of service ps: which node a task runs on is not said.
	onNode = regexp.MustCompile(`^(\S+   (?:\\_ )?\S+\.\S+   \S+   )(?:manager|worker)\d   `)
)

// squeeze makes columns, whose width depends on what is in them, three blanks
// apart, and keeps of the progress that is printed while tasks change only its
// end.
func squeeze(text string) string {
	var out []string
	lines := strings.Split(text, "\n")
	last := -1
	for i, l := range lines {
		if overall.MatchString(l) {
			last = i
		}
	}
	for i, l := range lines {
		if i != last && progress.MatchString(l) {
			continue
		}
		out = append(out, onNode.ReplaceAllString(columns.ReplaceAllString(l, "$1   "), "$1<node>   "))
	}
	return strings.Join(out, "\n")
}

func TestNames(t *testing.T) {
	n := newNames(map[string]string{"manager1": "10.9.0.1", "worker1": "10.9.0.11"}, "v1-dirty")
	for _, c := range []struct{ in, want string }{
		{"0e9c98wgll05xzmr6tcdcqben\n", "<id1>\n"},
		{"0e9c98wgll05   web       replicated   3/3\n", "<id1:12>   web   replicated   3/3\n"},
		{"uy253g4e7kdieuqp4gttj63vu\n0e9c98wgll05xzmr6tcdcqben", "<id2>\n<id1>"},
		{"10.9.0.1:2377 10.9.0.11:2377", "<manager1>:2377 <worker1>:2377"},
		{"Ready v1-dirty\n", "Ready <version>\n"},
		{"Running 5 seconds ago", "Running <ago>"},
		{"overall progress: 0 out of 1 tasks\n1/1: ready\noverall progress: 0 out of 1 tasks\noverall progress: 1 out of 1 tasks\nverify: Waiting 5\nverify: done",
			"overall progress: 1 out of 1 tasks\nverify: done"},
	} {
		if got := n.normal(c.in); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.in, got, c.want)
		}
	}
	if got := n.expand("docker inspect <id1> <id2> <worker1> <other>"); got != "docker inspect 0e9c98wgll05xzmr6tcdcqben uy253g4e7kdieuqp4gttj63vu 10.9.0.11 <other>" {
		t.Errorf("expand: %s", got)
	}
}

func TestParseWritesWhatItReads(t *testing.T) {
	text := "# hosts: a b\n\na $ echo\n[eventually]\n[stdout]\n[]\n\n[stderr]\nx\n[no newline at end]\n[exit 1]\n\n# end\n"
	s, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if s.String() != text {
		t.Errorf("got\n%s\nwant\n%s", s, text)
	}
	if len(s.hosts) != 2 || s.blocks[0].stdout != "[]\n\n" || s.blocks[0].stderr != "x" || s.blocks[0].exit != 1 || !s.blocks[0].eventually {
		t.Errorf("%+v", s)
	}
	for _, bad := range []string{"a $ x\n[stdout]\n", "nonsense\n", "a $ x\nfoo\n[exit 0]\n"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is taken for a transcript", bad)
		}
	}
}

func TestDiffLines(t *testing.T) {
	got := diffLines("a\nb\nc\n", "a\nx\nc\nd\n")
	if want := "  a\n- b\n+ x\n  c\n+ d\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
