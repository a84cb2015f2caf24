package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

const updateAPI = "/api/v1/update"

func updateCommand() *cobra.Command {
	var f changeFlags
	show := func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error { return r.update(ctx, "GET", "", nil) })
	}
	c := &cobra.Command{
		Use:   "update",
		Short: "Show which system a box runs, and give it another release",
		Long: `Show, for the owner, which system a box runs, what is in its other slot, and how far a
release has come; and bring one in, start it, and say when releases may come by themselves.

What brings in or starts a release wants a fresh sign-in: within ten minutes after
gatehouse login.`,
		Example: "  gatehouse update\n  gatehouse update send gatehouse-1.5.0-amd64.update\n  gatehouse update start --follow",
		Args:    cobra.NoArgs,
		RunE:    show,
	}
	f.register(c)
	status := &cobra.Command{Use: "status", Short: "The same: which system runs, what is in the other slot, what is on its way", Args: cobra.NoArgs, Example: "  gatehouse update status --json", RunE: show}
	cancel := &cobra.Command{Use: "cancel", Short: "Forget a release that is received or waits for its window", Args: cobra.NoArgs, Example: "  gatehouse update cancel", RunE: func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error { return r.update(ctx, "POST", "/cancel", struct{}{}) })
	}}
	c.AddCommand(status, updateSendCommand(&f), updateStartCommand(&f), cancel, updateSetCommand(&f), updateLookCommand(&f))
	return c
}

// update asks, or changes, and prints what stands then.
func (r *change) update(ctx context.Context, method, path string, question any) error {
	var d control.UpdateView
	if _, err := r.call(ctx, method, r.api+path, question, &d); err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(r.out, d)
	}
	printUpdate(r.out, d)
	return nil
}

func printUpdate(out io.Writer, d control.UpdateView) {
	line := func(name, format string, a ...any) {
		fmt.Fprintf(out, "%-9s %s\n", name, printable(fmt.Sprintf(format, a...)))
	}
	slot := func(s control.System) string {
		text := fmt.Sprintf("%s in slot %s, %s", s.Version, strings.ToUpper(s.Slot), s.State)
		if s.Reason != "" {
			text += ": " + s.Reason
		}
		return text
	}
	line("Runs", "%s", slot(d.Running))
	if d.Other != nil {
		line("Other", "%s", slot(*d.Other))
	} else {
		line("Other", "nothing that starts")
	}
	stage, next := updateStage(d.Update)
	line("Stage", "%s", stage)
	if d.Trial != nil {
		for _, c := range d.Trial.Checks {
			line("", "%-9s%-9s%s", c.Name, c.State, c.Detail)
		}
	}
	if d.Last != nil {
		line("Last", "%s", lastTrial(*d.Last))
	}
	if d.Problem != "" {
		line("Problem", "%s", d.Problem)
	}
	for _, n := range d.Notes {
		line("Note", "%s", n)
	}
	line("Signers", "%d of %d: %s", d.Needed, len(d.Signers), strings.Join(d.Signers, ", "))
	line("Mirror", "%s", mirrorLine(d))
	window := "none: a release starts when asked"
	if d.Policy.Window != "" {
		window = d.Policy.Window + " UTC"
	}
	line("Window", "%s", window)
	if next != "" {
		line("Next", "%s", next)
	}
}

// updateStage is the stage in words, and the one thing to do next.
func updateStage(u control.Update) (stage, next string) {
	t := u.Transfer
	switch {
	case u.Stage == control.UpdateReceiving && t != nil:
		return fmt.Sprintf("receiving %s: %s", t.Version, how(t.Received, t.Size, t.Rate)), "if nothing comes any more: gatehouse update send with the same file"
	case u.Stage == control.UpdateReceived && t != nil:
		return "received " + t.Version + ", verified", "gatehouse update start"
	case u.Stage == control.UpdateWaiting && u.Restart != nil:
		return "waiting: starts " + u.Restart.UTC().Format("2006-01-02 15:04Z"), ""
	case u.Stage == control.UpdateTrial && u.Trial != nil:
		return "trial of " + u.Trial.Version + ", kept or gone back by " + u.Trial.Until.UTC().Format("15:04Z"), ""
	}
	return u.Stage, ""
}

func lastTrial(o control.Outcome) string {
	word := "kept"
	if !o.Kept {
		word = "gone back"
		if !o.Explained {
			word += fmt.Sprintf(", unexplained, try %d of 3", o.Tries)
		}
	}
	return strings.TrimSuffix(fmt.Sprintf("%s, %s, %s: %s", o.Version, o.When.UTC().Format("2006-01-02 15:04Z"), word, o.Reason), ": ")
}

