package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

const keysAPI = "/api/v1/keys"

func keysCommand() *cobra.Command {
	var f changeFlags
	c := &cobra.Command{
		Use:   "keys",
		Short: "Show what guards the data of a box, from firmware to data, and change it",
		Long: `Show, for the owner, what stands between the firmware of a box and its data: which rung
was checked and why, what opens the data key, and what the TPM measured.

Changes want a fresh sign-in: within ten minutes after gatehouse login.`,
		Example: "  gatehouse keys\n  gatehouse keys recovery new\n  gatehouse keys rotate tpm",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error { return r.keys(ctx, "GET", "", nil) })
		},
	}
	f.register(c)
	c.AddCommand(recoveryCommand(&f), rotateCommand(&f), passphraseCommand(&f),
		plainChange(&f, "take-tpm", "Seal the keys to a TPM that was not there when they were made", "/tpm", "It cannot be taken back without erasing the box."),
		plainChange(&f, "secure-boot", "Write the keys of Secure Boot into firmware that is in set-up mode", "/secure-boot", "From the next start on the firmware starts nothing else. Restart the box then."))
	return c
}

// keys asks, or changes, and prints what the keys are then.
func (r *change) keys(ctx context.Context, method, path string, question any) error {
	var k control.Keys
	if _, err := r.call(ctx, method, r.api+path, question, &k); err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(r.out, k)
	}
	printKeys(r.out, k)
	return nil
}

// printKeys writes the ladder, the slots, and the registers that changed.
func printKeys(out io.Writer, k control.Keys) {
	grade := ""
	if k.Trust.Grade != "" {
		grade = "Grade " + k.Trust.Grade + ". "
	}
	fmt.Fprintln(out, printable(grade+k.Trust.Sentence))
	if k.Trust.Raise != "" {
		fmt.Fprintln(out, printable(k.Trust.Raise))
	}
	if k.Behind != "" {
		fmt.Fprintln(out, printable("The data are older than the TPM remembers: "+k.Behind))
	}
	line := func(name, state, text string) {
		fmt.Fprintln(out, strings.TrimRight(fmt.Sprintf("%-16s%-13s%s", printable(name), printable(state), printable(text)), " "))
	}
	if len(k.Rungs) > 0 {
		fmt.Fprintln(out)
	}
	for _, r := range k.Rungs {
		line(rungName(r.Name), rungState(r.State), r.Sentence)
	}
	fmt.Fprintln(out)
	state, todo := recoveryState(k.Recovery)
	line("Recovery key", state, todo)
	if k.SecureBoot.Sentence != "" {
		line("Secure Boot", onOff(k.SecureBoot), k.SecureBoot.Sentence)
	}
	for _, s := range k.Slots {
		state, note := "ready", s.Note
		switch {
		case s.InUse:
			state = "in use"
		case s.Kind == "recovery" && !s.Confirmed:
			state = "unconfirmed"
		}
		line("Way: "+s.Kind, state, strings.TrimSuffix("made "+s.Made.UTC().Format("2006-01-02 15:04Z")+", "+note, ", "))
	}
	for _, r := range k.Registers {
		if r.Changed() {
			line(fmt.Sprintf("PCR %d", r.Index), "changed", r.Name+": "+r.Sealed+" at sealing,")
			line("", "", "now "+r.Value)
		}
	}
	if k.Offered != "" {
		line("TPM", "offered", k.Offered)
	}
	for _, n := range k.Notes {
		line("Note", "", n)
	}
}

func rungName(name string) string {
	if name == "loader" {
		return "Boot loader"
	}
	return strings.ToUpper(name[:min(1, len(name))]) + name[min(1, len(name)):]
}

func rungState(state string) string {
	switch state {
	case control.RungUnchecked:
		return "not checked"
	case control.RungUnavailable:
		return "cannot be"
	case control.RungBroken:
		return "BROKEN"
	}
	return state
}

func recoveryState(state string) (word, todo string) {
	switch state {
	case "none":
		return state, "make one: gatehouse keys recovery new"
	case "unconfirmed":
		return state, "type back its last group: gatehouse keys recovery confirm"
	case "":
		return "none", "not in this form of Gatehouse"
	}
	return state, ""
}

func onOff(s control.SecureBootStatus) string {
	switch {
	case !s.Known:
		return "unknown"
	case s.Enabled:
		return "on"
	}
	return "off"
}

func recoveryCommand(f *changeFlags) *cobra.Command {
	fresh := &cobra.Command{
		Use:   "new",
		Short: "Make a recovery key, print it this once, and ask for its last group",
		Long: `Make a recovery key and print it on standard output, alone on a line. The box does not
keep it. Type its last group back, here, with recovery confirm, or on the page, to show
that you do; until then a key of before opens the box, too.`,
		Example: "  gatehouse keys recovery new",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error { return r.newRecovery(ctx) })
		},
	}
	confirm := &cobra.Command{
		Use:     "confirm",
		Short:   "Type back the last group of the new recovery key, so that it takes the place of the one before",
		Example: "  gatehouse keys recovery confirm",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error {
				return r.confirmRecovery(ctx, bufio.NewReader(r.in), false)
			})
		},
	}
	c := group("recovery", "Make the recovery key of a box, and confirm it", fresh, confirm)
	c.Long = "The recovery key opens the data of a box when its TPM, its firmware or its mainboard no\nlonger does: at the box itself, or on a host with gatehoused recover."
	c.Example = "  gatehouse keys recovery new"
	return c
}

