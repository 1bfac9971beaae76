package overlay

import "testing"

// FuzzFlow: whatever stands in a netlink message, reading it ends.
func FuzzFlow(f *testing.F) {
	f.Add(ctMessage(ctNew, attribute(ctaTupleOrig, attribute(ctaTupleIP, attribute(ctaIPv4Src, []byte{10, 0, 0, 1}))))[16:])
	f.Add([]byte{2, 0, 0, 0, 3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var fl flow
		if fl.parse(b) && (!fl.orig.dst.Is4() || !fl.reply.src.Is4()) {
			t.Errorf("a flow without addresses: %+v", fl)
		}
	})
}
