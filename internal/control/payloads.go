package control

import (
	"bytes"
	"regexp"

	"github.com/moby/moby/api/types/swarm"

	"github.com/skep-dev/skep/internal/filters"
)

// What secrets and configs have in common is said here of secrets: a config is
// one that everybody may read.

func asSecret(c *swarm.ConfigSpec) *swarm.SecretSpec {
	return &swarm.SecretSpec{Annotations: c.Annotations, Data: c.Data, Templating: c.Templating}
}

var payloadName = regexp.MustCompile(`^[a-zA-Z0-9]+(?:[a-zA-Z0-9\-_.]*[a-zA-Z0-9])?$`)

// checkPayload validates a new secret or config; limit is one byte more than it
// may hold.
func checkPayload(noun string, limit int, s *swarm.SecretSpec) error {
	if len(s.Name) > 64 || !payloadName.MatchString(s.Name) {
		return invalid("invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]")
	}
	if err := unbuiltInPayload(s); err != nil {
		return err
	}
	if len(s.Data) == 0 || len(s.Data) >= limit {
		return invalid("%s data must be larger than 0 and less than %d bytes", noun, limit)
	}
	return checkLabels(s.Labels)
}

// checkRelabelling validates an update: nothing but labels can change.
func checkRelabelling(old, by *swarm.SecretSpec) error {
	if by.Name != old.Name || len(by.Data) > 0 && !bytes.Equal(by.Data, old.Data) {
		return invalid("only updates to Labels are allowed")
	}
	return checkLabels(by.Labels)
}

func checkPayloadFilters(f Filters) error { return filters.Check(f, "names", "name", "id", "label") }

func payloadPasses(f Filters, id string, a *swarm.Annotations) bool {
	return filters.Exact(f, "names", a.Name) && filters.Prefixed(f, "name", a.Name) &&
		filters.Prefixed(f, "id", id) && filters.Labels(f, "label", a.Labels)
}