func (r *change) newRecovery(ctx context.Context) error {
	var key control.RecoveryKey
	if _, err := r.call(ctx, "POST", r.api+"/recovery", struct{}{}, &key); err != nil {
		return err
	}
	fmt.Fprintln(r.err, "The recovery key, shown this once. Whoever has it and the disk reads everything:")
	if r.asJSON {
		if err := printJSON(r.out, key); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(r.out, printable(key.Text))
	}
	return r.confirmRecovery(ctx, bufio.NewReader(r.in), true)
}

// confirmRecovery asks for the last group, three times at most.
func (r *change) confirmRecovery(ctx context.Context, in *bufio.Reader, made bool) error {
	for range 3 {
		fmt.Fprint(r.err, "Its last group, from where you keep it: ")
		typed, err := in.ReadString('\n')
		if typed = strings.TrimSpace(typed); typed == "" {
			fmt.Fprintln(r.err)
			break
		}
		var k control.Keys
		_, refused := r.call(ctx, "POST", r.api+"/recovery/confirm", control.RecoveryKey{Text: typed}, &k)
		if refused == nil {
			fmt.Fprintln(r.err, "Confirmed. A key of before is worthless now.")
			return nil
		}
		// Another group is refused with 403, as is a session that is not fresh.
		var no *refusal
		if !errors.As(refused, &no) || no.status != http.StatusForbidden || no.text == confirmFirst {
			return refused
		}
		fmt.Fprintln(r.err, refused)
		if err != nil {
			break
		}
	}
	if made {
		return fail(exitConflict, "the recovery key was made and not confirmed: give its last group to gatehouse keys recovery confirm, or to the page; until then a key of before opens the box, too")
	}
	return fail(exitConflict, "the recovery key was not confirmed")
}

func rotateCommand(f *changeFlags) *cobra.Command {
	what := func(name, short string) *cobra.Command {
		return &cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, Example: "  gatehouse keys rotate " + name, RunE: func(cmd *cobra.Command, _ []string) error {
			return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error {
				return r.keys(ctx, "POST", "/rotate", map[string]string{"what": name})
			})
		}}
	}
	c := group("rotate", "Make a key anew while the box runs",
		what("tpm", "Seal a new key to the TPM as the box is now"), what("host-id", "Derive the key of the machine's identifier again"),
		passphraseSet(f, "passphrase", "Change the passphrase of the start"), what("data", "Make a new data key, and all ways to it; the data are not written again"))
	c.Long = "Make a key anew. If the power fails meanwhile, the box opens by the old one or by the\nnew one. Copies of the disk from before go on opening by what opened them then."
	c.Example = "  gatehouse keys rotate tpm"
	return c
}

func passphraseCommand(f *changeFlags) *cobra.Command {
	remove := &cobra.Command{Use: "remove", Short: "Ask for no passphrase any more", Args: cobra.NoArgs, Example: "  gatehouse keys passphrase remove", RunE: func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error { return r.setPassphrase(ctx, "") })
	}}
	c := group("passphrase", "Have a passphrase asked for at each start of the box, or not", passphraseSet(f, "set", "Set the passphrase, or change it"), remove)
	c.Long = "With a passphrase the box does not open its data until somebody typed it, in\nGATEHOUSE_KEY, at each start. A confirmed recovery key is needed first."
	c.Example = "  gatehouse keys passphrase set --new file:passphrase"
	return c
}

func passphraseSet(f *changeFlags, use, short string) *cobra.Command {
	var from string
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, Example: "  gatehouse keys passphrase set\n  gatehouse keys passphrase set --new file:passphrase",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkSecretFlag("new", from); err != nil {
				return err
			}
			if err := oneStdin(from, f.who.password, f.who.code); err != nil {
				return err
			}
			text, err := newPassphrase(newAsker(cmd), from)
			if err != nil {
				return err
			}
			return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error { return r.setPassphrase(ctx, text) })
		}}
	c.Flags().StringVar(&from, "new", "", "read the new passphrase from file:`PATH` or -; a terminal is asked twice without it")
	return c
}

// newPassphrase asks twice, since nobody sees what was typed.
func newPassphrase(a *asker, from string) (string, error) {
	if from != "" {
		return readSecret("new", from, a.in)
	}
	if a.secret == nil {
		return "", fail(exitUsage, "give the new passphrase with --new, since standard input is not a terminal")
	}
	text, err := a.ask("New passphrase of the start: ", "new", true)
	if err != nil {
		return "", err
	}
	again, err := a.ask("The same again: ", "new", true)
	if err == nil && again != text {
		err = fail(exitUsage, "the two passphrases are not the same")
	}
	return text, err
}

func (r *change) setPassphrase(ctx context.Context, text string) error {
	return r.keys(ctx, "POST", "/passphrase", map[string]string{"passphrase": text})
}

// plainChange is one that is asked for by a yes.
func plainChange(f *changeFlags, use, short, path, warning string) *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: use, Short: short, Long: short + ".\n" + warning, Example: "  gatehouse keys " + use, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, keysAPI, func(ctx context.Context, r *change) error {
			if !yes {
				fmt.Fprint(r.err, warning+" Type yes: ")
				if line, _ := bufio.NewReader(r.in).ReadString('\n'); strings.TrimSpace(line) != "yes" {
					return fail(exitConflict, "nothing was changed")
				}
			}
			return r.keys(ctx, "POST", path, struct{}{})
		})
	}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
