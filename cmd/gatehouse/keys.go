package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/image/keys"
)

func imageKeysCommand() *cobra.Command {
	return group("keys", "Make and list the keys that images are signed with", keysNewCommand(), keysListCommand())
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
			}
			if err != nil {
				return err
			}
			set, err := keys.New(args[0], name, time.Now())
			if errors.Is(err, keys.ErrExist) && missing {
				set, err = keys.Load(args[0])
			}
			if err != nil {
				return err
			}
			return showKeys(cmd, set, asJSON)
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
			set, err := keys.Load(dir)
			if errors.Is(err, fs.ErrNotExist) {
				return fail(exitNotFound, "%v: gatehouse image keys new makes them, and gatehouse image build makes development keys", err)
			}
			if err != nil {
				return err
			}
			return showKeys(cmd, set, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// keyRow is a key as --json prints it.
type keyRow struct {
	Role        keys.Role `json:"role"`
	Name        string    `json:"name"`
	Fingerprint string    `json:"sha256"` // of the certificate
	Until       time.Time `json:"until"`
}

func showKeys(cmd *cobra.Command, set keys.Set, asJSON bool) error {
	var rows []keyRow
	for _, r := range keys.Roles() {
		k := set[r]
		rows = append(rows, keyRow{r, k.Certificate.Subject.CommonName, k.Fingerprint(), k.Certificate.NotAfter.UTC()})
	}
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(rows)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tNAME\tUNTIL\tSHA-256 OF THE CERTIFICATE")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Role, r.Name, r.Until.Format(time.DateOnly), r.Fingerprint)
	}
	return w.Flush()
}
