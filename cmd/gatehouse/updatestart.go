package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

func updateStartCommand(f *changeFlags) *cobra.Command {
	var s starting
	c := &cobra.Command{
		Use:   "start",
		Short: "Restart the box into the release that it received",
		Long: `Restart the box into the release that it received, for a trial: it is kept when all is as
good as before, and the box goes back by itself otherwise. Says how many sessions that cuts,
and asks.

With --follow, wait until it is kept or gone back: exit 0 or 1, and 6 if that does not
come out in time.`,
		Example: "  gatehouse update start --follow\n  gatehouse update start --later\n  gatehouse update start --wait",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s.wait && s.later {
				return fail(exitUsage, "either --wait, for the window, or --later, in 5 minutes")
			}
			return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error { return r.start(ctx, s) })
		},
	}
	c.Flags().BoolVar(&s.wait, "wait", false, "start it at the window, not now")
	c.Flags().BoolVar(&s.later, "later", false, "start it in 5 minutes: people in sessions are told, and can come to an end")
	c.Flags().BoolVar(&s.follow, "follow", false, "wait until it is kept or gone back")
	c.Flags().BoolVar(&s.yes, "yes", false, "do not ask")
	c.Flags().DurationVar(&s.timeout, "timeout", 20*time.Minute, "with --follow: how long after the restart at most")
	return c
}

type starting struct {
	wait, later, follow, yes bool
	timeout                  time.Duration
}

func (r *change) start(ctx context.Context, s starting) error {
	var d control.UpdateView
	if _, err := r.call(ctx, "GET", r.api, nil, &d); err != nil {
		return err
	}
	if d.Transfer == nil || d.Stage != control.UpdateReceived && d.Stage != control.UpdateWaiting {
		stage, _ := updateStage(d.Update)
		return fail(exitNotFound, "there is no release that could be started (%s): send one with gatehouse update send", printable(stage))
	}
	version, before := d.Transfer.Version, d.Last
	byItself := s.wait || s.later
	if !s.wait {
		if err := r.agreed(s.yes, startWarning(printable(version), d.Sessions, s.later)); err != nil {
			return err
		}
	}
	_, err := r.call(ctx, "POST", r.api+"/start", map[string]bool{"wait": s.wait, "later": s.later}, &d)
	var f *failure
	if gone := errors.As(err, &f) && f.code == exitUnreachable; err != nil && (!gone || byItself) {
		return err // a box that restarts may not come to its answer
	}
	if byItself && d.Restart != nil {
		fmt.Fprintf(r.err, "It starts %s. Who is in a session is told five minutes before.\n", d.Restart.UTC().Format("2006-01-02 15:04Z"))
	} else if !byItself {
		fmt.Fprintf(r.err, "The box restarts into version %s.\n", printable(version))
	}
	if s.follow {
		return r.follow(ctx, s, d, version, before)
	}
	if r.asJSON && err == nil {
		return printJSON(r.out, d)
	}
	return nil
}

func startWarning(version string, sessions int, later bool) string {
	people := "Nobody is in a session."
	switch sessions {
	case 0:
	case 1:
		people = "1 session to a target ends."
	default:
		people = fmt.Sprintf("%d sessions to targets end.", sessions)
	}
	when := ""
	if later {
		when = " in 5 minutes"
	}
	return "The box restarts" + when + " into version " + version + " and cannot be reached for about a minute. " + people
}

// follow asks until the trial has ended.
func (r *change) follow(ctx context.Context, s starting, d control.UpdateView, version string, before *control.Outcome) error {
	begun := time.Now()
	if (s.wait || s.later) && d.Restart != nil {
		begun = *d.Restart
	}
	said, away := "", false
	for {
		if time.Since(begun) > s.timeout {
			return fail(exitUnreachable, "version %s was neither kept nor gone back within %s", printable(version), s.timeout)
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		var now control.UpdateView
		_, err := r.call(ctx, "GET", r.api, nil, &now)
		var f *failure
		var no *refusal
		switch {
		case err == nil:
			if away {
				fmt.Fprintln(r.err, "It is there again.")
			}
			away = false
		case errors.As(err, &f) && f.code == exitUnreachable, errors.As(err, &no) && no.status >= 500:
			if !away {
				fmt.Fprintln(r.err, "It cannot be reached now.")
			}
			away = true
			r.client.CloseIdleConnections()
			continue
		default:
			return err
		}
		if o := now.Last; o != nil && o.Version == version && (before == nil || !o.When.Equal(before.When)) {
			return r.ended(now, *o)
		}
		if now.Stage == control.UpdateIdle && (s.wait || s.later) {
			return fail(exitConflict, "it was cancelled: version %s was not started", printable(version))
		}
		if text := trialLine(now.Update); text != said {
			said = text
			fmt.Fprintln(r.err, printable(text))
		}
	}
}

// trialLine is what a trial still waits for.
func trialLine(u control.Update) string {
	if u.Trial == nil {
		return said(u)
	}
	var open []string
	for _, c := range u.Trial.Checks {
		if c.State == "waiting" || c.State == "bad" {
			open = append(open, c.Name)
		}
	}
	if len(open) == 0 {
		return "On trial: all is as good as before."
	}
	return "On trial, not yet as before: " + strings.Join(open, ", ") + "."
}

func said(u control.Update) string {
	stage, _ := updateStage(u)
	return "Stage: " + stage + "."
}

func (r *change) ended(d control.UpdateView, o control.Outcome) error {
	if r.asJSON {
		if err := printJSON(r.out, d); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(r.out, printable(lastTrial(o)))
	}
	if !o.Kept {
		return fail(exitFailure, "version %s went back to %s: %s", printable(o.Version), printable(d.Running.Version), printable(o.Reason))
	}
	return nil
}
