package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"github.com/skep-dev/skep/internal/cluster"
)

// The log drivers known by name.
const (
	logJSONFile = "json-file"
	logLocal    = "local" // kept in the same format
	logNone     = "none"
)

// validateLogConfig fills in the daemon's defaults, for what the container's own
// options leave open when its driver is the daemon's, and checks the result.
func (e *Engine) validateLogConfig(lc *container.LogConfig) error {
	if lc.Type == "" {
		lc.Type = e.cfg.LogDriver
	}
	own := lc.Config
	lc.Config = map[string]string{}
	if lc.Type == e.cfg.LogDriver {
		maps.Copy(lc.Config, e.cfg.LogOpts)
	}
	maps.Copy(lc.Config, own)
	return validateLog(lc.Type, lc.Config)
}

func validateLog(driver string, opts map[string]string) error {
	switch driver {
	case logNone:
		return nil
	case logJSONFile, logLocal:
	default:
		return cluster.Invalidf("logger: no log driver named '%s' is registered", driver)
	}
	for k, v := range opts {
		if err := validateLogOpt(driver, k, v); err != nil {
			return cluster.Invalidf("%s", err)
		}
	}
	return nil
}

func validateLogOpt(driver, k, v string) (err error) {
	switch k {
	case "max-size":
		_, err = units.RAMInBytes(v)
		return err
	case "max-file":
		n, err := strconv.Atoi(v)
		if err == nil && n < 1 {
			err = errors.New("max-file cannot be less than 1")
		}
		return err
	case "compress", "mode", "max-buffer-size":
		return nil // without effect: they change how it is written, not what
	}
	if driver == logJSONFile {
		switch k {
		case "labels", "env":
			return nil
		case "labels-regex", "env-regex":
			_, err = regexp.Compile(v)
			return err
		case "tag":
			_, err = parseTag(v)
			return err
		}
	}
	return fmt.Errorf("unknown log opt '%s' for %s log driver", k, driver)
}

// logLimits returns when a log is rotated and how many files are kept.
func logLimits(lc container.LogConfig) (maxSize int64, maxFiles int) {
	maxFiles = 1
	if lc.Type == logLocal {
		maxSize, maxFiles = 20<<20, 5
	}
	if v, err := units.RAMInBytes(lc.Config["max-size"]); err == nil && v > 0 {
		maxSize = v
	}
	if v, err := strconv.Atoi(lc.Config["max-file"]); err == nil && v > 0 {
		maxFiles = v
	}
	return maxSize, maxFiles
}

// logAttrs returns what is written beside each line of a container's log, as a
// JSON object: the labels and variables that the log's options name, a variable
// before a label of its name, and the tag. It is "" if there are none.
func logAttrs(rec record) (string, error) {
	lc := rec.HostConfig.LogConfig
	if lc.Type != logJSONFile {
		return "", nil
	}
	env := map[string]string{}
	for _, e := range rec.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	attrs := map[string]string{}
	for _, from := range []struct {
		names, regex string
		values       map[string]string
	}{
		{lc.Config["labels"], lc.Config["labels-regex"], rec.Config.Labels},
		{lc.Config["env"], lc.Config["env-regex"], env},
	} {
		if err := pick(attrs, from.values, from.names, from.regex); err != nil {
			return "", err
		}
	}
	if text := lc.Config["tag"]; text != "" {
		tag, err := renderTag(text, rec)
		if err != nil {
			return "", err
		}
		if tag != "" {
			attrs["tag"] = tag
		}
	}
	if len(attrs) == 0 {
		return "", nil
	}
	data, err := json.Marshal(attrs)
	return string(data), err
}

// pick copies the values of the named keys (with commas between), and of those
// that match regex unless it is empty.
func pick(attrs, values map[string]string, names, regex string) error {
	for name := range strings.SplitSeq(names, ",") {
		if v, ok := values[name]; ok {
			attrs[name] = v
		}
	}
	if regex == "" {
		return nil
	}
	re, err := regexp.Compile(regex)
	if err != nil {
		return cluster.Invalidf("%s", err)
	}
	for k, v := range values {
		if re.MatchString(k) {
			attrs[k] = v
		}
	}
	return nil
}

// tagged is what a tag's template may name.
type tagged struct {
	ID, FullID, Name             string
	ImageID, ImageFullID         string
	ImageName                    string
	Command, DaemonName          string
	ContainerID, ContainerName   string
	ContainerImageID             string
	ContainerImageName, Hostname string
	ContainerLabels              map[string]string
}

// tagFuncs are those of Docker's templates that make sense for a tag.
func tagFuncs() template.FuncMap {
	return template.FuncMap{
		"json": func(v any) (string, error) {
			data, err := json.Marshal(v)
			return string(data), err
		},
		"join": strings.Join, "split": strings.Split, "lower": strings.ToLower, "upper": strings.ToUpper,
	}
}

// parseTag reads the template of a tag. It may choose, but not loop: a service's
// user must not keep a node busy with it.
func parseTag(text string) (*template.Template, error) {
	t, err := template.New("log-tag").Option("missingkey=zero").Funcs(tagFuncs()).Parse(text)
	if err != nil {
		return nil, err
	}
	for _, part := range t.Templates() {
		if part.Name() != "log-tag" {
			return nil, fmt.Errorf("template: log-tag: %q is defined inside a tag", part.Name())
		}
	}
	if t.Tree == nil {
		return t, nil // nothing but white space
	}
	return t, noLoops(t.Root)
}

func noLoops(list *parse.ListNode) error {
	if list == nil {
		return nil
	}
	for _, n := range list.Nodes {
		var err error
		switch n := n.(type) {
		case *parse.TextNode, *parse.ActionNode, *parse.CommentNode:
		case *parse.IfNode:
			err = errors.Join(noLoops(n.List), noLoops(n.ElseList))
		case *parse.WithNode:
			err = errors.Join(noLoops(n.List), noLoops(n.ElseList))
		default:
			err = fmt.Errorf("template: log-tag: %s is not for tags", n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// renderTag fills in a tag.
func renderTag(text string, rec record) (string, error) {
	t, err := parseTag(text)
	if err != nil {
		return "", cluster.Invalidf("%s", err)
	}
	host, _ := os.Hostname() // "" if it has none
	var out strings.Builder
	err = t.Execute(&out, tagged{
		ID: rec.ID[:min(12, len(rec.ID))], FullID: rec.ID, ContainerID: rec.ID,
		Name: rec.Name, ContainerName: "/" + rec.Name,
		ImageID: rec.ImageID[:min(12, len(rec.ImageID))], ImageFullID: rec.ImageID, ContainerImageID: rec.ImageID,
		ImageName: rec.ImageName, ContainerImageName: rec.ImageName,
		Command: strings.Join(append([]string{rec.Path}, rec.Args...), " "), DaemonName: "docker", Hostname: host,
		ContainerLabels: rec.Config.Labels,
	})
	if err != nil {
		return "", cluster.Invalidf("%s", err)
	}
	return out.String(), nil
}
