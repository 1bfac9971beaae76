package transcripts

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestImport(t *testing.T) {
	out := os.Getenv("IMPORT")
	if out == "" {
		t.Skip()
	}
	addrs := map[string]string{"manager1": "10.99.0.11", "worker1": "10.99.0.12", "worker2": "10.99.0.13", "worker3": "10.99.0.14", "solo": "10.99.0.15", "manager1b": "10.99.0.21"}
	took := regexp.MustCompile(`(?m)^(\[exit \w+\]) \[took .*`)
	for _, name := range strings.Fields(os.Getenv("FILES")) {
		files, _ := filepath.Glob("/work/shared/transcripts/" + name + "*.txt")
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		text := took.ReplaceAllString(string(b), "$1")
		text = strings.ReplaceAll(text, "[exit TIMEOUT]", "[exit 124]")
		text = strings.ReplaceAll(text, "$(echo $DOCKER_HOST | sed s,unix://,,)", "$SOCKET")
		var blocks []string
		for _, p := range strings.Split(text, "\n\n") {
			blocks = append(blocks, p)
		}
		// the header of three lines
		i := strings.Index(text, "\n\n")
		s, err := parse(dropOdd(text[i+2:]))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		n := newNames(addrs, "20.10.24+dfsg1")
		for i := range s.blocks {
			b := &s.blocks[i]
			if !strings.Contains(b.command, "curl") {
				b.command = n.normal(b.command)
			} 
			b.stdout, b.stderr = n.normal(b.stdout), n.normal(b.stderr)
		}
		head := "# " + strings.TrimSuffix(filepath.Base(files[0]), ".txt") + "\n# hosts: manager1 worker1 worker2\n# swarm: manager1 worker1 worker2\n\n"
		if err := os.WriteFile(filepath.Join(out, filepath.Base(files[0])), []byte(head+s.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// dropOdd drops tty and stdin blocks.
func dropOdd(text string) string {
	var out []string
	cur := []string{}
	odd := false
	inBlock := false
	for _, l := range strings.Split(text, "\n") {
		if !inBlock && promptLine.MatchString(l) {
			inBlock = true
			cur, odd = nil, false
		}
		if inBlock {
			if strings.HasPrefix(l, "[tty") || l == "[stdin]" {
				odd = true
			}
			cur = append(cur, l)
			if exitLine.MatchString(l) {
				inBlock = false
				if !odd {
					out = append(out, cur...)
				}
			}
			continue
		}
		out = append(out, l)
	}
	return strings.Join(out, "\n")
}
