package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

// boxClock is what a box says of its clock.
type boxClock struct {
	control.Clock
	Why   string   `json:"why"`
	Asked []string `json:"asked,omitempty"`
}

func clockCommand() *cobra.Command {
	var f changeFlags
	var yes bool
	c := group("clock", "Show a box's clock, and reset its floor")
	c.Long = `Show what the clock of a box is worth and why, and reset its floor.

The clock is never set before its floor, the last time that the box was sure of.
If somebody lied about the time, the floor went ahead with it and the right time is
refused. The owner can reset it to the time the box's program was built.`
	c.Example = "  gatehouse clock show --email ann@example.com --password file:password --code -\n" +
		"  gatehouse clock reset-floor --email …"
	f.register(c)
	show := &cobra.Command{Use: "show", Short: "Show the time, where it comes from and what it is worth", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, "/api/v1/clock", func(ctx context.Context, r *change) error {
			var k boxClock
			if _, err := r.call(ctx, "GET", r.api, nil, &k); err != nil {
				return err
			}
			return r.printClock(k)
		})
	}}
	reset := &cobra.Command{Use: "reset-floor", Short: "Reset the floor, for the owner", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return f.signedIn(cmd, "/api/v1/clock", func(ctx context.Context, r *change) error { return r.resetFloor(ctx, yes) })
	}}
	reset.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.AddCommand(show, reset)
	return c
}

func (r *change) printClock(k boxClock) error {
	if r.asJSON {
		return printJSON(r.out, k)
	}
	trusted := "trusted"
	if !k.Trusted {
		trusted = "not to be trusted"
	}
	fmt.Fprintf(r.out, "%s, %s\n%s\n", k.Time.UTC().Format(time.DateTime+" MST"), trusted, printable(k.Why))
	if !k.Floor.IsZero() {
		fmt.Fprintf(r.out, "Floor: %s\n", k.Floor.UTC().Format(time.DateTime+" MST"))
	}
	if len(k.Asked) > 0 {
		fmt.Fprintf(r.out, "Time servers: %s\n", printable(strings.Join(k.Asked, ", ")))
	}
	return nil
}

func (r *change) resetFloor(ctx context.Context, yes bool) error {
	if !yes {
		fmt.Fprint(r.err, "The box forgets the last time it was sure of, and can be set back as far as its program is old. Type yes: ")
		if line, _ := bufio.NewReader(r.in).ReadString('\n'); strings.TrimSpace(line) != "yes" {
			return fail(exitConflict, "the floor was not reset")
		}
	}
	var k boxClock
	_, err := r.call(ctx, "POST", r.api+"/reset-floor", struct{}{}, &k)
	var refused *refusal
	if errors.As(err, &refused) && refused.status == http.StatusForbidden {
		return fail(exitDenied, "the floor was not reset: %w", err)
	}
	if err != nil {
		return err
	}
	return r.printClock(k)
}
