package transcripts

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// block is one command of a transcript with what it printed.
type block struct {
	notes      []string // comment lines and empty lines in front of it
	host       string
	command    string
	eventually bool // typed again until it prints this
	stdout     string
	stderr     string
	exit       int
}

// script is a transcript: what it needs, and its commands.
type script struct {
	hosts  []string // machines it types at
	swarm  []string // machines that are a swarm when it begins; the first manages
	blocks []block
	tail   []string // comments behind the last block
}

const (
	hostsLine  = "# hosts: "
	swarmLine  = "# swarm: "
	noNewline  = "[no newline at end]"
	eventually = "[eventually]"
)

var (
	promptLine = regexp.MustCompile(`^([a-z0-9]+) \$ (.+)$`)
	exitLine   = regexp.MustCompile(`^\[exit (\d+)\]`)
)

// parse reads a transcript.
func parse(text string) (script, error) {
	var s script
	var b *block
	var out *string // what body lines are added to
	var notes []string
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		switch {
		case b == nil:
			if m := promptLine.FindStringSubmatch(line); m != nil {
				b, out = &block{notes: notes, host: m[1], command: m[2]}, nil
				notes = nil
				continue
			}
			if line != "" && !strings.HasPrefix(line, "#") {
				return s, fmt.Errorf("line %d: %q is neither a comment nor a command", n+1, line)
			}
			if h, ok := strings.CutPrefix(line, hostsLine); ok {
				s.hosts = strings.Fields(h)
			}
			if h, ok := strings.CutPrefix(line, swarmLine); ok {
				s.swarm = strings.Fields(h)
			}
			notes = append(notes, line)
		case line == eventually && out == nil:
			b.eventually = true
		case line == "[stdout]":
			out = &b.stdout
		case line == "[stderr]":
			out = &b.stderr
		case exitLine.MatchString(line):
			b.exit, _ = strconv.Atoi(exitLine.FindStringSubmatch(line)[1])
			s.blocks = append(s.blocks, *b)
			b = nil
		case line == noNewline && out != nil:
			*out = strings.TrimSuffix(*out, "\n")
		case out != nil:
			*out += line + "\n"
		default:
			return s, fmt.Errorf("line %d: %q stands in no section", n+1, line)
		}
	}
	if b != nil {
		return s, fmt.Errorf("%q does not end with [exit N]", b.command)
	}
	s.tail = notes
	return s, nil
}

// String writes a block as parse reads it, without its notes.
func (b block) String() string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s $ %s\n", b.host, b.command)
	if b.eventually {
		fmt.Fprintln(&w, eventually)
	}
	for _, s := range []struct{ name, text string }{{"stdout", b.stdout}, {"stderr", b.stderr}} {
		if s.text == "" {
			continue
		}
		fmt.Fprintf(&w, "[%s]\n%s", s.name, s.text)
		if !strings.HasSuffix(s.text, "\n") {
			fmt.Fprintf(&w, "\n%s\n", noNewline)
		}
	}
	fmt.Fprintf(&w, "[exit %d]\n", b.exit)
	return w.String()
}

func (s script) String() string {
	var w strings.Builder
	for _, b := range s.blocks {
		for _, n := range b.notes {
			fmt.Fprintln(&w, n)
		}
		w.WriteString(b.String())
	}
	for _, n := range s.tail {
		fmt.Fprintln(&w, n)
	}
	return w.String()
}

// diffLines shows two texts in one, as diff does: lines of the first alone begin
// with -, lines of the second alone with +.
func diffLines(first, second string) string {
	a, b := strings.Split(strings.TrimSuffix(first, "\n"), "\n"), strings.Split(strings.TrimSuffix(second, "\n"), "\n")
	common := make([][]int, len(a)+1) // how many lines the rests have in common
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var w strings.Builder
	for len(a) > 0 || len(b) > 0 {
		i, j := len(common)-1-len(a), len(common[0])-1-len(b)
		switch {
		case len(a) > 0 && len(b) > 0 && a[0] == b[0]:
			fmt.Fprintln(&w, " ", a[0])
			a, b = a[1:], b[1:]
		case len(b) == 0 || len(a) > 0 && common[i+1][j] >= common[i][j+1]:
			fmt.Fprintln(&w, "-", a[0])
			a = a[1:]
		default:
			fmt.Fprintln(&w, "+", b[0])
			b = b[1:]
		}
	}
	return w.String()
}
