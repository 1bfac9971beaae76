package hosts

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEngine: the engine as somebody uses it who never heard of swarms, with
// both command lines.
func TestEngine(t *testing.T) {
	both(t, func(t *testing.T, cli string) {
		f := newFleet(t, "solo")
		f.cli = cli
		f.load("busybox", "solo")
		f.load("nginx", "solo")
		do := func(line string, more ...string) string { t.Helper(); return f.do("solo", line, more...) }
		expect := func(got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}

		expect(do("run --rm busybox echo hello"), "hello")
		expect(do("run --rm -e A=b -w /tmp -u 1000:1000 --hostname box busybox sh -c", "echo $A $(pwd) $(id -u) $(hostname)"), "b /tmp 1000 box")
		expect(do("run --rm --entrypoint /bin/echo busybox over"), "over")
		expect(do("run --rm --memory 32m --cpus 0.5 busybox sh -c", "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"), "33554432")
		f.refused(3, "", "solo", "run --rm busybox sh -c", "exit 3")
		f.refused(127, "executable file not found in $PATH", "solo", "run --rm busybox nosuchprogram")

		do("volume create data")
		do("run --rm -v data:/d busybox sh -c", "echo kept > /d/file")
		expect(do("run --rm --mount type=volume,src=data,dst=/d,readonly busybox cat /d/file"), "kept")

		do("network create front")
		do("run -d --name web --network front -p 8088:80 --restart unless-stopped --label tier=web nginx")
		f.eventually("a published port answers", func() string {
			r := f.exec(nil, "curl", "-s", "--max-time", "2", "http://"+f.ip("solo")+":8088/")
			if !strings.Contains(r.out, "nginx") {
				return "answered: " + r.out + r.err
			}
			return ""
		})
		if out := do("run --rm --network front busybox wget -q -O - http://web/"); !strings.Contains(out, "nginx") {
			t.Errorf("by name over the network: %q", out)
		}
		expect(do("ps --format {{.Names}}|{{.Image}} --filter label=tier=web"), "web|nginx")
		expect(do("exec web cat /proc/1/comm"), "nginx")
		f.refused(1, "Conflict. The container name \"/web\" is already in use by container", "solo", "create --name web busybox")
		f.refused(125, "port is already allocated", "solo", "run --rm -p 8088:80 busybox true")

		do("run -d --name talker busybox sh -c", "echo oops >&2; sleep 0.1; for i in 1 2 3; do echo line $i; done; sleep 1000")
		f.eventually("the log is written", func() string {
			if out := do("logs talker"); strings.Count(out, "line") != 3 {
				return "so far: " + out
			}
			return ""
		})
		expect(do("logs --tail 1 talker"), "line 3")
		do("stop -t 0 talker")
		expect(do("inspect --format {{.State.Status}}|{{.State.ExitCode}} talker"), "exited|137")
		expect(do("wait talker"), "137")
		do("start talker")
		do("restart -t 0 talker")
		do("kill talker")
		do("rm talker")
		f.refused(1, "No such container: talker", "solo", "rm talker")

		// The daemon is killed: the container goes on, and its restart policy too.
		before := do("inspect --format {{.State.Pid}} web")
		f.exec(nil, skepBin(), "machine", "ssh", "solo", "kill -9 $(cat /run/skep.pid)")
		f.eventually("the daemon is back", func() string {
			if r := f.try("solo", "ps -q"); r.exit != 0 {
				return r.err
			}
			return ""
		})
		expect(do("inspect --format {{.State.Pid}} web"), before)
		if n := strings.Count(do("logs web"), "GET /"); n < 2 {
			t.Errorf("the log of before the restart is gone: %d requests", n)
		}
		do("rm -f web")
		do("network rm front")
		do("volume rm data")

		// import and tag
		tar := filepath.Join(t.TempDir(), "root.tar")
		if out, err := exec.Command("tar", "-C", "/bin", "-cf", tar, "busybox").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		do("import " + tar + " mine:1")
		do("tag mine:1 mine:2")
		expect(do("run --rm mine:2 /busybox echo imported"), "imported")
		do("rmi mine:1 mine:2")
	})
}
