package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/image/keys"
)

func imageKeysCommand() *cobra.Command {
	return group("keys", "Make, list and change the keys that images and releases are signed with", keysNewCommand(), keysListCommand(), keysRotateCommand(), keysRevokeCommand())
}

func keysNewCommand() *cobra.Command {
	var name string
	var asJSON bool
	var signers []string
	var threshold int
	c := &cobra.Command{
		Use:   "new FOLDER",
		Short: "Make the keys of images and releases in a new folder",
		Long: `Make the keys of Secure Boot: PK, who owns a machine; KEK, who may change what
starts on it; db, what starts. And the key that approves releases: a TPM opens
the data of a box for what this key has signed. Each is a certificate and a
private key, PEM. And the manifest keys, one for each name of --signers: a box
takes the releases that --threshold of them have signed. A folder that lacks
release or manifest keys, since it is from before there were any, gets those.

Keep the folder where the private keys are safe: who has db.key and release.key
makes systems that your boxes start and open their data for, and a box that
knows these keys starts no others. Each manifest-NAME.key may be taken to where
its person keeps it.`,
		Example: "  gatehouse image keys new keys\n  gatehouse image keys new keys --signers ada,bob,eve --threshold 2\n  gatehouse image build --keys keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := keys.LoadSigners(args[0])
			missing := errors.Is(err, fs.ErrNotExist)
			if missing {
				_, err = keys.NewSigners(args[0], signers, threshold) // judges before it writes
				var file *fs.PathError
				if err != nil && !errors.As(err, &file) {
					return fail(exitUsage, "%w", err)
				}
			}
			if err != nil {
				return err
			}
			_, err = keys.New(args[0], name, time.Now())
			if errors.Is(err, keys.ErrExist) && missing {
				err = nil
			}
			if errors.Is(err, keys.ErrExist) {
				return fail(exitConflict, "%w", err)
			}
			if err != nil {
				return err
			}
			return showKeys(cmd, args[0], asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringSliceVar(&signers, "signers", []string{"release"}, "`NAMES` of those who sign releases, with commas between")
	c.Flags().IntVar(&threshold, "threshold", 1, "how `many` of them have to sign")
	c.Flags().StringVar(&name, "name", "Gatehouse", "`NAME` that stands in the certificates")
	return c
}

func keysListCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list [FOLDER]",
		Short:   "List the keys of a folder (build/keys, the development keys)",
		Example: "  gatehouse image keys list\n  gatehouse image keys list keys --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "build/keys"
			if len(args) > 0 {
				dir = args[0]
			}
			return showKeys(cmd, dir, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func keysRotateCommand() *cobra.Command {
	var added, removed []string
	var threshold int
	var approver, done, asJSON bool
	var name string
	c := &cobra.Command{
		Use:   "rotate FOLDER",
		Short: "Change who signs releases, in a way that boxes follow",
		Long: `Change the manifest keys: the release that is made next names the new ones, and is
signed by the old ones and by the new ones. A box that has taken it goes by the
new ones alone. Once that release is out, say so with --done; a rotation that is
not out yet may be changed by another one. Boxes that are behind take that
release first: state its version as --minimum of those after it.

--approver makes another key that approves releases (release.key). It needs no
second step: a box that takes a release seals its data for the approver named in
it before it starts it. The old one is kept beside it under another name.

A key that leaked opens boxes that do not have the rotation yet. Raise the epoch
of the release (gatehouse image build --epoch), which shuts out all before it.`,
		Example: "  gatehouse image keys rotate keys --add fay --remove ada\n  gatehouse image build --release --keys keys --version 1.6.0\n" +
			"  gatehouse image keys rotate keys --done\n  gatehouse image keys rotate keys --approver",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, change := args[0], len(added)+len(removed) > 0 || threshold != 0
			if done && (change || approver) || !done && !change && !approver {
				return fail(exitUsage, "say what to change (--add, --remove, --threshold, --approver), or --done alone once the release is out")
			}
			if _, err := keys.LoadSigners(dir); errors.Is(err, fs.ErrNotExist) {
				return fail(exitNotFound, "%w: gatehouse image keys new %s makes them", err, dir)
			} else if err != nil {
				return err
			}
			if err := rotate(dir, name, added, removed, threshold, change, approver, done); err != nil {
				return err
			}
			return showKeys(cmd, dir, asJSON)
		},
	}
	c.Flags().StringSliceVar(&added, "add", nil, "`NAMES` to make keys for")
	c.Flags().StringSliceVar(&removed, "remove", nil, "`NAMES` whose keys count no longer")
	c.Flags().IntVar(&threshold, "threshold", 0, "how `many` have to sign from then on (as before when 0)")
	c.Flags().BoolVar(&approver, "approver", false, "make another key that approves releases")
	c.Flags().BoolVar(&done, "done", false, "the release that names the new keys is out")
	c.Flags().StringVar(&name, "name", "Gatehouse", "`NAME` that stands in the certificate of the approver")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func rotate(dir, name string, added, removed []string, threshold int, change, approver, done bool) error {
	if change {
		if _, err := keys.Rotate(dir, added, removed, threshold); err != nil {
			return fail(exitUsage, "%w", err)
		}
	}
	if done {
		if _, err := keys.Rotated(dir); err != nil {
			return fail(exitConflict, "%w", err)
		}
	}
	if approver {
		if _, err := keys.NewApprover(dir, name, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// keyRow is a key as --json prints it.
type keyRow struct {
	Role        keys.Role `json:"role"`
	Name        string    `json:"name"`
	Fingerprint string    `json:"sha256"` // of the certificate
	Until       time.Time `json:"until"`
}

// signerRow is who signs releases.
type signerRow struct {
	Name    string `json:"name"`
	Key     string `json:"key"`     // as boxes know it
	Private bool   `json:"private"` // the private half lies in the folder
	Signs   string `json:"signs"`   // now; next: from the release on that names it; last: until then
}

// signers are those of both sets.
func signerRows(s keys.Signers) []signerRow {
	var rows []signerRow
	for _, key := range s.Keys.Keys {
		signs := "now"
		if !slices.Contains(s.Next.Keys, key) {
			signs = "last"
		}
		rows = append(rows, signerRow{keys.SignerName(key), key, s.Private[keys.SignerName(key)] != nil, signs})
	}
	for _, key := range s.Next.Keys {
		if !slices.Contains(s.Keys.Keys, key) {
			rows = append(rows, signerRow{keys.SignerName(key), key, s.Private[keys.SignerName(key)] != nil, "next"})
		}
	}
	return rows
}

// showKeys prints what a folder has. Who only signs manifests has no others.
func showKeys(cmd *cobra.Command, dir string, asJSON bool) error {
	s, signersErr := keys.LoadSigners(dir)
	set, err := keys.Load(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && errors.Is(signersErr, fs.ErrNotExist):
		return fail(exitNotFound, "%v: gatehouse image keys new makes them, and gatehouse image build makes development keys", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case signersErr != nil && !errors.Is(signersErr, fs.ErrNotExist):
		return signersErr
	}
	var rows []keyRow
	if set != nil {
		for _, r := range keys.Roles() {
			k := set[r]
			rows = append(rows, keyRow{r, k.Certificate.Subject.CommonName, k.Fingerprint(), k.Certificate.NotAfter.UTC()})
		}
	}
	signers := signerRows(s)
	if asJSON {
		return printJSON(cmd.OutOrStdout(), struct {
			Keys      []keyRow    `json:"keys"`
			Signers   []signerRow `json:"signers"`
			Threshold int         `json:"threshold"`
			Next      int         `json:"next_threshold,omitempty"` // while a rotation is under way
		}{rows, signers, s.Keys.Threshold, s.Next.Threshold})
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	if len(rows) > 0 {
		fmt.Fprintln(w, "KEY\tNAME\tUNTIL\tSHA-256 OF THE CERTIFICATE")
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Role, r.Name, r.Until.Format(time.DateOnly), r.Fingerprint)
	}
	if err := w.Flush(); err != nil || len(signers) == 0 {
		return err
	}
	fmt.Fprintf(w, "\nSIGNER\tPRIVATE KEY\tSIGNS RELEASES\n")
	for _, r := range signers {
		private := "elsewhere"
		if r.Private {
			private = "here"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Name, private, map[string]string{"now": "yes", "last": "the next one, then no longer", "next": "from the next one on"}[r.Signs])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	text := fmt.Sprintf("\n%d of them have to sign.", s.Keys.Threshold)
	if s.Rotating() {
		text = fmt.Sprintf("\nA rotation is under way: %d of %s have to sign the next release, from then on %d of %s.\nOnce that is out: gatehouse image keys rotate %s --done",
			s.Keys.Threshold, strings.Join(signerNames(s.Keys), ", "), s.Next.Threshold, strings.Join(signerNames(s.Next), ", "), dir)
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
