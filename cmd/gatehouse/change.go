package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

// changeFlags are those of every command that changes a box as a person who
// signs in.
type changeFlags struct {
	at     string
	who    signIn
	asJSON bool
	dryRun bool
	keep   bool
}

// register adds what all verbs of a command share.
func (f *changeFlags) register(c *cobra.Command) {
	p := c.PersistentFlags()
	p.StringVar(&f.at, "box", "", "the `ADDRESS` of the box; the only known one if not given")
	p.StringVar(&f.who.email, "email", "", "sign in as `ADDRESS` for this one go; else the session of gatehouse login is used")
	p.StringVar(&f.who.password, "password", "", "read the password from file:`PATH` or -")
	p.StringVar(&f.who.code, "code", "", "read the code of the second factor, or a recovery code, from file:`PATH` or -")
	p.BoolVar(&f.asJSON, "json", false, "print JSON")
}

// registerTry adds what the verbs share that try something.
func (f *changeFlags) registerTry(c *cobra.Command) {
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would change and who would be cut off, and change nothing")
	c.Flags().BoolVar(&f.keep, "keep", false, "keep it without asking, over a new connection")
}

// change is one verb at work, signed in.
type change struct {
	changeFlags
	*box
	api string // such as /api/v1/allowlists
	in  io.Reader
	out io.Writer
	err io.Writer
}

// signedIn runs a verb as the person who signed in.
func (f *changeFlags) signedIn(cmd *cobra.Command, api string, do func(context.Context, *change) error) error {
	if err := signedInSomewhere(f.who); err != nil {
		return err
	}
	var args []string
	if f.at != "" {
		args = []string{f.at}
	}
	b, _, err := askStatus(cmd.Context(), args, "")
	if err != nil {
		return err
	}
	r := &change{changeFlags: *f, box: b, api: api, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
	return b.as(cmd.Context(), f.who, r.in, func(ctx context.Context) error { return do(ctx, r) })
}

// offer keeps a candidate if --keep or a person says so.
func (r *change) offer(ctx context.Context, c *control.Candidate) error {
	if !r.keep {
		fmt.Fprintf(r.err, "It is in effect, and goes back in %d seconds. Type yes to keep it: ", c.Seconds)
		line, err := bufio.NewReader(r.in).ReadString('\n')
		if strings.TrimSpace(line) != "yes" {
			if err != nil {
				fmt.Fprintln(r.err)
			}
			return fail(exitConflict, "the change was not kept: the box takes it back by itself")
		}
	}
	return r.confirm(ctx, "keep", c.ID)
}

// confirm keeps or reverts, over a new connection.
func (r *change) confirm(ctx context.Context, verb, id string) error {
	r.client.CloseIdleConnections()
	var answer struct{}
	if _, err := r.call(ctx, "POST", r.api+"/"+verb, map[string]string{"id": id}, &answer); err != nil {
		return err
	}
	fmt.Fprintln(r.err, map[string]string{"keep": "Kept.", "revert": "Taken back."}[verb])
	return nil
}

// waiting keeps or reverts what waits now.
func (r *change) waiting(ctx context.Context, verb string, c *control.Candidate) error {
	if c == nil {
		return fail(exitNotFound, "no change waits to be kept")
	}
	return r.confirm(ctx, verb, c.ID)
}

// edit opens an editor on a text, in a file that nobody else can read, and
// calls then with its path.
func (r *change) edit(ctx context.Context, name, text string, then func(path string) error) error {
	words := strings.Fields(os.Getenv("EDITOR"))
	if len(words) == 0 {
		return fail(exitUsage, "EDITOR names no editor: set it, or use show and apply")
	}
	dir, err := os.MkdirTemp("", "gatehouse-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	c := exec.CommandContext(ctx, words[0], append(words[1:], path)...)
	c.Stdin, c.Stdout, c.Stderr = r.in, r.err, r.err
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s ended with an error, nothing was changed: %w", words[0], err)
	}
	return then(path)
}
