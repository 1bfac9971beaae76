package pki

import (
	"crypto/subtle"
	"encoding/hex"
	"math/big"
	"strings"

	"github.com/skep-dev/skep/internal/cluster"
)

// The parts of a join token: SWMTKN-1-<digest of the root>-<secret>.
const (
	tokenPrefix = "SWMTKN"
	tokenV1     = "1"
	digestLen   = 50 // digits of base 36 that hold 32 bytes
	secretLen   = 25 // digits of base 36 that hold 16 bytes
)

// Token is a join token taken apart.
type Token struct {
	// Digest is the SHA-256 of the root certificate the joiner is to trust.
	Digest [32]byte
	// Secret is what the joiner shows to be let in.
	Secret string
}

// NewToken returns a new join token for a swarm with this root.
func NewToken(r *Root) string {
	d := r.Digest()
	return strings.Join([]string{
		tokenPrefix, tokenV1,
		cluster.Base36(d[:], digestLen),
		cluster.Base36(cluster.RandomBytes(16), secretLen),
	}, "-")
}

// ParseToken takes a join token apart. Its one error is errdefs.ErrInvalidArgument
// in Docker's words.
func ParseToken(s string) (Token, error) {
	invalid := cluster.Invalidf("invalid join token")
	if len(s) > 128 {
		return Token{}, invalid
	}
	parts := strings.Split(s, "-")
	if len(parts) != 4 || parts[0] != tokenPrefix || parts[1] != tokenV1 ||
		len(parts[2]) != digestLen || len(parts[3]) != secretLen {
		return Token{}, invalid
	}
	if !isBase36(parts[2]) || !isBase36(parts[3]) {
		return Token{}, invalid
	}
	n, ok := new(big.Int).SetString(parts[2], 36)
	if !ok || n.BitLen() > 256 {
		return Token{}, invalid
	}
	t := Token{Secret: parts[3]}
	n.FillBytes(t.Digest[:])
	return t, nil
}

// isBase36 reports whether s holds digits of base 36 only, as tokens are
// written: lower case, no sign, no separators.
func isBase36(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Fingerprint returns the digest as Docker's messages write it.
func (t Token) Fingerprint() string { return hex.EncodeToString(t.Digest[:]) }

// SameToken compares a token that was shown with the right one, in constant time.
func SameToken(shown, right string) bool {
	return right != "" && subtle.ConstantTimeCompare([]byte(shown), []byte(right)) == 1
}
