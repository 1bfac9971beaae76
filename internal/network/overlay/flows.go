package overlay

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// Numbers of the kernel's conntrack netlink, which x/sys lacks; see
// linux/netfilter/nfnetlink_conntrack.h and nf_conntrack_common.h.
const (
	ctNew    = unix.NFNL_SUBSYS_CTNETLINK << 8
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaTimeout    = 7
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaProtoNum   = 1
	ctaDstPort    = 3

	ctSeenReply    = 1 << 1
	ctAssured      = 1 << 2
	ctFixedTimeout = 1 << 10
)

// flows talks to one namespace's connection tracking. A busy host has hundreds
// of thousands of flows, so they are looked at as they come and changed many at
// a time, which the netlink libraries do not offer.
type flows struct {
	fd  int
	seq uint32
	buf []byte
}

// flow is one entry; it is good only until the next.
type flow struct {
	orig, reply tuple
	status      uint32
}

// tuple is one direction of a flow.
type tuple struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16 // of the destination
	raw      []byte // as the kernel wrote it
}

func dialFlows(ns netns.NsHandle) (*flows, error) {
	f := &flows{buf: make([]byte, 1<<16)}
	err := namespace.Do(ns, func() (err error) {
		f.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Should an answer be lost, somebody waits, but not for ever.
	if err := unix.SetsockoptTimeval(f.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return nil, closeWith(f.fd, err)
	}
	if err := unix.SetsockoptInt(f.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, netlinkBuffer); err != nil {
		return nil, closeWith(f.fd, err)
	}
	return f, nil
}

func closeWith(fd int, err error) error {
	_ = unix.Close(fd)
	return err
}

func (f *flows) close() { _ = unix.Close(f.fd) }

// dump shows do every IPv4 flow of the namespace.
func (f *flows) dump(do func(*flow)) error {
	f.seq++
	m := ctMessage(ctGet)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	binary.NativeEndian.PutUint32(m[8:], f.seq)
	if err := unix.Sendto(f.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return f.receive(func(m syscall.NetlinkMessage) {
		var fl flow
		if fl.parse(m.Data) {
			do(&fl)
		}
	})
}

// send has the kernel do what the messages say, and returns when it did.
func (f *flows) send(messages [][]byte) error {
	f.seq++
	last := messages[len(messages)-1]
	binary.NativeEndian.PutUint16(last[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.NativeEndian.PutUint32(last[8:], f.seq)
	if err := unix.Sendto(f.fd, slices.Concat(messages...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	return f.receive(nil)
}

// receive reads answers until the one that ends the request of now; it returns
// a dump's error, but not a change's.
func (f *flows) receive(do func(syscall.NetlinkMessage)) error {
	for {
		n, _, err := unix.Recvfrom(f.fd, f.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(f.buf[:n])
		if err != nil {
			return err
		}
		for _, m := range msgs {
			switch {
			case m.Header.Seq != f.seq: // of a message without a number
			case m.Header.Type == unix.NLMSG_DONE:
				return nil
			case m.Header.Type == unix.NLMSG_ERROR:
				if do != nil && len(m.Data) >= 4 {
					return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
				}
				return nil
			case do != nil:
				do(m)
			}
		}
	}
}

// ctMessage makes a message to connection tracking about IPv4.
func ctMessage(kind uint16, attrs ...[]byte) []byte {
	m := make([]byte, unix.NLMSG_HDRLEN, 128)
	binary.NativeEndian.PutUint16(m[4:], kind)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST)
	m = append(m, unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
	for _, a := range attrs {
		m = append(m, a...)
	}
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	return m
}

func attribute(kind uint16, data []byte) []byte {
	a := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(data)))
	a = append(binary.NativeEndian.AppendUint16(a, kind), data...)
	for len(a)%unix.NLA_ALIGNTO != 0 {
		a = append(a, 0)
	}
	return a
}

// parse reads what the kernel says of a flow; false if it is not one of IPv4.
func (fl *flow) parse(b []byte) bool {
	if len(b) < 4 {
		return false
	}
	eachAttribute(b[4:], func(kind uint16, data []byte) {
		switch kind {
		case ctaTupleOrig:
			fl.orig.parse(data)
		case ctaTupleReply:
			fl.reply.parse(data)
		case ctaStatus:
			if len(data) == 4 {
				fl.status = binary.BigEndian.Uint32(data)
			}
		}
	})
	return fl.orig.dst.IsValid() && fl.reply.src.IsValid()
}

func (t *tuple) parse(b []byte) {
	t.raw = b
	eachAttribute(b, func(kind uint16, data []byte) {
		eachAttribute(data, func(inner uint16, data []byte) {
			switch {
			case kind == ctaTupleIP && len(data) == 4 && inner == ctaIPv4Src:
				t.src = netip.AddrFrom4([4]byte(data))
			case kind == ctaTupleIP && len(data) == 4 && inner == ctaIPv4Dst:
				t.dst = netip.AddrFrom4([4]byte(data))
			case kind == ctaTupleProto && len(data) == 1 && inner == ctaProtoNum:
				t.proto = data[0]
			case kind == ctaTupleProto && len(data) == 2 && inner == ctaDstPort:
				t.port = binary.BigEndian.Uint16(data)
			}
		})
	})
}

// eachAttribute shows do the netlink attributes in b, as far as they are whole.
func eachAttribute(b []byte, do func(kind uint16, data []byte)) {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return
		}
		do(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofNlAttr:size])
		size = (size + unix.NLA_ALIGNTO - 1) &^ (unix.NLA_ALIGNTO - 1)
		b = b[min(size, len(b)):]
	}
}
