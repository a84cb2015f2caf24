package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"gatehouse/image/authenticode"
	"gatehouse/image/keys"
)

func keysRevokeCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "revoke FOLDER [PROGRAM...]",
		Short: "Have firmware refuse systems of releases that were signed once",
		Long: `Add programs to the list of what no box is to start any more: systems of releases
(gatehouse-VERSION-ARCH.efi) or loaders that were signed with db.key of this folder. Without
any, show the list.

The images that are built from then on carry the list, signed by KEK. A box that has these
keys in its firmware tells it (dbx) once it has kept such a release, after it has made sure
that its data will open at the start that follows. What must open no data any more is
another matter: raise the epoch, too (gatehouse image build --epoch).`,
		Example: "  gatehouse image keys revoke keys gatehouse-1.4.0-amd64.efi\n  gatehouse image keys revoke keys --json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			if _, err := keys.LoadSigners(dir); errors.Is(err, fs.ErrNotExist) {
				return fail(exitNotFound, "%w: gatehouse image keys new %s makes them", err, dir)
			} else if err != nil {
				return err
			}
			var add []keys.Revoked
			for _, file := range args[1:] {
				program, err := os.ReadFile(file)
				if err != nil {
					return fail(exitNotFound, "nothing was revoked: %w", err)
				}
				var sum [sha256.Size]byte
				if program, err = authenticode.Unsigned(program); err == nil {
					sum, err = authenticode.Digest(program)
				}
				if err != nil {
					return fail(exitUsage, "nothing was revoked: %s is no program that firmware starts: %w", file, err)
				}
				add = append(add, keys.Revoked{SHA256: sum, Note: filepath.Base(file)})
			}
			list, err := keys.LoadRevoked(dir)
			if err == nil && len(add) > 0 {
				list, err = keys.Revoke(dir, add...)
			}
			if err != nil {
				return fail(exitUsage, "%w", err)
			}
			return showRevoked(cmd, list, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// revokedRow is a program that firmware is to refuse.
type revokedRow struct {
	SHA256 string `json:"sha256"` // as firmware computes it (Authenticode)
	Note   string `json:"note"`
}

func showRevoked(cmd *cobra.Command, list []keys.Revoked, asJSON bool) error {
	rows := []revokedRow{}
	for _, r := range list {
		rows = append(rows, revokedRow{fmt.Sprintf("%x", r.SHA256), r.Note})
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), rows)
	}
	if len(rows) == 0 {
		fmt.Fprintln(cmd.OutOrStdout(), "Nothing is revoked.")
	}
	for _, r := range rows {
		fmt.Fprintf(cmd.OutOrStdout(), "%s  %s\n", r.SHA256, printable(r.Note))
	}
	return nil
}
