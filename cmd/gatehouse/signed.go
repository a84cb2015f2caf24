package main

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// askAs is what a command needs that asks a box as a person.
type askAs struct {
	address string
	who     signIn
	asJSON  bool
}

func (a *askAs) flags(p *pflag.FlagSet) {
	p.StringVar(&a.address, "box", "", "the `ADDRESS` of the box; the only known one if not given")
	p.StringVar(&a.who.email, "email", "", "sign in as `ADDRESS`")
	p.StringVar(&a.who.password, "password", "", "read the password from file:`PATH` or -")
	p.StringVar(&a.who.code, "code", "", "read the code of the second factor, or a recovery code, from file:`PATH` or -")
	p.BoolVar(&a.asJSON, "json", false, "print JSON")
}

// signed is a command at work, signed in.
type signed struct {
	*box
	asJSON bool
	out    io.Writer
	err    io.Writer
}

// run signs in, does it, and signs out. What the box refuses is exit code 3.
func (a *askAs) run(cmd *cobra.Command, do func(context.Context, *signed) error) error {
	if a.who.email == "" {
		return fail(exitUsage, "this is for people who sign in: give --email, --password and --code")
	}
	if err := a.who.check(); err != nil {
		return err
	}
	var args []string
	if a.address != "" {
		args = []string{a.address}
	}
	b, _, err := askStatus(cmd.Context(), args, "")
	if err != nil {
		return err
	}
	s := &signed{b, a.asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr()}
	err = b.signedIn(cmd.Context(), a.who, cmd.InOrStdin(), func(ctx context.Context) error { return do(ctx, s) })
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusForbidden {
		return fail(exitDenied, "%w", err)
	}
	return err
}
