package cluster

import (
	"crypto/rand"
	"math/big"
	"strings"
)

// IDLen is the length of an object's id.
const IDLen = 25

// NewID returns a random id: 25 digits of base 36, as Docker's.
func NewID() string { return Base36(RandomBytes(16), IDLen) }

// RandomBytes returns n bytes nobody can guess.
func RandomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}

// Base36 returns b as a number in base 36, padded with zeros to n digits and
// cut to its last n.
func Base36(b []byte, n int) string {
	s := new(big.Int).SetBytes(b).Text(36)
	if len(s) < n {
		return strings.Repeat("0", n-len(s)) + s
	}
	return s[len(s)-n:]
}
