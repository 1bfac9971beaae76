package pki

import (
	"context"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Renewer keeps an identity's certificate fresh, and its role the wanted one.
type Renewer struct {
	Identity *Identity
	// Request has a certificate request signed by a manager.
	Request func(ctx context.Context, csr []byte) (cert []byte, err error)
	// Role carries the wanted role whenever a manager says it.
	Role <-chan swarm.NodeRole
	Log  *slog.Logger
}

// retryMin and retryMax bound the wait after a renewal that did not work.
const (
	retryMin = 5 * time.Second
	retryMax = 5 * time.Minute
)

// RenewAt returns a random moment between 50 and 80 % of a certificate's
// validity (counted without the backdating); frac is in [0,1).
func RenewAt(cert *x509.Certificate, frac float64) time.Time {
	start := cert.NotBefore.Add(backdate)
	span := cert.NotAfter.Sub(start)
	at := start.Add(time.Duration(float64(span) * (0.5 + 0.3*frac)))
	if at.After(cert.NotAfter) { // of less validity than the backdating
		return cert.NotAfter
	}
	return at
}

// Run renews the certificate in time, at once when the wanted role is another,
// until ctx ends.
func (r *Renewer) Run(ctx context.Context) error {
	changed := r.Identity.Changed()
	at, wait := RenewAt(r.Identity.Leaf(), rand.Float64()), retryMin
	for {
		timer := time.NewTimer(time.Until(at))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed: // by us or by others: count anew
			timer.Stop()
			changed = r.Identity.Changed()
			at, wait = RenewAt(r.Identity.Leaf(), rand.Float64()), retryMin
			continue
		case role := <-r.Role:
			timer.Stop()
			if role == r.Identity.Peer().Role {
				continue
			}
		case <-timer.C:
		}
		switch err := r.renew(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.Log.Warn("certificate will be renewed later", "err", err)
			at = time.Now().Add(wait + rand.N(wait/2))
			wait = min(2*wait, retryMax)
		default:
			changed = r.Identity.Changed()
			at, wait = RenewAt(r.Identity.Leaf(), rand.Float64()), retryMin
		}
	}
}

func (r *Renewer) renew(ctx context.Context) error {
	csr, key, err := NewRequest()
	if err != nil {
		return err
	}
	cert, err := r.Request(ctx, csr)
	if err != nil {
		return err
	}
	if err := r.Identity.Replace(cert, key); err != nil {
		return err
	}
	r.Log.Info("certificate renewed", "role", r.Identity.Peer().Role, "until", r.Identity.Leaf().NotAfter)
	return nil
}
