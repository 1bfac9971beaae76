package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-connections/tlsconfig"

	"github.com/skep-dev/skep/internal/cluster"
)

// listen opens every socket of the configuration, or none.
func listen(c *Config, log *slog.Logger) (_ []net.Listener, err error) {
	var all []net.Listener
	defer func() {
		if err != nil {
			closeAll(all)
		}
	}()
	for _, host := range c.Hosts {
		proto, addr, ok := strings.Cut(host, "://")
		if !ok {
			proto, addr = "tcp", host
		}
		var ls []net.Listener
		switch proto {
		case "unix":
			ls, err = one(listenUnix(addr, c.Group, log))
		case "tcp":
			ls, err = one(listenTCP(addr, c, log))
		case "fd":
			ls, err = inherited()
		default:
			err = cluster.Invalidf("invalid bind address format: %s", host)
		}
		if err != nil {
			return nil, fmt.Errorf("listening on %s: %w", host, err)
		}
		all = append(all, ls...)
	}
	return all, nil
}

func one(l net.Listener, err error) ([]net.Listener, error) { return []net.Listener{l}, err }

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		if l != nil {
			l.Close()
		}
	}
}

// listenUnix opens a socket that root and the group may use. A socket left
// behind by a daemon that is gone is replaced; one that answers is not.
func listenUnix(path, group string, log *slog.Logger) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, cluster.Conflictf("another process serves %s", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// Nobody may connect between bind and chmod.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	gid, err := groupID(group)
	if err != nil {
		if group != "docker" {
			l.Close()
			return nil, err
		}
		log.Debug("sockets belong to root alone", "socket", path, "err", err)
	}
	if err := os.Chown(path, 0, gid); err != nil {
		log.Warn("socket keeps its owner", "socket", path, "err", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func groupID(name string) (int, error) {
	if g, err := user.LookupGroup(name); err == nil {
		return strconv.Atoi(g.Gid)
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	return 0, cluster.NotFoundf("group %s not found", name)
}

func listenTCP(addr string, c *Config, log *slog.Logger) (net.Listener, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		port := "2375"
		if c.TLS {
			port = "2376"
		}
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), port)
	}
	var conf *tls.Config
	if c.TLS {
		opts := tlsconfig.Options{CAFile: c.TLSCA, CertFile: c.TLSCert, KeyFile: c.TLSKey, ExclusiveRootPools: true}
		if c.TLSVerify {
			opts.ClientAuth = tls.RequireAndVerifyClientCert
		}
		var err error
		if conf, err = tlsconfig.Server(opts); err != nil {
			return nil, err
		}
	} else {
		log.Warn("the API is served without TLS: whoever reaches the address is root on this host", "addr", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil || conf == nil {
		return l, err
	}
	return tls.NewListener(l, conf), nil
}

// inherited returns the sockets that systemd opened for us (fd://).
func inherited() ([]net.Listener, error) {
	const first = 3 // after the standard streams
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid != os.Getpid() || n == 0 {
		return nil, cluster.Invalidf("no sockets were handed over: is the daemon started by its systemd socket unit?")
	}
	var all []net.Listener
	for fd := first; fd < first+n; fd++ {
		f := os.NewFile(uintptr(fd), "listen")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			closeAll(all)
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// notify tells systemd, if it waits for it, how far the daemon is.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}

// writePid writes the pid file. One that names a running daemon is an error;
// one left behind, or one whose number belongs to another program now, is not.
func writePid(path string) error {
	if raw, err := os.ReadFile(path); err == nil {
		pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err == nil && pid != os.Getpid() && isDaemon(pid) {
			return cluster.Conflictf("process with PID %d is still running (pid file %s)", pid, path)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644)
}

// isDaemon reports whether a process is a daemon of this program.
func isDaemon(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(raw), "\x00")
	return len(args) > 1 && filepath.Base(args[0]) == "skep" && args[1] == "daemon"
}
