package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

func sessionsCommand() *cobra.Command {
	var a askAs
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List the sessions that are open", Long: "List the sessions that are open, newest first; with --all also the last hundred that are over.",
		Example: "  gatehouse sessions list\n  gatehouse sessions list --all --json", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error { return listSessions(ctx, s, all) })
		},
	}
	list.Flags().BoolVar(&all, "all", false, "those that are over, too")
	end := &cobra.Command{
		Use: "end ID", Short: "End a session, at both ends, at once", Long: "End a session at once. The first digits of its ID are enough, if no other open session has them.",
		Example: "  gatehouse sessions end 3fa9", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error { return endSession(ctx, s, args[0]) })
		},
	}
	c := group("sessions", "See and end sessions", list, end)
	c.Long = "Who is at which target, since when and by which way, and an end to it."
	c.Example = "  gatehouse sessions list\n  gatehouse sessions end 3fa9"
	a.flags(c.PersistentFlags())
	return c
}

func (b *box) sessions(ctx context.Context) ([]api.Session, error) {
	var l api.SessionList
	_, err := b.call(ctx, http.MethodGet, api.Sessions, nil, &l)
	return l.Sessions, err
}

func listSessions(ctx context.Context, s *signed, all bool) error {
	list, err := s.sessions(ctx)
	if err != nil {
		return err
	}
	shown := make([]api.Session, 0, len(list))
	for _, x := range list {
		if all || x.State != api.Over {
			shown = append(shown, x)
		}
	}
	if s.asJSON {
		return printJSON(s.out, api.SessionList{Sessions: shown})
	}
	if len(shown) == 0 {
		fmt.Fprintln(s.err, "No session is open.")
		return nil
	}
	fmt.Fprintf(s.out, "%-8s  %-7s  %-20s %-24s %-17s %-6s %s\n", "ID", "STATE", "TARGET", "WHO", "SINCE", "WAY", "DOES")
	for _, x := range shown {
		does := strings.Join(x.Open, ", ")
		if x.State == api.Over {
			does = x.Reason
		}
		fmt.Fprintf(s.out, "%-8s  %-7s  %-20s %-24s %-17s %-6s %s\n", x.ID.String()[:8], x.State, printable(x.Target.Name), printable(x.Technician),
			when(x.Started, ""), printable(x.Path), printable(does))
	}
	return nil
}

// pick finds the one thing whose id begins so.
func pick(what, typed string, ids []targets.ID) (id targets.ID, err error) {
	found := 0
	for _, x := range ids {
		if typed != "" && strings.HasPrefix(x.String(), strings.ToLower(typed)) {
			id, found = x, found+1
		}
	}
	switch found {
	case 0:
		return id, fail(exitNotFound, "there is no %s whose ID begins with %s", what, typed)
	case 1:
		return id, nil
	}
	return id, fail(exitConflict, "the IDs of %d begin with %s: give more of it", found, typed)
}

func endSession(ctx context.Context, s *signed, typed string) error {
	list, err := s.sessions(ctx)
	if err != nil {
		return err
	}
	var ids []targets.ID
	for _, x := range list {
		if x.State != api.Over {
			ids = append(ids, x.ID)
		}
	}
	id, err := pick("open session", typed, ids)
	if err != nil {
		return err
	}
	var answer struct{}
	if _, err := s.call(ctx, http.MethodPost, api.End, api.EndAsk{Session: id}, &answer); err != nil {
		return err
	}
	fmt.Fprintln(s.err, "Ended.")
	return nil
}

// lasting says for how long, for people.
func lasting(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(time.Second).String()
}
