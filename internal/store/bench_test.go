package store

import (
	"fmt"
	"testing"

	"github.com/skep-dev/skep/internal/cluster"
)

// filled returns a store of n running tasks of one service on 100 nodes.
func filled(b *testing.B, n int) (*Store, []string) {
	s := New()
	if err := s.Apply(1, Entry{At: t0, Changes: []Change{CreateService(service("s1", "web", "a"))}}); err != nil {
		b.Fatal(err)
	}
	var changes []Change
	ids := make([]string, n)
	for i := range n {
		ids[i] = cluster.NewID()
		t := task(ids[i], "s1", 1, i+1)
		t.NodeID = fmt.Sprintf("node%d", i%100)
		changes = append(changes, CreateTask(t))
	}
	if err := s.Apply(2, Entry{At: t0, Changes: changes}); err != nil {
		b.Fatal(err)
	}
	return s, ids
}

func BenchmarkCreate(b *testing.B) {
	s, _ := filled(b, 10000)
	tasks := make([]*cluster.Task, b.N)
	for i := range tasks {
		tasks[i] = task(cluster.NewID(), "s1", 1, 10001+i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i, t := range tasks {
		if err := s.Apply(uint64(i+3), Entry{At: t0, Changes: []Change{CreateTask(t)}}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	s, ids := filled(b, 10000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n := *s.View().Task(ids[i%len(ids)])
		n.Desired = cluster.StateShutdown
		if err := s.Apply(uint64(i+3), Entry{At: t0, Changes: []Change{UpdateTask(&n)}}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCreateBatch creates 1000 tasks an entry; the figure is for one task.
func BenchmarkCreateBatch(b *testing.B) {
	s, _ := filled(b, 10000)
	var entries []Entry
	for i := 0; i < b.N; i += 1000 {
		e := Entry{At: t0}
		for j := range min(1000, b.N-i) {
			e.Changes = append(e.Changes, CreateTask(task(cluster.NewID(), "s1", 1, 10001+i+j)))
		}
		entries = append(entries, e)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range entries {
		if err := s.Apply(uint64(i+3), entries[i]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	s, ids := filled(b, 10000)
	for i := 0; b.Loop(); i++ {
		if s.View().Task(ids[i%len(ids)]) == nil {
			b.Fatal("gone")
		}
	}
}

func BenchmarkListOf10k(b *testing.B) {
	s, _ := filled(b, 10000)
	for b.Loop() {
		if len(s.View().TasksOf("s1")) != 10000 {
			b.Fatal("gone")
		}
	}
}

func BenchmarkEncodeDecodeTask(b *testing.B) {
	e := Entry{At: t0, Changes: []Change{CreateTask(task(cluster.NewID(), cluster.NewID(), 1, 1))}}
	for b.Loop() {
		w, err := EncodeEntry(e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := DecodeEntry(w); err != nil {
			b.Fatal(err)
		}
	}
}
