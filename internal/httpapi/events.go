package httpapi

import (
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"

	"github.com/skep-dev/skep/internal/cluster"
)

// events streams what happens on this host (and, on a manager, in the swarm).
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	since, err := timeParam(q, "since")
	if err != nil {
		return err
	}
	until, err := timeParam(q, "until")
	if err != nil {
		return err
	}
	if !until.IsZero() && until.Before(since) {
		return cluster.Invalidf("`since` time (%s) cannot be after `until` time (%s)", q.Get("since"), q.Get("until"))
	}
	filters, err := filterParam(q)
	if err != nil {
		return err
	}
	if !since.IsZero() && until.IsZero() && q.Get("until") == "0" {
		until = time.Now()
	}
	contentType := eventsType(r)
	out := begin(w, contentType)
	legacy := before(r, "1.52")
	err = s.Containers.Events(r.Context(), since, until, filters, func(m events.Message) error {
		var v any = m
		if legacy {
			v = legacyEvent(m)
		}
		if contentType == types.MediaTypeJSONSequence {
			if _, err := w.Write([]byte{0x1e}); err != nil {
				return err
			}
		}
		return out.line(v)
	})
	if r.Context().Err() != nil {
		return nil
	}
	return err
}

// eventsType picks the stream's format from what the client accepts.
func eventsType(r *http.Request) string {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if before(r, "1.52") {
		return types.MediaTypeJSON
	}
	for _, t := range []string{types.MediaTypeJSONLines, types.MediaTypeNDJSON, types.MediaTypeJSONSequence} {
		if strings.Contains(accept, t) {
			return t
		}
	}
	return types.MediaTypeJSON
}

// legacyEvent adds the fields that events of containers and images had before
// they had actors; clients up to 1.51 may still read them.
func legacyEvent(m events.Message) any {
	type legacy struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		events.Message
	}
	switch m.Type {
	case events.ContainerEventType:
		return legacy{string(m.Action), m.Actor.ID, m.Actor.Attributes["image"], m}
	case events.ImageEventType:
		return legacy{string(m.Action), m.Actor.ID, "", m}
	}
	return m
}
