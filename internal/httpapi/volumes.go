package httpapi

import (
	"context"
	"io/fs"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/volume"

	"github.com/skep-dev/skep/internal/cluster"
	"github.com/skep-dev/skep/internal/engine"
	"github.com/skep-dev/skep/internal/filters"
)

func (s *Server) volumeRoutes() []route {
	return []route{
		{"GET /volumes", s.volumeList},
		{"POST /volumes/create", s.volumeCreate},
		{"POST /volumes/prune", s.volumePrune},
		{"GET /volumes/{name}", s.volumeInspect},
		{"PUT /volumes/{name}", absent("updating cluster volumes (docker volume update)")},
		{"DELETE /volumes/{name}", s.volumeRemove},
	}
}

func (s *Server) volumeList(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	list, err := s.Volumes.List(r.Context(), filters)
	if err != nil {
		return err
	}
	list.Volumes = orEmpty(list.Volumes)
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	if err := readOptionalJSON(r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil {
		return cluster.NotImplementedf("cluster volumes are not built yet")
	}
	v, err := s.Volumes.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, v)
}

func (s *Server) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.Volumes.Inspect(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (s *Server) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	return noContent(w, s.Volumes.Remove(r.Context(), r.PathValue("name"), boolParam(r.URL.Query(), "force")))
}

// volumePrune removes the volumes that no container refers to: since 1.42 only
// the nameless ones unless all are asked for.
func (s *Server) volumePrune(w http.ResponseWriter, r *http.Request) error {
	filters, err := knownFilters(r, "label", "label!", "all")
	if err != nil {
		return err
	}
	if _, said := filters["all"]; !said && before(r, "1.42") {
		if filters == nil {
			filters = map[string]map[string]bool{}
		}
		filters["all"] = map[string]bool{"true": true}
	}
	report, err := s.Volumes.Prune(r.Context(), filters)
	if err != nil {
		return err
	}
	report.VolumesDeleted = orEmpty(report.VolumesDeleted)
	return writeJSON(w, http.StatusOK, report)
}

// volumesInUse counts the containers, running or not, that refer to each volume.
func (s *Server) volumesInUse(ctx context.Context) (map[string]int, error) {
	list, err := s.Containers.List(ctx, engine.ListOptions{All: true})
	if err != nil {
		return nil, err
	}
	used := map[string]int{}
	for _, c := range list {
		for _, m := range c.Mounts {
			if m.Type == mount.TypeVolume {
				used[m.Name]++
			}
		}
	}
	return used, nil
}

// treeSize is the disk space of the files below dir, or 0 if they cannot be
// read. A file with several names counts once.
func treeSize(dir string) int64 {
	if dir == "" {
		return 0
	}
	var total int64
	seen := map[[2]uint64]bool{}
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // vanished or unreadable: count what is there
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && !d.IsDir() {
			key := [2]uint64{uint64(st.Dev), st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		total += info.Size()
		return nil
	})
	return total
}

// pruneFilter returns the test of prune's label, label! and until filters on an
// object's labels and creation time (in seconds; 0 where it has none).
func pruneFilter(f filters.Filters) (func(labels map[string]string, created int64) bool, error) {
	var until time.Time
	for v := range f["until"] {
		t, err := parseTime("until", v)
		if err != nil {
			return nil, err
		}
		until = t
	}
	return func(labels map[string]string, created int64) bool {
		return (until.IsZero() || time.Unix(created, 0).Before(until)) && filters.Pruned(f, labels)
	}, nil
}
