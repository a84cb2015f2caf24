package main

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/appliance/audit"
)

func auditCommand() *cobra.Command { return group("audit", "Check audit logs", auditVerifyCommand()) }

func auditVerifyCommand() *cobra.Command {
	var key, head string
	var part, asJSON bool
	c := &cobra.Command{
		Use:   "verify FILE|DIR",
		Short: "Find any edit, deletion, reordering or truncation",
		Long: `Verify an audit log: the folder of a box, or the file that its page hands out
("-" for standard input).

With --key, the box's checkpoint key as PEM, only what that key signed counts;
without it the key that the log itself names is taken and printed, to be compared
with the box's. A log that was cut back to an older checkpoint is whole in
itself: --head SEQUENCE:HASH, noted at an earlier look, finds that too.

Ends with 0 if the log is whole, with 7 if it is not.`,
		Example: "  gatehouse audit verify audit/\n  gatehouse audit verify audit.jsonl --key box.pem\n" +
			"  gatehouse audit verify audit.jsonl --head 812:9f86d081…",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			trust, err := auditTrust(key, head)
			if err != nil {
				return err
			}
			trust.Part = part
			report, err := verifyAt(args[0], trust, cmd)
			var broken *audit.BrokenError
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fail(exitNotFound, "%w", err)
			case err != nil && !errors.As(err, &broken):
				return err
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), report); err != nil {
					return err
				}
			} else if broken == nil {
				fmt.Fprintln(cmd.OutOrStdout(), report.Sentence)
				fmt.Fprintf(cmd.OutOrStdout(), "Head: %d:%s\n", report.Last, report.Hash)
			}
			if broken != nil {
				return fail(exitVerification, "%w", broken)
			}
			return nil
		},
	}
	c.Flags().StringVar(&key, "key", "", "`FILE` with the box's checkpoint key (PEM)")
	c.Flags().StringVar(&head, "head", "", "an entry seen before, as `SEQUENCE:HASH`")
	c.Flags().BoolVar(&part, "part", false, "accept a log that does not begin with its first entry")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func verifyAt(path string, trust audit.Trust, cmd *cobra.Command) (audit.Report, error) {
	if path == "-" {
		return audit.Verify(cmd.InOrStdin(), trust)
	}
	info, err := os.Stat(path)
	if err != nil {
		return audit.Report{}, fmt.Errorf("opening the audit log: %w", err)
	}
	if info.IsDir() {
		return audit.VerifyDir(path, trust)
	}
	f, err := os.Open(path)
	if err != nil {
		return audit.Report{}, fmt.Errorf("opening the audit log: %w", err)
	}
	defer f.Close()
	return audit.Verify(f, trust)
}

func auditTrust(keyFile, head string) (t audit.Trust, err error) {
	if keyFile != "" {
		if t.Key, err = readPublicKey(keyFile); err != nil {
			return t, err
		}
	}
	if head == "" {
		return t, nil
	}
	sequence, hash, ok := strings.Cut(head, ":")
	t.Sequence, err = strconv.ParseUint(sequence, 10, 64)
	if !ok || err != nil || t.Sequence == 0 || len(hash) != 64 {
		return t, fail(exitUsage, "--head %q: wanted is SEQUENCE:HASH, as an earlier look printed it", head)
	}
	t.Hash = strings.ToLower(hash)
	return t, nil
}

func readPublicKey(path string) (*ecdsa.PublicKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fail(exitNotFound, "reading the key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fail(exitUsage, "%s holds no PUBLIC KEY in PEM", path)
	}
	k, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fail(exitUsage, "reading the key in %s: %w", path, err)
	}
	p, ok := k.(*ecdsa.PublicKey)
	if !ok {
		return nil, fail(exitUsage, "the key in %s is not an ECDSA key", path)
	}
	return p, nil
}
