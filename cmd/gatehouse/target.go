package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// maxKey bounds what is read as a private key.
const maxKey = 16 << 10

func targetsCommand() *cobra.Command {
	var a askAs
	c := &cobra.Command{
		Use:     "targets",
		Short:   "List what sessions can reach",
		Long:    "List the targets of a box: the machines and services of its network that sessions can\nreach, and the box itself.",
		Example: "  gatehouse targets\n  gatehouse targets --json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.run(cmd, listTargets) },
	}
	a.flags(c.Flags())
	return c
}

func (b *box) targets(ctx context.Context) ([]api.Target, error) {
	var l api.TargetList
	_, err := b.call(ctx, http.MethodGet, api.Targets, nil, &l)
	return l.Targets, err
}

func listTargets(ctx context.Context, s *signed) error {
	list, err := s.targets(ctx)
	if err != nil {
		return err
	}
	if s.asJSON {
		return printJSON(s.out, api.TargetList{Targets: list})
	}
	fmt.Fprintf(s.out, "%-20s %-6s %-30s %-10s %s\n", "NAME", "KIND", "ADDRESS", "RECORDING", "CREDENTIAL")
	for _, t := range list {
		credential := "none"
		if t.Credential != "" {
			credential = t.Credential + " of " + t.User
		}
		if t.Kind != targets.SSH {
			credential = ""
		}
		fmt.Fprintf(s.out, "%-20s %-6s %-30s %-10s %s\n", printable(t.Name), t.Kind, printable(place(t.Target)), t.Recording, printable(credential))
	}
	return nil
}

func place(t targets.Target) string {
	if t.Host == "" {
		return "the box itself"
	}
	return net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
}

// targetFlags are those by which a target is described.
type targetFlags struct {
	name, kind, address, recording string
	idle                           int
}

func (f *targetFlags) register(c *cobra.Command) {
	p := c.Flags()
	p.StringVar(&f.kind, "kind", "", "what speaks there: ssh, http, https, rdp, vnc or tcp")
	p.StringVar(&f.address, "address", "", "`HOST[:PORT]` as the box sees it; the kind's usual port if not given")
	p.StringVar(&f.recording, "recording", "", "what becomes of its sessions: off, allowed or forced")
	p.IntVar(&f.idle, "idle", 0, "`MINUTES` without input until a session ends; 0: never")
}

func targetCommand() *cobra.Command {
	var a askAs
	change := func(use, short, example string, do func(context.Context, *signed, *cobra.Command, api.Target) error) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Example: example, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error {
				t, err := s.find(ctx, args[0])
				if err != nil {
					return err
				}
				return do(ctx, s, cmd, t)
			})
		}}
	}
	var f targetFlags
	changed := change("change", "Change a target", "  gatehouse target change nas --address 192.168.1.6", func(ctx context.Context, s *signed, cmd *cobra.Command, t api.Target) error {
		q, err := f.over(cmd, t)
		if err != nil {
			return err
		}
		return s.putTarget(ctx, api.TargetChange, q)
	})
	f.register(changed)
	changed.Flags().StringVar(&f.name, "name", "", "a new name")
	c := group("target", "Declare what sessions can reach", targetAddCommand(&a), changed,
		change("remove", "Remove a target, with its credential and host keys", "  gatehouse target remove nas", func(ctx context.Context, s *signed, _ *cobra.Command, t api.Target) error {
			return s.doTarget(ctx, api.TargetRemove, t, "Removed.")
		}),
		credentialCommand(&a),
		change("forget-host-key", "Forget the host keys, so that the next person is asked again", "  gatehouse target forget-host-key nas", func(ctx context.Context, s *signed, _ *cobra.Command, t api.Target) error {
			return s.doTarget(ctx, api.HostKeys, t, "Forgotten. Whoever comes next is shown the key and asked.")
		}))
	c.Long = `A target is a port of a host in the box's network, with a name and a kind. The box keeps
a credential for it, encrypted, which people who open sessions never see, and pins its
SSH host key at first use.`
	c.Example = "  gatehouse target add nas --kind ssh --address 192.168.1.5\n  gatehouse target credential nas --user ann --secret file:password"
	a.flags(c.PersistentFlags())
	return c
}

func targetAddCommand(a *askAs) *cobra.Command {
	var f targetFlags
	c := &cobra.Command{
		Use:     "add NAME",
		Short:   "Declare a target",
		Example: "  gatehouse target add nas --kind ssh --address 192.168.1.5\n  gatehouse target add \"Printer\" --kind http --address printer.lan --recording off",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.name = args[0]
			q, err := f.over(cmd, api.Target{Recording: targets.RecordingAllowed})
			if err != nil {
				return err
			}
			return a.run(cmd, func(ctx context.Context, s *signed) error { return s.putTarget(ctx, api.Targets, q) })
		},
	}
	f.register(c)
	for _, name := range []string{"kind", "address"} {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err) // the flag is registered above
		}
	}
	return c
}

