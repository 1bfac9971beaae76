package main

import (
	"context"
	"time"
)

// memory measures one host of a side: its idle daemon, as an idle manager, and
// with 50 tasks.
func memory(ctx context.Context, b *bench) error {
	const tasks = 50
	if err := b.hosts(ctx, 1); err != nil {
		return err
	}
	sample := func(name string, less map[*side]float64, per float64) (map[*side]float64, error) {
		if err := pause(ctx, 8*time.Second); err != nil { // what starting used is given back
			return nil, err
		}
		sum := map[*side]float64{}
		for range b.m.runs {
			for _, s := range b.sides() {
				v, err := s.hosts[0].memory()
				if err != nil {
					return nil, err
				}
				b.record(s, name, "MB", (v-less[s])/per)
				sum[s] += v / float64(b.m.runs)
			}
			if err := pause(ctx, 2*time.Second); err != nil {
				return nil, err
			}
		}
		return sum, nil
	}
	if _, err := sample("memory-idle-daemon", nil, 1); err != nil {
		return err
	}
	for _, s := range b.sides() {
		if err := s.swarm(ctx, 1); err != nil {
			return err
		}
	}
	idle, err := sample("memory-idle-manager", nil, 1)
	if err != nil {
		return err
	}
	for _, s := range b.sides() {
		id, err := s.hosts[0].create(ctx, service("m", tasks))
		if err != nil {
			return err
		}
		if err := s.hosts[0].running(ctx, id, tasks); err != nil {
			return err
		}
	}
	_, err = sample("memory-a-task", idle, tasks)
	return err
}
