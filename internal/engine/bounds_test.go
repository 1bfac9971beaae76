package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func TestBounds(t *testing.T) {
	for body, want := range map[string]string{
		`{"HostConfig":{"Ulimits":[null]}}`:                                            "a ulimit is null",
		`{"HostConfig":{"BlkioWeightDevice":[null]}}`:                                  "a block device weight is null",
		`{"HostConfig":{"BlkioDeviceReadBps":[null]}}`:                                 "a block device limit is null",
		`{"HostConfig":{"BlkioDeviceWriteIOps":[{"Path":"/dev/null","Rate":1},null]}}`: "a block device limit is null",
		`{"HostConfig":{"CapAdd":["NET_ADMIN","WINGS"]}}`:                              `invalid CapAdd: unknown capability: "WINGS"`,
		`{"HostConfig":{"CapDrop":["../x"]}}`:                                          `invalid CapDrop: unknown capability: "../x"`,
		`{"HostConfig":{"OomScoreAdj":1001}}`:                                          "Invalid value 1001, range for oom score adj is [-1000, 1000]",
		`{"HostConfig":{"ShmSize":-1}}`:                                                "SHM size can not be less than 0",
		`{"HostConfig":{"MemorySwappiness":101}}`:                                      "Invalid value: 101, valid memory swappiness range is 0-100",
		`{"HostConfig":{"CpuPeriod":5}}`:                                               "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
		`{"HostConfig":{"CpuQuota":5}}`:                                                "CPU cfs quota can not be less than 1ms (i.e. 1000)",
		`{"HostConfig":{"CpuShares":-5}}`:                                              "shares can not be negative: -5",
		`{"HostConfig":{"CpusetCpus":"../../x"}}`:                                      "Invalid value ../../x for cpuset cpus",
		`{"HostConfig":{"BlkioWeight":9}}`:                                             "Range of blkio weight is from 10 to 1000",
		`{"HostConfig":{"CgroupParent":"a/../../b"}}`:                                  `invalid CgroupParent: "a/../../b"`,
		`{"HostConfig":{"ExtraHosts":["h:1.2.3.4\n9.9.9.9 bank"]}}`:                    `the host name or option "h:1.2.3.4\n9.9.9.9 bank" holds a line break or a zero byte`,
		`{"HostConfig":{"ExtraHosts":["h"]}}`:                                          `bad format for add-host: "h"`,
		`{"HostConfig":{"DnsSearch":["a\nnameserver 9.9.9.9"]}}`:                       `the host name or option "a\nnameserver 9.9.9.9" holds a line break or a zero byte`,
		`{"Hostname":"a\nb"}`:                                                          `the host name or option "a\nb" holds a line break or a zero byte`,
		`{"Env":["A=b\u0000c"]}`:                                                       "no word of a command, variable, path, option, user or group may hold a zero byte",
		`{"HostConfig":{"Tmpfs":{"/x":"size=1m\u0000"}}}`:                              "no word of a command, variable, path, option, user or group may hold a zero byte",

		`{"Env":["A=b\nc"],"HostConfig":{"CapAdd":["all","net_admin","CAP_CHOWN"],"CpuQuota":-1,"CpusetCpus":"0-1,3","CgroupParent":"/a..b/c",
			"OomScoreAdj":-1000,"MemorySwappiness":-1,"BlkioWeight":10,"ExtraHosts":["h:host-gateway","six:::1"]}}`: "",
	} {
		var req container.CreateRequest
		if err := json.Unmarshal([]byte(body), &req); err != nil {
			t.Fatal(body, err)
		}
		cfg, hc := req.Config, req.HostConfig
		if cfg == nil {
			cfg = &container.Config{}
		}
		if hc == nil {
			hc = &container.HostConfig{}
		}
		err := validateBounds(cfg, hc)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s\nrefused: %v", body, err)
		case want != "" && (err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err)):
			t.Errorf("%s\ngot  %v\nwant %s", body, err, want)
		}
	}
	many := &container.HostConfig{ExtraHosts: strings.Split(strings.Repeat("h:1.2.3.4 ", maxAnswerHosts+1), " ")}
	if err := validateBounds(&container.Config{}, many); err == nil {
		t.Error("any number of hosts is taken")
	}
}
