package raftlog

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
)

// BenchmarkLogStores is the measurement behind decision 0061: appends of one
// entry or a batch of 32 to the stores in question, each made durable.
func BenchmarkLogStores(b *testing.B) {
	stores := map[string]func(b *testing.B) raft.LogStore{
		"wal": func(b *testing.B) raft.LogStore {
			s, err := wal.Open(b.TempDir(), wal.WithLogger(hclog.NewNullLogger()), wal.WithSegmentSize(segmentSize))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { s.Close() })
			return s
		},
		"boltdb": func(b *testing.B) raft.LogStore {
			s, err := boltdb.NewBoltStore(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { s.Close() })
			return s
		},
	}
	data := make([]byte, 400)
	rand.Read(data)
	for name, open := range stores {
		for _, batch := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/batch=%d", name, batch), func(b *testing.B) {
				s := open(b)
				next := uint64(1)
				for b.Loop() {
					logs := make([]*raft.Log, batch)
					for i := range logs {
						logs[i] = &raft.Log{Index: next, Term: 1, Data: data, AppendedAt: time.Now()}
						next++
					}
					if err := s.StoreLogs(logs); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}

// BenchmarkPropose has 8 clients write small services to three managers whose
// logs lie on one disk, over real sockets without TLS.
func BenchmarkPropose(b *testing.B) {
	var ms []*manager
	for _, id := range []string{"m1", "m2", "m3"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		n := &network{hosts: map[string]*host{}}
		ms = append(ms, n.manager(b, id, b.TempDir(), func(c *Config) {
			var d net.Dialer
			c.Listener, c.Addr = l, l.Addr().String()
			c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
		}))
	}
	if err := ms[0].Bootstrap(); err != nil {
		b.Fatal(err)
	}
	leaderOf(b, ms[0])
	for _, m := range ms[1:] {
		if err := ms[0].AddVoter(b.Context(), m.id, m.cfg.Addr); err != nil {
			b.Fatal(err)
		}
	}
	b.SetParallelism(4) // on two cores
	b.ResetTimer()
	var next atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := ms[0].Propose(b.Context(), named(strconv.FormatInt(next.Add(1), 36))); err != nil {
				b.Error(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
	for _, m := range ms {
		m.end()
	}
}
