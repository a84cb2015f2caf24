package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

func exposureCommand() *cobra.Command {
	var a askAs
	c := &cobra.Command{
		Use:   "exposure",
		Short: "Show who knocks at a box: let in, refused, and why",
		Long: `Show what the page Status shows of a box's exposure: what its allowlists do now, packets
let in and refused over the last hour and day, and the newest refused sources with
their reason. Refused packets are sampled, 20 a second at most; a source may be forged.`,
		Example: "  gatehouse exposure --email ann@example.com --password file:password --code -\n  gatehouse exposure --json --email …",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error {
				var e control.Exposure
				if _, err := s.call(ctx, "GET", "/api/v1/exposure", nil, &e); err != nil {
					return err
				}
				if s.asJSON {
					return printJSON(s.out, e)
				}
				_, err := fmt.Fprint(s.out, exposureText(e, time.Now()))
				return err
			})
		},
	}
	a.flags(c.Flags())
	return c
}

// exposureText is the card in lines.
func exposureText(e control.Exposure, now time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", printable(e.Sentence))
	if e.Problem != "" {
		fmt.Fprintf(&b, "problem: %s\n", printable(e.Problem))
	}
	var in, out uint64
	for i := max(0, len(e.Admitted)-60); i < min(len(e.Admitted), len(e.Refused)); i++ {
		in, out = in+uint64(e.Admitted[i]), out+uint64(e.Refused[i])
	}
	fmt.Fprintf(&b, "%-14s %14s %14s\n", "PACKETS", "LET IN", "REFUSED")
	fmt.Fprintf(&b, "%-14s %14d %14d\n", "last hour", in, out)
	fmt.Fprintf(&b, "%-14s %14d %14d\n", "last 24 hours", e.Day.Admitted, e.Day.Refused)
	for _, l := range e.Lists {
		fmt.Fprintf(&b, "%-14s %14d\n", "  "+printable(l.Name), l.Day)
	}
	switch {
	case !e.InKernel || !e.Sampling:
		fmt.Fprintln(&b, "Refused packets are not sampled here.")
	case len(e.Drops) == 0:
		fmt.Fprintln(&b, "Nobody was refused.")
	default:
		fmt.Fprintf(&b, "\n%-39s %-12s %-8s %8s  %s\n", "LAST REFUSED", "AGO", "TO", "SAMPLES", "WHY")
	}
	for _, d := range e.Drops[:min(len(e.Drops), 10)] {
		to := d.Proto
		if d.Port != 0 {
			to = fmt.Sprintf("%d/%s", d.Port, d.Proto)
		}
		fmt.Fprintf(&b, "%-39s %-12s %-8s %8d  %s\n", d.Source, max(0, now.Sub(d.Last)).Round(time.Second), printable(to), d.Samples, printable(d.Words))
	}
	var taken []string
	for _, c := range e.Counters {
		if c.Class == "exception" {
			taken = append(taken, printable(c.Words))
		}
	}
	if len(taken) > 0 {
		fmt.Fprintf(&b, "\nBesides the two ports: %s.\n", strings.Join(taken, "; "))
	}
	return b.String()
}
