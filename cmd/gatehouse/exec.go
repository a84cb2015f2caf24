package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
)

func execCommand() *cobra.Command {
	r := &reach{usesIn: true}
	c := &cobra.Command{
		Use:   "exec TARGET -- COMMAND…",
		Short: "Run one command on a target",
		Long: `Run one command on a target of kind ssh, with the credential that is kept for it.
Standard input, output and error are the command's, and so is the exit code, once it has
begun. The words are joined with spaces and read by the shell there, as with ssh.`,
		Example: "  gatehouse exec nas -- df -h\n  gatehouse exec nas -- 'cat > /tmp/notes' < notes.txt",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return r.session(cmd, args[0], []string{"scripts"}, func(ctx context.Context, s *technician.Session) error {
				return runThere(ctx, cmd, s, r, strings.Join(args[1:], " "))
			})
		},
	}
	r.flags(c.Flags())
	return c
}

func runThere(ctx context.Context, cmd *cobra.Command, s *technician.Session, r *reach, command string) error {
	st, reply, err := s.Open(ctx, wire.Open{Do: wire.Exec, Command: command})
	if err != nil {
		return refusedThere(unreachedStream(err))
	}
	if reply.Recorded {
		fmt.Fprintln(cmd.ErrOrStderr(), "This session is recorded.")
	}
	cut := context.AfterFunc(ctx, func() { st.Close() })
	defer cut()
	t := newTerminal(cmd, false)
	end, err := technician.Attend(st, technician.Screen{
		In: cmd.InOrStdin(), Out: cmd.OutOrStdout(), Err: cmd.ErrOrStderr(), Hold: true, Question: r.question(t), Typed: t.person != nil,
	})
	return howItEnded(end, because(s, err))
}
