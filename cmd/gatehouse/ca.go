package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"gatehouse/appliance/cert/authority"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func caCommand() *cobra.Command {
	var address, words string
	var print, remove bool
	var also []string
	trust := &cobra.Command{
		Use:   "trust",
		Short: "Have this machine trust a box's own CA",
		Long: `Fetch the root of a box's own CA and put it into this machine's list.

The root comes over a connection to the box whose key was proved before: by
gatehouse setup, or now with --proof, the six words of the console. What it can
vouch for is checked before it is installed: the box's name, private addresses,
and what you name with --also. Changing the
machine's list takes the rights of an administrator (sudo). Firefox on Linux has
a list of its own; the box's page Certificates says how.`,
		Example: "  sudo gatehouse ca trust\n  gatehouse ca trust --print > gatehouse-ca.pem\n  sudo gatehouse ca trust --remove",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if print && remove {
				return fail(exitUsage, "--print and --remove do not go together")
			}
			var args []string
			if address != "" {
				args = []string{address}
			}
			b, s, err := askStatus(cmd.Context(), args, words)
			if err != nil {
				return err
			}
			name := s.Name
			if boxes, err := readKnown(); err == nil {
				if k, found := boxes.find(b.address); found {
					name = k.Name // as it was when it was proved
				}
			}
			root, err := fetchRoot(cmd.Context(), b, name, also)
			if err != nil {
				return err
			}
			if print {
				_, err := cmd.OutOrStdout().Write(root.pem)
				return err
			}
			return changeTrust(cmd.Context(), thisMachine(), name, root, remove, cmd.OutOrStdout())
		},
	}
	f := trust.Flags()
	f.StringVar(&address, "box", "", "the `ADDRESS` of the box; the only known one if not given")
	f.StringVar(&words, "proof", "", "the six `WORDS` of the console, for a box that is not known yet")
	f.StringArrayVar(&also, "also", nil, "a further `NAME` or public address that the root may vouch for, besides the box's own name")
	f.BoolVar(&print, "print", false, "print the root as PEM and install nothing")
	f.BoolVar(&remove, "remove", false, "take the root away from this machine's list")
	return group("ca", "Trust the own CA of a box", trust)
}

// boxRoot is a root that came over a proved connection.
type boxRoot struct {
	pem         []byte
	certificate *x509.Certificate
}

func (r boxRoot) fingerprint() string {
	sum := sha256.Sum256(r.certificate.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

// fetchRoot gets the root over b, which accepts the pinned key alone.
func fetchRoot(ctx context.Context, b *box, name string, also []string) (boxRoot, error) {
	var answer struct {
		PEM string `json:"pem"`
	}
	if _, err := b.call(ctx, "GET", "/api/v1/certificates/root", nil, &answer); err != nil {
		var r *refusal
		if errors.As(err, &r) {
			return boxRoot{}, fail(exitNotFound, "%w Make one on its page Certificates, or with gatehouse certificate use ca", err)
		}
		return boxRoot{}, err
	}
	return checkRoot([]byte(answer.PEM), name, also)
}

// checkRoot refuses what no box's own CA is. A box that was taken over must not
// get a root into this machine that can vouch for the rest of the world.
func checkRoot(b []byte, name string, also []string) (boxRoot, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return boxRoot{}, fail(exitVerification, "what the box sent is not one certificate in PEM: nothing was installed")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return boxRoot{}, fail(exitVerification, "the box's root cannot be read: %w: nothing was installed", err)
	}
	further, err := authority.Limits(c)
	for _, d := range c.PermittedDNSDomains {
		if err == nil && d != name && d != name+".local" && !slices.Contains(also, d) {
			err = fmt.Errorf("it may vouch for %s and all below it; if that is the box's, say --also %[1]s", printable(d))
		}
	}
	for _, a := range further {
		if !slices.Contains(also, a.String()) {
			err = fmt.Errorf("it may vouch for the address %s; if that is the box's, say --also %[1]s", a)
		}
	}
	if err != nil {
		return boxRoot{}, fail(exitVerification, "the box's root is not one that a Gatehouse makes: %w. Nothing was installed", err)
	}
	return boxRoot{pem.EncodeToMemory(block), c}, nil
}

func changeTrust(ctx context.Context, m machine, name string, r boxRoot, remove bool, out io.Writer) error {
	s, err := m.store()
	if err != nil {
		return err
	}
	if remove {
		if err := s.remove(ctx, fileName(name), r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "This machine no longer trusts %s.\n", printable(r.certificate.Subject.CommonName))
		return err
	}
	if err := s.add(ctx, fileName(name), r); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "This machine trusts %s now (SHA-256 %s). Start browsers anew.\n", printable(r.certificate.Subject.CommonName), r.fingerprint())
	return err
}

// fileName is a box's name as a file's: it comes from the box.
func fileName(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return -1
	}, name)
	return "gatehouse-ca-" + clean[:min(len(clean), 63)]
}
