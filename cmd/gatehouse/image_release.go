package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatehouse/firmware"
	"gatehouse/image"
	"gatehouse/image/keys"
	"gatehouse/image/release"
	"gatehouse/image/target"
)

// buildRelease builds a release and says what is left to do.
func buildRelease(cmd *cobra.Command, b image.Build, minimum string, targets []target.Target, locks []string) error {
	if b.Version == "" {
		b.Version = sourceVersion
	}
	var oldest firmware.Version
	if _, err := firmware.ParseVersion(b.Version); err != nil {
		return fail(exitUsage, "--version %q: a release has three numbers, such as 1.5.0", b.Version)
	}
	if minimum != "" {
		var err error
		if oldest, err = firmware.ParseVersion(minimum); err != nil {
			return fail(exitUsage, "--minimum %q: wanted are three numbers, such as 1.2.0", minimum)
		}
	}
	if err := prepareBuild(cmd.Context(), &b, cmd.ErrOrStderr()); err != nil {
		return err
	}
	dir, err := b.Release(cmd.Context(), oldest, targets, locks)
	switch {
	case errors.Is(err, image.ErrDevelopment), errors.Is(err, image.ErrTargets):
		return fail(exitUsage, "%w", err)
	case errors.Is(err, image.ErrChanged), errors.Is(err, fs.ErrExist):
		return fail(exitConflict, "%w", err)
	case errors.Is(err, fs.ErrNotExist):
		return fail(exitNotFound, "%w", err)
	case err != nil:
		return err
	}
	return tellRelease(cmd.OutOrStdout(), cmd.ErrOrStderr(), dir, b.Keys)
}

// tellRelease says whether a release can go out.
func tellRelease(stdout, stderr io.Writer, dir, keysDir string) error {
	s, err := keys.LoadSigners(keysDir)
	if err != nil {
		return err
	}
	wanted, err := release.Wanted(dir, s)
	if err != nil {
		return err
	}
	switch {
	case len(wanted) > 0:
		fmt.Fprintf(stderr, "Boxes do not take it yet: %s\nEach signs with: gatehouse image sign %s --keys FOLDER\n", strings.Join(wanted, "; "), dir)
	case s.Rotating():
		fmt.Fprintf(stderr, "It is signed. Once it is out: gatehouse image keys rotate %s --done\n", keysDir)
	default:
		fmt.Fprintf(stderr, "It is signed. gatehouse image verify %s --trust %s says what a box says.\n", dir, keysDir)
	}
	_, err = fmt.Fprintln(stdout, dir)
	return err
}

func imageSignCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "sign RELEASE",
		Short: "Add signatures to a release",
		Long: `Verify a release folder, and add the signatures of the manifest keys whose private
halves lie in --keys: manifest.pub, and manifest-NAME.key of whoever signs.
Private keys may so lie apart, each with its person. Signing twice changes nothing.`,
		Example: "  gatehouse image sign build/release --keys ada",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := keys.LoadSigners(dir)
			if errors.Is(err, fs.ErrNotExist) {
				return fail(exitNotFound, "%w", err)
			}
			if err != nil {
				return err
			}
			if len(s.Private) == 0 {
				return fail(exitNotFound, "%s has no private key of %s", dir, strings.Join(signerNames(s.Keys), ", "))
			}
			err = release.Sign(args[0], s)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fail(exitNotFound, "%w", err)
			case errors.Is(err, release.ErrBad):
				return fail(exitVerification, "%w", err)
			case err != nil:
				return err
			}
			return tellRelease(cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], dir)
		},
	}
	c.Flags().StringVar(&dir, "keys", "", "`FOLDER` of the manifest keys")
	_ = c.MarkFlagRequired("keys")
	return c
}

func signerNames(k firmware.Keys) []string {
	var out []string
	for _, key := range k.Keys {
		out = append(out, keys.SignerName(key))
	}
	return out
}