func mirrorLine(d control.UpdateView) string {
	if d.Policy.Mirror == "" {
		return "none"
	}
	text := d.Policy.Mirror + ", when asked"
	if d.Policy.Automatic {
		text = d.Policy.Mirror + ", taken by itself"
	}
	if d.Policy.Roots != "" {
		text += ", by an authority of its own"
	}
	switch m := d.Mirror; {
	case m.Busy:
		text += "; it is being asked"
	case m.Problem != "":
		text += "; " + m.Problem
	case m.Offers != "":
		text += "; it offers " + m.Offers
	case !m.Looked.IsZero():
		text += "; nothing newer at " + m.Looked.Format("2006-01-02 15:04Z")
	}
	return text
}

// how is how far a transfer is: bytes, rate, time left.
func how(done, size int64, rate float64) string {
	text := fmt.Sprintf("%.1f of %.1f MB, %d %%", float64(done)/1e6, float64(size)/1e6, 100*done/max(size, 1))
	if rate >= 1 && done < size {
		text += fmt.Sprintf(", %.1f MB/s", rate/1e6)
		if left := time.Duration(float64(size-done) / rate * float64(time.Second)).Round(time.Second); left < 48*time.Hour {
			text += fmt.Sprintf(", %s left", left)
		}
	}
	return text
}

func updateSetCommand(f *changeFlags) *cobra.Command {
	var s control.UpdateSettings
	var roots string
	c := &cobra.Command{
		Use:   "set",
		Short: "Say where releases are asked for, and when one may restart the box",
		Long: `Say where releases are asked for, when one may restart the box, and whether both happen
without a question. What is not named stays as it is; an empty text takes it away.`,
		Example: "  gatehouse update set --mirror https://mirror.example.net/gatehouse/ --window 'Sun 02:00-04:00' --automatic\n  gatehouse update set --automatic=false --mirror ''",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.ContainsFunc([]string{"mirror", "roots", "window", "automatic"}, cmd.Flags().Changed) {
				return fail(exitUsage, "say what to set: --mirror, --roots, --window or --automatic")
			}
			if roots != "" {
				b, err := readPEM("roots", roots, control.MaxUpdateRoots)
				if err != nil {
					return err
				}
				s.Roots = string(b)
			}
			return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error {
				var d control.UpdateView
				if _, err := r.call(ctx, "GET", r.api, nil, &d); err != nil {
					return err
				}
				if cmd.Flags().Changed("mirror") && s.Mirror == "" {
					d.Policy.Roots = "" // there is nobody any more that they could vouch for
				}
				for name, set := range map[string]func(){
					"mirror":    func() { d.Policy.Mirror = s.Mirror },
					"roots":     func() { d.Policy.Roots = s.Roots },
					"window":    func() { d.Policy.Window = s.Window },
					"automatic": func() { d.Policy.Automatic = s.Automatic },
				} {
					if cmd.Flags().Changed(name) {
						set()
					}
				}
				return r.update(ctx, "POST", "/settings", d.Policy)
			})
		},
	}
	c.Flags().StringVar(&s.Mirror, "mirror", "", "the `ADDRESS` of a folder of a release, https or http, asked once a day")
	c.Flags().StringVar(&roots, "roots", "", "a `FILE` of PEM certificates that vouch for an https mirror, in place of the public authorities")
	c.Flags().StringVar(&s.Window, "window", "", "the `HOURS` in which a release may restart the box, in UTC: 'Sun 02:00-04:00', 'daily 02:00-04:00'")
	c.Flags().BoolVar(&s.Automatic, "automatic", false, "receive what the mirror has, and start it at the window, without a question")
	return c
}

func updateLookCommand(f *changeFlags) *cobra.Command {
	var receive, again bool
	c := &cobra.Command{
		Use:   "look",
		Short: "Have the box ask its mirror now",
		Long: `Have the box ask its mirror now; and with --receive have what it has brought in, too, which
wants a fresh sign-in.`,
		Example: "  gatehouse update look\n  gatehouse update look --receive",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if again && !receive {
				return fail(exitUsage, "--again says what may be received: give --receive, too")
			}
			path, question := "/look", map[string]bool{}
			if receive {
				path, question["again"] = "/receive", again
			}
			return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error {
				var d control.UpdateView
				_, err := r.call(ctx, "POST", r.api+path, question, &d)
				for err == nil && d.Mirror.Busy && d.Stage != control.UpdateReceiving {
					if err = pause(ctx, time.Second); err == nil {
						_, err = r.call(ctx, "GET", r.api, nil, &d)
					}
				}
				if err != nil {
					return err
				}
				return r.update(ctx, "GET", "", nil)
			})
		},
	}
	c.Flags().BoolVar(&receive, "receive", false, "receive what it has, too")
	c.Flags().BoolVar(&again, "again", false, "with --receive: also a version that failed on this box before")
	return c
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// agreed asks for a yes before people lose their connections.
func (r *change) agreed(yes bool, warning string) error {
	if yes {
		return nil
	}
	fmt.Fprint(r.err, warning+" Type yes: ")
	if line, _ := bufio.NewReader(r.in).ReadString('\n'); strings.TrimSpace(line) != "yes" {
		return fail(exitConflict, "nothing was started")
	}
	return nil
}
