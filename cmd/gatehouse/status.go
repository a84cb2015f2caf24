package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/setup/proof"
)

// publicStatus is what a box says to everybody.
type publicStatus struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

func statusCommand() *cobra.Command {
	var asJSON bool
	var words string
	var who signIn
	c := &cobra.Command{
		Use:   "status [ADDRESS]",
		Short: "Show the state of a box",
		Long: `Show the name of a box and its state: starting, unclaimed, locked or ready.

The box must be known: taken over with gatehouse setup on this machine, or shown
once with --proof, the six words of its console. Without ADDRESS the only known
box is meant. With --email it signs in, and shows what the page Status shows.`,
		Example: "  gatehouse status\n  gatehouse status 192.168.1.40 --json\n" +
			"  gatehouse status --email ann@example.com --password file:password --code - --json\n" +
			"  gatehouse status 192.168.1.40 --proof \"amber canyon violin drift pencil north\"",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := who.check(); err != nil {
				return err
			}
			b, s, err := askStatus(cmd.Context(), args, words)
			if err != nil {
				return err
			}
			if who.email != "" {
				return showDetails(cmd, b, who, asJSON)
			}
			address := b.address
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"address": address, "name": s.Name, "state": s.State})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s at %s: %s\n", printable(s.Name), address, printable(s.State))
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().StringVar(&who.email, "email", "", "sign in as `ADDRESS`, to see what the page shows")
	c.Flags().StringVar(&who.password, "password", "", "read the password from file:`PATH` or -")
	c.Flags().StringVar(&who.code, "code", "", "read the code of the second factor, or a recovery code, from file:`PATH` or -")
	c.Flags().StringVar(&words, "proof", "", "the six `WORDS` of the console, for a box that is not known yet")
	return c
}

func showDetails(cmd *cobra.Command, b *box, who signIn, asJSON bool) error {
	answer, err := b.details(cmd.Context(), who, cmd.InOrStdin())
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	var d shown
	if err := json.Unmarshal(answer, &d); err != nil {
		return fmt.Errorf("reading what %s says: %w", b.address, err)
	}
	_, err = io.WriteString(cmd.OutOrStdout(), d.String())
	return err
}

func askStatus(ctx context.Context, args []string, words string) (*box, publicStatus, error) {
	var s publicStatus
	b, boxes, err := findBox(ctx, args, words != "")
	if err != nil {
		return nil, s, err
	}
	if _, err := b.call(ctx, "GET", "/api/v1/status", nil, &s); err != nil {
		return nil, s, err
	}
	if words == "" {
		return b, s, nil
	}
	spki := b.spki()
	if err := checkWords(words, spki); err != nil {
		return nil, s, err
	}
	return b, s, boxes.put(knownBox{Name: s.Name, Address: b.address, SPKI: hex.EncodeToString(spki[:]), Since: time.Now().UTC()})
}

// findBox opens the box that is meant, and asks it nothing yet. Its key is
// pinned, unless the box is new here.
func findBox(ctx context.Context, args []string, isNew bool) (*box, *known, error) {
	boxes, err := readKnown()
	if err != nil {
		return nil, nil, err
	}
	if len(args) == 0 {
		if len(boxes.Boxes) != 1 {
			return nil, nil, fail(exitUsage, "%d boxes are known: say the address of one", len(boxes.Boxes))
		}
		args = []string{boxes.Boxes[0].Address}
	}
	address, err := resolve(ctx, args[0])
	if err != nil {
		return nil, nil, err
	}
	k, found := boxes.find(address)
	var pin *[32]byte
	switch {
	case isNew:
	case found:
		if pin, err = k.key(); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, fail(exitNotFound, "%s is not known on this machine: take it over with gatehouse setup, or give --proof with the six words of its console", address)
	}
	b, err := openBox(ctx, address, pin)
	return b, boxes, err
}

// checkWords compares what the console shows with the certificate that came.
func checkWords(typed string, spki [32]byte) error {
	if normalWords(typed) != proof.Words(spki) {
		return fail(exitVerification, "the words are not those of the certificate that arrived here: either they were mistyped, or something stands between you and the box. Nothing was sent")
	}
	return nil
}