func imageVerifyCommand() *cobra.Command {
	var trust, running string
	var epoch uint64
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify RELEASE|FILE",
		Short: "Verify a release, an update, a system or a disk image as a box would",
		Long: `Verify the folder of a release, or one file: a manifest, an update (.update), a
system (.efi), a disk (.img, .img.gz). Signatures, sizes and sums; that a system
is the one that was approved, with the registers computed anew from its parts;
that the disks start it; that the document on its parts names all of them.

--trust says whose signatures count: a folder of keys (manifest.pub, and db.crt
for Secure Boot), or a file as manifest.pub. Without it the release is verified
by the keys that it names itself, which shows damage and no forgery. --running
and --epoch are of a box, and say whether that one may take it.

Ends with 0 if all that was verified is good, with 7 if something is not.`,
		Example: "  gatehouse image verify build/release --trust keys\n  gatehouse image verify gatehouse-1.5.0-amd64.update --trust manifest.pub --running 1.4.0 --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := verifyBy(trust, running, epoch)
			if err != nil {
				return err
			}
			report, err := release.Verify(args[0], t)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fail(exitNotFound, "%w", err)
			case errors.Is(err, release.ErrUnknown):
				return fail(exitUsage, "%w", err)
			case err != nil:
				return err
			}
			return printReport(cmd.OutOrStdout(), args[0], report, asJSON)
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "whose signatures count: `FOLDER|FILE` of public keys")
	c.Flags().StringVar(&running, "running", "", "the `VERSION` that a box runs")
	c.Flags().Uint64Var(&epoch, "epoch", 0, "the epoch that a box has reached, a `NUMBER`")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func verifyBy(trust, running string, epoch uint64) (t release.Trust, err error) {
	t.Epoch = epoch
	if running != "" {
		v, err := firmware.ParseVersion(running)
		if err != nil {
			return t, fail(exitUsage, "--running %q: wanted are three numbers, such as 1.4.0", running)
		}
		t.Running = &v
	}
	if trust == "" {
		return t, nil
	}
	info, err := os.Stat(trust)
	if err != nil {
		return t, fail(exitNotFound, "--trust: %w", err)
	}
	file := trust
	if info.IsDir() {
		file = filepath.Join(trust, keys.ManifestFile)
		switch c, err := keys.Certificate(trust, keys.Programs); {
		case err == nil:
			t.Programs = c
		case !errors.Is(err, fs.ErrNotExist):
			return t, err
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return t, fail(exitNotFound, "--trust: %w", err)
	}
	k, err := firmware.ParseKeys(string(text))
	if err != nil {
		return t, fail(exitUsage, "--trust %s: %w", file, err)
	}
	t.Keys = &k
	return t, nil
}

// printReport prints what was found, check by check, and ends with 7 if one failed.
func printReport(out io.Writer, path string, r release.Report, asJSON bool) error {
	bad := r.Bad()
	if asJSON {
		err := printJSON(out, struct {
			Path string `json:"path"`
			Good bool   `json:"good"`
			release.Report
		}{path, len(bad) == 0, r})
		if err != nil {
			return err
		}
	} else {
		fmt.Fprintln(out, printable(headline(r)))
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, c := range r.Checks {
			state := c.State
			if state == release.Bad {
				state = "BAD"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", state, c.Name, printable(c.Detail))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return fail(exitVerification, "%s: %s: %s", path, bad[0].Name, bad[0].Detail)
	}
	return nil
}

func headline(r release.Report) string {
	text := strings.ToUpper(r.What[:1]) + r.What[1:]
	if r.Version != "" {
		text += " " + r.Version
	}
	if r.Epoch != 0 {
		text += fmt.Sprintf(", epoch %d", r.Epoch)
	}
	if r.Issued != "" {
		text += fmt.Sprintf(", of %s, for %s; updates from %s on", r.Issued, strings.Join(r.Arches, " and "), r.Minimum)
	} else if len(r.Arches) > 0 {
		text += ", for " + strings.Join(r.Arches, " and ")
	}
	return text
}
