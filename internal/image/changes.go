package image

import (
	"encoding/json"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-connections/nat"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/skep-dev/skep/internal/cluster"
)

// parseChanges reads the Dockerfile instructions that import and commit accept
// and returns the configuration they make.
func parseChanges(changes []string) (dockerspec.DockerOCIImageConfig, error) {
	var c dockerspec.DockerOCIImageConfig
	for _, line := range changes {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if err := applyChange(&c, strings.ToUpper(word), strings.TrimSpace(rest)); err != nil {
			return c, err
		}
	}
	return c, nil
}

func applyChange(c *dockerspec.DockerOCIImageConfig, word, rest string) (err error) {
	if rest == "" {
		return cluster.Invalidf("%s requires at least one argument", word)
	}
	switch word {
	case "CMD":
		c.Cmd = command(rest)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest)
	case "ENV":
		return pairs(word, rest, func(k, v string) { c.Env = setEnv(c.Env, k, v) })
	case "LABEL":
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		return pairs(word, rest, func(k, v string) { c.Labels[k] = v })
	case "EXPOSE":
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		ports, _, err := nat.ParsePortSpecs(strings.Fields(rest))
		if err != nil {
			return cluster.Invalidf("%v", err)
		}
		for p := range ports {
			c.ExposedPorts[string(p)] = struct{}{}
		}
	case "WORKDIR":
		if !path.IsAbs(rest) {
			rest = path.Join("/", c.WorkingDir, rest)
		}
		c.WorkingDir = path.Clean(rest)
	case "USER":
		c.User = rest
	case "VOLUME":
		if c.Volumes == nil {
			c.Volumes = map[string]struct{}{}
		}
		for _, v := range list(rest) {
			c.Volumes[v] = struct{}{}
		}
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, rest)
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "SHELL":
		if json.Unmarshal([]byte(rest), &c.Shell) != nil {
			return cluster.Invalidf("SHELL requires the arguments to be in JSON form")
		}
	case "HEALTHCHECK":
		c.Healthcheck, err = parseHealth(rest)
	default:
		return cluster.Invalidf("%s is not a valid change command", strings.ToLower(word))
	}
	return err
}

// command reads the JSON form of a command, or wraps the shell form.
func command(s string) []string {
	var words []string
	if json.Unmarshal([]byte(s), &words) == nil {
		return words
	}
	return []string{"/bin/sh", "-c", s}
}

func list(s string) []string {
	var words []string
	if json.Unmarshal([]byte(s), &words) == nil {
		return words
	}
	return strings.Fields(s)
}

func setEnv(env []string, k, v string) []string {
	for i, e := range env {
		if name, _, _ := strings.Cut(e, "="); name == k {
			env[i] = k + "=" + v
			return env
		}
	}
	return append(env, k+"="+v)
}

// pairs reads k=v pairs with quotes and backslashes, or the old form "k v".
func pairs(word, s string, yield func(k, v string)) error {
	first, rest, _ := strings.Cut(s, " ")
	if !strings.Contains(first, "=") {
		if rest = strings.TrimSpace(rest); rest == "" {
			return cluster.Invalidf("%s must have two arguments", word)
		}
		yield(first, rest)
		return nil
	}
	words, err := split(s)
	if err != nil {
		return cluster.Invalidf("%s: %v", word, err)
	}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return cluster.Invalidf("Syntax error - can't find = in %q. Must be of the form: name=value", w)
		}
		yield(k, v)
	}
	return nil
}

// split parts words at spaces, minding quotes and backslashes.
func split(s string) ([]string, error) {
	var words []string
	var w strings.Builder
	var quote byte
	in := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			w.WriteByte(s[i])
			in = true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				w.WriteByte(c)
			}
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				words = append(words, w.String())
			}
			w.Reset()
			in = false
		default:
			w.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, cluster.Invalidf("unexpected end of statement while looking for matching %c-quote", quote)
	}
	if in {
		words = append(words, w.String())
	}
	return words, nil
}

// parseHealth reads HEALTHCHECK's argument: NONE, or options and CMD.
func parseHealth(s string) (*dockerspec.HealthcheckConfig, error) {
	h := &dockerspec.HealthcheckConfig{}
	if strings.EqualFold(s, "NONE") {
		h.Test = []string{"NONE"}
		return h, nil
	}
	for strings.HasPrefix(s, "--") {
		opt, rest, _ := strings.Cut(s, " ")
		s = strings.TrimSpace(rest)
		k, v, _ := strings.Cut(strings.TrimPrefix(opt, "--"), "=")
		if err := healthOption(h, k, v); err != nil {
			return nil, err
		}
	}
	word, rest, _ := strings.Cut(s, " ")
	rest = strings.TrimSpace(rest)
	if !strings.EqualFold(word, "CMD") {
		return nil, cluster.Invalidf("Unknown type %q in HEALTHCHECK (try CMD)", word)
	}
	if rest == "" {
		return nil, cluster.Invalidf("Missing command after HEALTHCHECK CMD")
	}
	var words []string
	if json.Unmarshal([]byte(rest), &words) == nil {
		h.Test = append([]string{"CMD"}, words...)
	} else {
		h.Test = []string{"CMD-SHELL", rest}
	}
	return h, nil
}

func healthOption(h *dockerspec.HealthcheckConfig, k, v string) error {
	if k == "retries" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return cluster.Invalidf("--retries must be at least 0, not %q", v)
		}
		h.Retries = n
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return cluster.Invalidf("HEALTHCHECK --%s: %v", k, err)
	}
	switch k {
	case "interval":
		h.Interval = d
	case "timeout":
		h.Timeout = d
	case "start-period":
		h.StartPeriod = d
	case "start-interval":
		h.StartInterval = d
	default:
		return cluster.Invalidf("unknown flag: %s", k)
	}
	return nil
}
