package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
	"gatehouse/appliance/keytext"
	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/unlock"
)

func unlockCommand() *cobra.Command {
	u := &unlocking{}
	c := &cobra.Command{
		Use:   "unlock [BOX]",
		Short: "Open a locked box by its recovery key or passphrase, safe from a man in the middle",
		Long: `Open the data of a box that is locked.

A locked box shows a certificate that nobody knows, since its own is among the data.
So this asks for the six words that stand on the box's own console, compares them
with what arrived here, and sends nothing at all if they differ. What it sends is
encrypted to the privileged process of the box and bound to this connection.

The recovery key, or the passphrase where the box waits for one, is asked for
without showing it, or read from file:PATH or standard input (-). BOX is the
address, or the name of a box that was taken over on this machine; without it
the only known box is meant.`,
		Example: "  gatehouse unlock 192.168.1.40\n" +
			"  gatehouse unlock 192.168.1.40 --words \"amber canyon violin drift pencil north\" --recovery-key file:key\n" +
			"  gatehouse unlock --passphrase file:passphrase",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			u.asker, u.out, u.said = newAsker(cmd), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return u.run(cmd.Context(), args)
		},
	}
	f := c.Flags()
	f.StringVar(&u.words, "words", "", "the six `WORDS` of the console")
	f.StringVar(&u.recovery, "recovery-key", "", "the recovery key: `file:PATH` or -")
	f.StringVar(&u.passphrase, "passphrase", "", "the passphrase of the start, instead: `file:PATH` or -")
	f.DurationVar(&u.patience, "wait", 5*time.Minute, "how long to wait until the box is ready; a large disk is checked first")
	f.BoolVar(&u.asJSON, "json", false, "print JSON")
	return c
}

// unlocking is one run of unlock.
type unlocking struct {
	words, recovery, passphrase string
	patience                    time.Duration
	asJSON                      bool
	asker                       *asker
	out, said                   io.Writer
}

// offer is what a locked box says of itself.
type offer struct {
	Name  string   `json:"name"`
	Key   []byte   `json:"key"`
	Takes []string `json:"takes"`
}

func (u *unlocking) run(ctx context.Context, args []string) error {
	if err := u.check(); err != nil {
		return err
	}
	boxes, err := readKnown()
	if err != nil {
		return err
	}
	address, err := boxes.which(args)
	if err != nil {
		return err
	}
	b, err := openBox(ctx, address, nil)
	if err != nil {
		return err
	}
	known, isKnown := boxes.find(b.address)
	fmt.Fprintf(u.said, "Connecting to %s\n", b.address)
	o, _, err := askOffer(ctx, b)
	if err != nil {
		return err
	}
	if err := u.compare(b, o); err != nil {
		return err
	}
	secret, err := u.ask(o)
	if err != nil {
		return err
	}
	defer secret.Clear()
	if err := u.send(ctx, b, o, secret); err != nil {
		return err
	}
	fmt.Fprintln(u.said, "Open: the box starts its services anew.")
	s, key, err := waitOpen(ctx, b.address, u.patience)
	if err != nil {
		return err
	}
	spki := hex.EncodeToString(key[:])
	if isKnown && known.SPKI != spki {
		return fail(exitVerification, "%s is open, and shows another certificate than it had when it was taken over: compare its fingerprint with the console before you sign in", b.address)
	}
	if u.asJSON {
		return printJSON(u.out, map[string]any{"name": s.Name, "address": b.address, "state": s.State, "spki": spki, "known": isKnown})
	}
	shown := "Its certificate is the one that this machine knows."
	if !isKnown {
		shown = "This machine does not know its certificate: compare it with the console (" + proof.Words(key) + ")."
	}
	_, err = fmt.Fprintf(u.out, "%s at %s: %s. %s\n", printable(s.Name), b.address, printable(s.State), shown)
	return err
}

func (u *unlocking) check() error {
	if u.recovery != "" && u.passphrase != "" {
		return fail(exitUsage, "give --recovery-key or --passphrase, one of the two")
	}
	return errors.Join(checkSecretFlag("recovery-key", u.recovery), checkSecretFlag("passphrase", u.passphrase))
}

// which is the address that is meant, by address or name.
func (k *known) which(args []string) (string, error) {
	if len(args) == 0 {
		if len(k.Boxes) != 1 {
			return "", fail(exitUsage, "%d boxes are known: say the address of one", len(k.Boxes))
		}
		return k.Boxes[0].Address, nil
	}
	i := slices.IndexFunc(k.Boxes, func(b knownBox) bool { return b.Name == args[0] })
	if i >= 0 {
		return k.Boxes[i].Address, nil
	}
	return args[0], nil
}

