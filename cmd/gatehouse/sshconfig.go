package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// hostSuffix is what names of targets end with for OpenSSH.
const hostSuffix = ".gatehouse"

func sshConfigCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "ssh-config",
		Short: "Print the lines by which OpenSSH goes through sessions",
		Long: `Print lines for ~/.ssh/config, by which ssh, scp, sftp and rsync reach the target nas as
nas.gatehouse: as yourself, with your own keys, and with OpenSSH's own check of the
target's host key. A name of a target that is not one of a host is spelt in lower case with
hyphens: "Drucker Nord" is drucker-nord.gatehouse.

Sign in first with gatehouse login: ssh cannot ask for it.`,
		Example: "  gatehouse ssh-config >> ~/.ssh/config\n  ssh ann@nas.gatehouse uptime\n  rsync -a site/ ann@nas.gatehouse:/srv/site/",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("finding this program: %w", err)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), sshConfig(self, address))
			return err
		},
	}
	c.Flags().StringVar(&address, "box", "", "the `ADDRESS` of the box; the only known one if not given")
	return c
}

// sshConfig names the program by its path: ssh starts it by the shell of the
// person, whose PATH may be another one.
func sshConfig(self, address string) string {
	command := shellQuote(self) + " connect %n --stdio"
	if address != "" {
		command += " --box " + shellQuote(address)
	}
	return "Host *" + hostSuffix + "\n  ProxyCommand " + command + "\n  ServerAliveInterval 0\n"
}

// shellQuote also doubles %, which ssh would replace.
func shellQuote(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._:[]-%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// hostLabel spells the name of a target as one of a host.
func hostLabel(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	s := strings.Trim(b.String(), "-")
	return strings.Trim(s[:min(len(s), 40)], "-")
}
