package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// tokenShown is a token as the box lists it; Text only where it was just made.
type tokenShown struct {
	ID      int64     `json:"id"`
	Name    string    `json:"name"`
	Scope   string    `json:"scope"`
	Maker   string    `json:"maker"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"`
	Used    time.Time `json:"used,omitzero"`
	Source  string    `json:"source,omitempty"`
	Expired bool      `json:"expired"`
	Text    string    `json:"token,omitempty"`
}

func tokenCommand() *cobra.Command {
	var a askAs
	c := group("token", "Make, list and revoke tokens of programs", tokenCreateCommand(&a),
		&cobra.Command{Use: "list", Short: "List the tokens, with their last use", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd, listTokens)
		}},
		&cobra.Command{Use: "revoke NAME|NUMBER", Short: "End a token at once", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error { return revokeToken(ctx, s, args[0]) })
		}})
	c.Long = `A token lets a program ask a box without a person: with the scope metrics it reads
/metrics and can do nothing else. Making one is for owners and administrators.`
	c.Example = "  gatehouse token create metrics --name prometheus --email … > gatehouse.token\n  gatehouse token revoke prometheus --email …"
	a.flags(c.PersistentFlags())
	return c
}

func tokenCreateCommand(a *askAs) *cobra.Command {
	var name string
	var days int
	c := &cobra.Command{
		Use:   "create SCOPE",
		Short: "Make a token and print it, this once",
		Long: `Make a token and print it on standard output, alone on a line. The box cannot show it
again. SCOPE is metrics.`,
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"metrics"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error {
				var t tokenShown
				if _, err := s.call(ctx, "POST", "/api/v1/tokens", map[string]any{"name": name, "scope": args[0], "days": days}, &t); err != nil {
					return err
				}
				if s.asJSON {
					return printJSON(s.out, t)
				}
				_, err := fmt.Fprintln(s.out, printable(t.Text))
				return err
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "who uses it, such as prometheus")
	c.Flags().IntVar(&days, "days", 365, "how long it is good; 0: until it is revoked")
	if err := c.MarkFlagRequired("name"); err != nil {
		panic(err) // the flag is two lines above
	}
	return c
}

func listTokens(ctx context.Context, s *signed) error {
	var answer struct {
		Tokens []tokenShown `json:"tokens"`
	}
	if _, err := s.call(ctx, "GET", "/api/v1/tokens", nil, &answer); err != nil {
		return err
	}
	if s.asJSON {
		return printJSON(s.out, answer)
	}
	if len(answer.Tokens) == 0 {
		fmt.Fprintln(s.err, "There is no token.")
		return nil
	}
	fmt.Fprintf(s.out, "%6s  %-20s %-8s %-17s %-17s %s\n", "NUMBER", "NAME", "SCOPE", "UNTIL", "LAST USE", "MADE BY")
	for _, t := range answer.Tokens {
		fmt.Fprintf(s.out, "%6d  %-20s %-8s %-17s %-17s %s\n", t.ID, printable(t.Name), printable(t.Scope), when(t.Expires, "revoked"), when(t.Used, "never"), printable(t.Maker))
	}
	return nil
}

func when(t time.Time, never string) string {
	if t.IsZero() {
		return never
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}

func revokeToken(ctx context.Context, s *signed, which string) error {
	question := map[string]any{"name": which}
	if id, err := strconv.ParseInt(which, 10, 64); err == nil {
		question = map[string]any{"id": id}
	}
	var answer struct{}
	if _, err := s.call(ctx, "POST", "/api/v1/tokens/revoke", question, &answer); err != nil {
		return err
	}
	fmt.Fprintln(s.err, "Revoked.")
	return nil
}
