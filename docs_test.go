package skep

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestArchitectureNamesEveryRoom holds the table of ARCHITECTURE against the
// list of rooms: each is there once, and no other.
func TestArchitectureNamesEveryRoom(t *testing.T) {
	text, err := os.ReadFile("docs/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## Rooms\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var named []string
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(first, -1) {
			named = append(named, m[1])
		}
	}
	want := []string{"cmd/skep"}
	for _, r := range rooms {
		want = append(want, r.name)
	}
	slices.Sort(named)
	slices.Sort(want)
	if !slices.Equal(named, want) {
		t.Errorf("the table has\n%q\nthe rooms are\n%q", named, want)
	}
}
