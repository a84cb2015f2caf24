package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/firmware/program"
	"gatehouse/image/keys"
	"gatehouse/image/uki"
)

func keysRevokeCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "revoke FOLDER [SYSTEM...]",
		Short: "Have firmware refuse systems of releases that were signed once",
		Long: `Add systems of releases (gatehouse-VERSION-ARCH.efi) to the list of what no box is to start
any more. Without any, show the list. Boot loaders are refused: no update brings a box
another one.

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
				content, err := os.ReadFile(file)
				if err != nil {
					return fail(exitNotFound, "nothing was revoked: %w", err)
				}
				sum, err := program.Digest(bytes.NewReader(content), int64(len(content)))
				if err != nil {
					return fail(exitUsage, "nothing was revoked: %s is no program that firmware starts: %w", file, err)
				}
				if !isSystem(content) {
					return fail(exitUsage, "nothing was revoked: %s is not the system of a release (gatehouse-VERSION-ARCH.efi). A boot loader is not revoked: boxes keep the one that they were written with, and without it try no update any more", file)
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

// isSystem says whether a program is a UKI of ours, as image builds it.
func isSystem(content []byte) bool {
	sections, err := uki.Read(content)
	if err != nil {
		return false
	}
	var kernel, ours bool
	for _, s := range sections {
		kernel = kernel || s.Name == ".linux"
		ours = ours || s.Name == ".osrel" && slices.Contains(strings.Split(string(s.Content), "\n"), "ID=gatehouse")
	}
	return kernel && ours
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
