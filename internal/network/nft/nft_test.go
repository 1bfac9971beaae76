package nft

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
)

// matches does what the kernel does with Within.
func matches(w Words, a netip.Addr) bool {
	got, mask := a.AsSlice(), w[1].(*expr.Bitwise).Mask
	for i := range got {
		got[i] &= mask[i]
	}
	return bytes.Equal(got, w[2].(*expr.Cmp).Data)
}

func TestWithin(t *testing.T) {
	for _, c := range []struct{ prefix, in, out string }{
		{"127.0.0.0/8", "127.255.255.255", "128.0.0.0"},
		{"10.0.16.9/20", "10.0.31.255", "10.0.32.0"},
		{"10.0.0.4/31", "10.0.0.5", "10.0.0.6"},
		{"10.0.0.4/32", "10.0.0.4", "10.0.0.5"},
		{"0.0.0.0/0", "255.255.255.255", ""},
	} {
		w := Within(Dest, netip.MustParsePrefix(c.prefix))
		if !matches(w, netip.MustParseAddr(c.in)) {
			t.Errorf("%s is not within %s", c.in, c.prefix)
		}
		if c.out != "" && matches(w, netip.MustParseAddr(c.out)) {
			t.Errorf("%s is within %s", c.out, c.prefix)
		}
	}
}

func TestIifLike(t *testing.T) {
	for name, want := range map[string]string{
		"docker0":                      "docker0\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"br-*":                         "br-",
		"*":                            "",
		"a name that is far too long*": "a name that is f",
	} {
		if got := string(IifLike(name)[1].(*expr.Cmp).Data); got != want {
			t.Errorf("%q is compared with %q, want %q", name, got, want)
		}
	}
}
