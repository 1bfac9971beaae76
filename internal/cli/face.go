package cli

import (
	"io"
	"strings"

	"github.com/docker/cli/cli/command"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

// absent are the commands of docker/cli that are left out: their work is done
// by programs (buildx) or services (content trust, plugins from a store) that
// skep does not have.
var absent = map[string]bool{"plugin": true, "checkpoint": true, "manifest": true, "bake": true}

// tidy takes out the commands that make no sense here and puts the face's name
// where the library's texts have docker's.
func (inv Invocation) tidy(root *cobra.Command) {
	for _, c := range root.Commands() {
		if absent[c.Name()] {
			root.RemoveCommand(c)
		}
	}
	if inv.Face == FaceDocker {
		return
	}
	if f := root.Flags().Lookup("context"); f != nil {
		f.Usage = strings.Replace(f.Usage, `"docker context use"`, `"`+inv.Face+` context use"`, 1)
	}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.Short = shorts.Replace(c.Short)
		if a, ok := c.Annotations["aliases"]; ok {
			names := strings.Split(a, ", ")
			for i, n := range names {
				names[i] = inv.renamed(n)
			}
			c.Annotations["aliases"] = strings.Join(names, ", ")
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(root)
}

// shorts takes Docker's name out of what help says the commands are about.
var shorts = strings.NewReplacer("the Docker version information", "version information",
	"Manage Docker", "Manage the host", "Docker objects", "objects")

func (inv Invocation) renamed(s string) string {
	if rest, ok := strings.CutPrefix(s, "docker "); ok {
		return inv.Face + " " + rest
	}
	return s
}

// hints are the texts of the library and the daemon that tell the user what to
// type, with what marks them in front of docker's name. Nothing else is touched.
var hints = []string{
	"\n    docker swarm join --token ",
	"run 'docker swarm join-token manager'",
	"run the `docker swarm unlock`",
	"Use `docker service ps ",
	`Use "docker swarm init" or "docker swarm join"`,
	`Use "docker swarm unlock" to unlock it`,
	`Use "docker swarm leave" to leave`,
	`Use the "docker info" command`,
	"Run 'docker ",
	"'docker logout' followed by 'docker login'",
	`did you mean "docker image `,
}

// hint puts the face's name into a text that tells the user what to type.
func (inv Invocation) hint(text string) string {
	if inv.Face == FaceDocker {
		return text
	}
	for _, h := range hints {
		text = strings.ReplaceAll(text, h, strings.ReplaceAll(h, "docker ", inv.Face+" "))
	}
	if rest, ok := strings.CutPrefix(text, "docker: "); ok {
		text = inv.Face + ": " + rest
	}
	return text
}

// hinting are the commands that print hints on standard output. Their output is
// their own: none of them passes on what a container wrote.
var hinting = map[string]bool{
	"swarm init": true, "swarm join-token": true, "swarm unlock-key": true, "swarm update": true,
	"service create": true, "service update": true, "service scale": true, "service rollback": true,
}

// wrapOutput filters the output of the command that will run, if it is one that
// prints hints.
func (inv Invocation) wrapOutput(root *cobra.Command, args []string, docker *command.DockerCli) error {
	if inv.Face == FaceDocker {
		return nil
	}
	cmd, _, err := root.Find(args)
	if err != nil {
		return nil // the command itself will say
	}
	path := strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
	if !hinting[path] {
		return nil
	}
	out := &hintWriter{inv: inv, w: inv.Stdout}
	if err := command.WithOutputStream(out)(docker); err != nil {
		return err
	}
	_, isTerminal := term.GetFdInfo(inv.Stdout)
	docker.Out().SetIsTerminal(isTerminal)
	return nil
}

// hintWriter filters each write on its own: the library prints a hint in one.
type hintWriter struct {
	inv Invocation
	w   io.Writer
}

func (h *hintWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(h.w, h.inv.hint(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
