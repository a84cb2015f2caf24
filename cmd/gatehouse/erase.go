package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"gatehouse/appliance/released"
)

func eraseCommand() *cobra.Command {
	var f changeFlags
	var name, statement string
	c := &cobra.Command{
		Use:   "erase",
		Short: "Forget everything on a box, so that nobody owns it",
		Long: `Forget everything on a box: its keys first, then the data volume is discarded, and it
restarts as one that nobody owns. Nothing brings anything back; export the configuration
before. It wants the name of the box, and a fresh sign-in: within ten minutes after
gatehouse login.

With --statement the box signs, before, that its owner lets it go, for whoever gets it.`,
		Example: "  gatehouse erase --name gatehouse-7f3k --statement released.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				return fail(exitUsage, "name the box that is to forget everything: --name")
			}
			return f.signedIn(cmd, "/api/v1/erase", func(ctx context.Context, r *change) error {
				if statement != "" {
					if err := r.statement(ctx, statement); err != nil {
						return err
					}
				}
				var answer struct{}
				if _, err := r.call(ctx, "POST", r.api, map[string]string{"name": name}, &answer); err != nil {
					return err
				}
				fmt.Fprintln(r.err, "The keys are gone. The box discards its data volume and restarts: leave it on, its screen says what came of it.")
				return nil
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&name, "name", "", "the `NAME` of the box, so that it is this one that is meant")
	c.Flags().StringVar(&statement, "statement", "", "write the signed statement of release into a new `FILE` first")
	return c
}

// statement is on the disk here before anything is erased there.
func (r *change) statement(ctx context.Context, path string) error {
	resp, err := r.ask(ctx, r.api+"/statement", "application/json", bytes.NewReader(nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, released.MaxSize+1))
	if err == nil {
		_, err = released.Open(b)
	}
	if err != nil {
		return fmt.Errorf("nothing was erased: the statement of the box cannot be used: %w", err)
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fail(exitConflict, "nothing was erased: the statement is written into a new file: %w", err)
	}
	_, err = out.Write(b)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("nothing was erased: writing the statement: %w", err)
	}
	fmt.Fprintf(r.err, "The statement is in %s.\n", path)
	return nil
}

func statementCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "release-statement FILE",
		Short: "Check the statement by which a box was let go",
		Long: `Check the statement that a box signed before it was erased, and say what it means. Exit
code 7 if it is not as it was signed.

It shows that whoever owned the box said so while it was whole. Whose key signed it is for
you to compare: with the key of the audit log that was noted before. It does not show that
the erase came to its end: the box says that on its screen at the next start.`,
		Example: "  gatehouse release-statement released.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return fail(exitNotFound, "opening the statement: %w", err)
			}
			defer f.Close()
			b, err := io.ReadAll(io.LimitReader(f, released.MaxSize+1))
			if err != nil {
				return err
			}
			s, err := released.Open(b)
			if err != nil {
				return fail(exitVerification, "%s: %w", args[0], err)
			}
			out := cmd.OutOrStdout()
			line := func(name, text string) {
				if text != "" {
					fmt.Fprintf(out, "%-9s %s\n", name, printable(text))
				}
			}
			line("Box", s.Box)
			line("Model", s.Model)
			line("Serial", s.Serial)
			line("Released", s.Released.UTC().Format("2006-01-02 15:04Z")+" by "+s.By)
			for _, e := range s.Erases {
				line("Erases", e)
			}
			line("Key", s.Fingerprint())
			fmt.Fprintln(out, "It is as it was signed by that key. That the erase came to its end is said by the box itself.")
			return nil
		},
	}
}
