package network

import (
	"context"
	"encoding/binary"
	"errors"
	"os"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/skep-dev/skep/internal/network/namespace"
)

// The nftables library's own monitor can only be asked for everything, and
// leaves a goroutine behind: so the few bytes that matter are read here.

// watchRules puts a token into wake whenever rules are taken away in ns, until
// ctx ends.
func watchRules(ctx context.Context, ns netns.NsHandle, wake chan<- struct{}) error {
	var sock *os.File
	err := namespace.Do(ns, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		sock = os.NewFile(uintptr(fd), "nftables events")
		return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	})
	if err != nil {
		if sock != nil {
			sock.Close()
		}
		return err
	}
	closed := context.AfterFunc(ctx, func() { sock.Close() })
	defer closed()
	buf := make([]byte, 1<<16)
	for {
		n, err := sock.Read(buf)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // more happened than we could hear
		case err != nil:
			return errors.Join(err, sock.Close())
		case !takesAway(buf[:n]):
			continue
		}
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

// takesAway reports whether one of the netlink messages in b deletes a table,
// chain, rule or set.
func takesAway(b []byte) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		typ := binary.NativeEndian.Uint16(b[4:])
		if typ>>8 == unix.NFNL_SUBSYS_NFTABLES {
			switch typ & 0xff {
			case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
				return true
			}
		}
		if size = (size + 3) &^ 3; size < unix.NLMSG_HDRLEN || size > len(b) {
			break
		}
		b = b[size:]
	}
	return false
}