// over is a target with what the flags say in the place of what was.
func (f *targetFlags) over(cmd *cobra.Command, t api.Target) (api.TargetNew, error) {
	q := api.TargetNew{ID: t.ID, Target: t.Target, Recording: t.Recording, Idle: t.Idle}
	if f.name != "" {
		q.Name = f.name
	}
	if f.kind != "" {
		if q.Kind = targets.Kind(f.kind); q.Kind != t.Kind && f.address == "" {
			q.Port = q.Kind.UsualPort()
		}
	}
	if f.address != "" {
		host, port, err := net.SplitHostPort(f.address)
		if err != nil {
			host, port = strings.Trim(f.address, "[]"), strconv.Itoa(int(q.Kind.UsualPort()))
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return q, fail(exitUsage, "--address %s: it has no port, and kind %s has no usual one: HOST:PORT", f.address, q.Kind)
		}
		q.Host, q.Port = host, uint16(n)
	}
	if f.recording != "" {
		q.Recording = targets.Recording(f.recording)
	}
	if cmd.Flags().Changed("idle") {
		q.Idle = f.idle
	}
	if err := q.Target.Check(); err != nil {
		return q, fail(exitUsage, "%w", err)
	}
	return q, nil
}

func (s *signed) find(ctx context.Context, name string) (api.Target, error) {
	list, err := s.targets(ctx)
	if err != nil {
		return api.Target{}, err
	}
	for _, t := range list {
		if t.Name == name || t.ID != 0 && strconv.FormatInt(t.ID, 10) == name {
			return t, nil
		}
	}
	return api.Target{}, fail(exitNotFound, "there is no target %s: gatehouse targets lists them", name)
}

func (s *signed) putTarget(ctx context.Context, path string, q api.TargetNew) error {
	var t api.Target
	if _, err := s.call(ctx, http.MethodPost, path, q, &t); err != nil {
		return err
	}
	if s.asJSON {
		return printJSON(s.out, t)
	}
	_, err := fmt.Fprintf(s.out, "%s is %s at %s, recording %s.\n", printable(t.Name), t.Kind, printable(place(t.Target)), t.Recording)
	return err
}

func (s *signed) doTarget(ctx context.Context, path string, t api.Target, done string) error {
	var answer struct{}
	if _, err := s.call(ctx, http.MethodPost, path, api.Which{ID: t.ID}, &answer); err != nil {
		return err
	}
	fmt.Fprintln(s.err, done)
	return nil
}

func credentialCommand(a *askAs) *cobra.Command {
	var user, secret, key string
	var remove bool
	c := &cobra.Command{
		Use:   "credential NAME",
		Short: "Put the credential of a target into the box's vault, or remove it",
		Long: `Put a user with a password or a private key (PEM, without a passphrase) into the box's
vault, where it is encrypted, or remove it. The box shows it to nobody again.`,
		Example: "  gatehouse target credential nas --user ann --secret file:password\n  gatehouse target credential nas --user ann --key file:id_ed25519\n  gatehouse target credential nas --remove",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := api.CredentialSet{User: user}
			if err := checkCredential(user, secret, key, remove, a.who); err != nil {
				return err
			}
			var err error
			switch {
			case secret != "":
				q.Password, err = readSecret("secret", secret, cmd.InOrStdin())
			case key != "":
				q.PrivateKey, err = readKey(key, cmd.InOrStdin())
			}
			if err != nil {
				return err
			}
			return a.run(cmd, func(ctx context.Context, s *signed) error { return s.putCredential(ctx, args[0], q) })
		},
	}
	c.Flags().StringVar(&user, "user", "", "who signs in at the target")
	c.Flags().StringVar(&secret, "secret", "", "read that user's password from file:`PATH` or -")
	c.Flags().StringVar(&key, "key", "", "read a private key from file:`PATH` or -")
	c.Flags().BoolVar(&remove, "remove", false, "remove what is kept")
	return c
}

// checkCredential refuses what does not make one before anything is read.
func checkCredential(user, secret, key string, remove bool, who signIn) error {
	switch {
	case remove && (user != "" || secret != "" || key != ""):
		return fail(exitUsage, "--remove goes alone")
	case remove:
		return nil
	case user == "" || (secret == "") == (key == ""):
		return fail(exitUsage, "a credential is --user with --secret or with --key")
	}
	for name, v := range map[string]string{"secret": secret, "key": key} {
		if err := checkSecretFlag(name, v); err != nil {
			return err
		}
	}
	return oneStdin(secret, key, who.password, who.code)
}

// readKey reads a private key as it is.
func readKey(from string, stdin io.Reader) (string, error) {
	in := stdin
	if path, ok := strings.CutPrefix(from, "file:"); ok {
		f, err := os.Open(path)
		if err != nil {
			return "", fail(exitNotFound, "reading --key: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxKey+1))
	if err != nil {
		return "", fmt.Errorf("reading --key: %w", err)
	}
	if len(b) > maxKey || !strings.Contains(string(b), "PRIVATE KEY-----") {
		return "", fail(exitUsage, "--key: this is not a private key in PEM of at most %d bytes", maxKey)
	}
	return string(b), nil
}

func (s *signed) putCredential(ctx context.Context, name string, q api.CredentialSet) error {
	t, err := s.find(ctx, name)
	if err != nil {
		return err
	}
	q.ID = t.ID
	var answer struct{}
	if _, err := s.call(ctx, http.MethodPost, api.Credential, q, &answer); err != nil {
		return err
	}
	if q.User == "" {
		fmt.Fprintln(s.err, "Removed.")
	} else {
		fmt.Fprintln(s.err, "Kept, encrypted.")
	}
	return nil
}
