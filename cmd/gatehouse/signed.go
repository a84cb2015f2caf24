package main

import (
	"context"
	"io"

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
	p.StringVar(&a.who.email, "email", "", "sign in as `ADDRESS` for this one go; else the session of gatehouse login is used")
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

// run does it as the person who signed in. What the box refuses is exit code 3.
func (a *askAs) run(cmd *cobra.Command, do func(context.Context, *signed) error) error {
	b, err := a.open(cmd.Context())
	if err != nil {
		return err
	}
	s := &signed{b, a.asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr()}
	return b.as(cmd.Context(), a.who, cmd.InOrStdin(), func(ctx context.Context) error { return do(ctx, s) })
}

// open finds the box, if somebody could sign in there.
func (a *askAs) open(ctx context.Context) (*box, error) {
	if err := signedInSomewhere(a.who); err != nil {
		return nil, err
	}
	var args []string
	if a.address != "" {
		args = []string{a.address}
	}
	b, _, err := findBox(ctx, args, false)
	return b, err
}