func askOffer(ctx context.Context, b *box) (o offer, binding []byte, err error) {
	binding, err = b.call(ctx, http.MethodGet, "/api/v1/unlock", nil, &o)
	return o, binding, notLocked(b, err)
}

// notLocked gives the answers of the routes their exit codes.
func notLocked(b *box, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch r.status {
	case http.StatusNotFound:
		return fail(exitConflict, "%s is not locked, or cannot be unlocked from afar: gatehouse status says what it is", b.address)
	case http.StatusForbidden, http.StatusTooManyRequests:
		return fail(exitDenied, "%w", r)
	}
	return r
}

// compare holds the words of the console against what arrived. Nothing is sent
// before; a man in the middle has another certificate or another key.
func (u *unlocking) compare(b *box, o offer) error {
	words := u.words
	if words == "" {
		var err error
		if words, err = u.asker.line("Words on the box's own console (Proof): ", "--words takes the six words of the box's console"); err != nil {
			return err
		}
	}
	if normalWords(words) != unlock.Words(b.spki(), o.Key) {
		return fail(exitVerification, "the words are not those of what arrived here: either they were mistyped, or the console shows new ones, or something stands between you and the box. Nothing was sent")
	}
	return nil
}

// ask reads the secret. Where nothing was said, it is a recovery key if it has
// the form of one, or if the box takes nothing else.
func (u *unlocking) ask(o offer) (s unlock.Secret, err error) {
	takes := func(way string) bool { return slices.Contains(o.Takes, way) }
	var text string
	switch {
	case u.recovery != "":
		s.Kind = unlock.Recovery
		text, err = readSecret("recovery-key", u.recovery, u.asker.in)
	case u.passphrase != "":
		s.Kind = unlock.Passphrase
		text, err = readSecret("passphrase", u.passphrase, u.asker.in)
	default:
		ways := control.Unlocking{Takes: o.Takes}.Ways()
		text, err = u.asker.hidden("The "+printable(ways)+" of the box (not shown): ", "--recovery-key or --passphrase says where to read it")
		if _, noKey := keytext.Recovery.Parse(text); noKey == nil || !takes(control.TakesPassphrase) {
			s.Kind = unlock.Recovery
		} else {
			s.Kind = unlock.Passphrase
		}
	}
	if err != nil {
		return s, err
	}
	way := control.TakesPassphrase
	if s.Kind == unlock.Recovery {
		way = control.TakesRecovery
		if _, err := keytext.Recovery.Parse(text); err != nil {
			return s, fail(exitUsage, "%w. Nothing was sent", err)
		}
	}
	if !takes(way) {
		return s, fail(exitConflict, "this box is not opened by a %s, but by its %s. Nothing was sent", strings.ReplaceAll(way, "-", " "), printable(control.Unlocking{Takes: o.Takes}.Ways()))
	}
	s.Text = []byte(text)
	return s, nil
}

// send encrypts the secret for the connection of now: the box may have closed
// the first one while somebody typed. The key is the one that the words are of.
func (u *unlocking) send(ctx context.Context, b *box, o offer, s unlock.Secret) error {
	now, binding, err := askOffer(ctx, b)
	if err != nil {
		return err
	}
	if unlock.Words(b.spki(), now.Key) != unlock.Words(b.spki(), o.Key) {
		return fail(exitVerification, "the box at %s shows other words than a moment ago: read them from its console again. Nothing was sent", b.address)
	}
	sealed, err := unlock.Seal(now.Key, binding, s)
	if err != nil {
		return fail(exitUsage, "%w", err)
	}
	var answer struct{ Name string }
	_, err = b.call(ctx, http.MethodPost, "/api/v1/unlock", map[string][]byte{"sealed": sealed}, &answer)
	var f *failure
	if errors.As(err, &f) && f.code == exitUnreachable {
		// It may be checking a large disk, or be starting anew already.
		fmt.Fprintln(u.said, "The box did not answer; waiting for it.")
		return nil
	}
	return notLocked(b, err)
}

// waitOpen waits until the box is no longer locked, and gives the key that it
// shows then.
func waitOpen(ctx context.Context, address string, patience time.Duration) (s publicStatus, key [32]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		b, err := openBox(ctx, address, nil)
		if err != nil {
			return s, key, err
		}
		_, err = b.call(ctx, http.MethodGet, "/api/v1/status", nil, &s)
		b.client.CloseIdleConnections()
		if err == nil && s.State != string(control.StateLocked) && s.State != string(control.StateStarting) {
			return s, b.spki(), nil
		}
		select {
		case <-ctx.Done():
			return s, key, fail(exitUnreachable, "the box at %s was not ready within %s: look at its console", address, patience)
		case <-time.After(time.Second):
		}
	}
}
