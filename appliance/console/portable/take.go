package portable

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/control"
)

// Choice is what of a staged file is taken.
type Choice struct {
	ID   string   `json:"id"`
	Only []string `json:"only"` // parts; none: all but the network
	// Force takes lists that cut the asker off. They go back after a minute, unless
	// they are kept from an address that they let in.
	Force bool `json:"force,omitempty"`
}

// Taken is what came of it.
type Taken struct {
	Done    []string           `json:"done"`            // parts
	Notes   []string           `json:"notes,omitempty"` // what was not done, and why, in words
	Lists   *control.Candidate `json:"lists,omitempty"` // waits to be kept
	Network *control.Candidate `json:"network,omitempty"`
	// SignIn says that the session of who asked has ended: other people are those
	// of the box now.
	SignIn bool `json:"sign_in,omitempty"`
}

// asker is who takes it.
type asker struct {
	by      control.By
	session account.Session
	address netip.Addr // exact
	local   netip.Addr // of the box
	record  keeper.Record
}

// take puts the chosen parts in the place of what is here. Everything is judged
// before anything changes. Then: the database in one transaction, which is the
// commit point of people, place and targets; the file of the certificates; the
// settings of updates; lists and network as changes that wait to be kept. A
// power cut between two of them leaves those of before from there on, and the
// file is gone: the same import again does the rest.
func (s *service) take(ctx context.Context, q Choice, who asker, db func(context.Context, func(*sql.Tx) error) error) (t Taken, err error) {
	if !s.one.TryLock() {
		return t, errBusy
	}
	defer s.one.Unlock()
	g := s.waiting(who.session.Person.ID, q.ID)
	if g == nil {
		return t, refuse("That file waits no longer: it does for ten minutes. Send it again.")
	}
	c, err := s.read(g.key)
	if err != nil {
		return t, words(err)
	}
	chosen, err := choose(c, q.Only)
	if err != nil {
		return t, err
	}
	if err := mayKeep(c, chosen, who.session.Person); err != nil {
		return t, err
	}
	if slices.Contains(chosen, lists) {
		s.Lists.Staging.Lock()
		defer s.Lists.Staging.Unlock()
		if err := s.tryLists(ctx, g, q.Force, who); err != nil {
			return t, err
		}
	}
	detail := map[string]string{"parts": strings.Join(chosen, " "), "made": c.about.Made.UTC().Format("2006-01-02T15:04:05Z"), "people": strconv.Itoa(len(c.people)), "targets": strconv.Itoa(len(c.targets))}
	if err := who.record("import configuration", c.about.Box, detail); err != nil {
		return t, err
	}
	if err := db(ctx, func(tx *sql.Tx) error { return s.intoDatabase(ctx, tx, c, chosen, who.session.ID) }); err != nil {
		return t, words(err)
	}
	s.drop()
	for _, p := range []string{people, place, targets} {
		if slices.Contains(chosen, p) {
			t.Done = append(t.Done, p)
		}
	}
	if slices.Contains(chosen, people) {
		t.SignIn = !slices.ContainsFunc(c.people, func(m account.Moved) bool { return strings.EqualFold(m.Email, who.session.Person.Email) })
		if err := s.Imported(context.WithoutCancel(ctx)); err != nil {
			t.Notes = append(t.Notes, "The box was not told who its owner is now: "+err.Error()+". Restart it.")
		}
	}
	s.takeRest(context.WithoutCancel(ctx), c, chosen, q.Force, who, &t)
	return t, nil
}

// choose judges the names of parts.
func choose(c *content, only []string) ([]string, error) {
	there := c.parts()
	if len(only) == 0 {
		return usual(there), nil
	}
	var chosen []string
	for _, p := range order {
		if slices.Contains(only, p) {
			chosen = append(chosen, p)
		}
	}
	for _, p := range only {
		switch {
		case !slices.Contains(order, p):
			return nil, refuse("%.40q is no part of a configuration. There are %s.", p, strings.Join(order, ", "))
		case !slices.Contains(there, p):
			return nil, refuse("There is no part %q in the file: it has %s.", p, strings.Join(there, ", "))
		}
	}
	return chosen, nil
}

// mayKeep refuses what nobody could keep: lists and network go back after a
// minute unless somebody who is signed in keeps them.
func mayKeep(c *content, chosen []string, who account.Person) error {
	if !slices.Contains(chosen, people) || !slices.Contains(chosen, lists) && !slices.Contains(chosen, network) {
		return nil
	}
	for _, m := range c.people {
		if strings.EqualFold(m.Email, who.Email) && right.May(m.Role, right.Configure) {
			return nil
		}
	}
	return refuse("You, %s, are not among the people of the file, so you could not keep its lists or network within the minute. Take the people first, sign in as one of them, and take the rest then.", who.Email)
}

// tryLists stages the lists and has them judged; nothing takes effect.
func (s *service) tryLists(ctx context.Context, g *staged, force bool, who asker) error {
	now, err := s.Lists.Lists(ctx)
	switch {
	case err != nil:
		return err
	case now.Files != "":
		return refuse("The allowlists of this Gatehouse are files of the host: change them there, in %s, and leave the lists out here.", now.Files)
	case now.Candidate != nil:
		return refuse("A change of the allowlists waits to be kept: keep it or take it back first.")
	}
	if err := s.stageLists(ctx, g.key); err != nil {
		return words(err)
	}
	report, err := s.Lists.Try(ctx, s.listsTry(true, force, who))
	switch {
	case err != nil:
		return err
	case len(report.Problems) > 0:
		p := report.Problems[0]
		return refuse("Nothing was changed. The allowlists of the file are refused: %s (%s, line %d).", strings.TrimSuffix(p.Reason, "."), p.File, p.Line)
	case report.SelfCut && !force:
		return refuse("Nothing was changed: the allowlists of the file do not let your address %s in. Leave the lists out, or say that you mean it: they go back after a minute unless somebody keeps them from an address they let in.", who.address)
	}
	return nil
}

func (s *service) listsTry(dry, force bool, who asker) control.ListsTry {
	return control.ListsTry{DryRun: dry, Force: force, Watch: []netip.Addr{who.address}, Actor: who.by.Actor, From: who.address.String()}
}

func (s *service) intoDatabase(ctx context.Context, tx *sql.Tx, c *content, chosen []string, session int64) error {
	if slices.Contains(chosen, people) {
		if err := s.People().Import(ctx, tx, c.people, session); err != nil {
			return err
		}
	}
	if slices.Contains(chosen, place) {
		if err := s.Place.Import(ctx, tx, *c.place); err != nil {
			return err
		}
	}
	if slices.Contains(chosen, targets) {
		return s.Targets.Import(ctx, tx, c.targets)
	}
	return nil
}

// takeRest takes what is not in the database. What fails is said and keeps
// nothing else from being done: the people are others already.
func (s *service) takeRest(ctx context.Context, c *content, chosen []string, force bool, who asker, t *Taken) {
	part := func(name string, f func() error) {
		if !slices.Contains(chosen, name) {
			return
		}
		if err := f(); err != nil {
			t.Notes = append(t.Notes, fmt.Sprintf("The part %s was not taken: %s.", name, strings.TrimSuffix(err.Error(), ".")))
			return
		}
		t.Done = append(t.Done, name)
	}
	part(certificates, func() error { return s.Certificates.Restore(*c.certificates, c.about.Box, who.record) })
	part(updates, func() error { return s.SetUpdate(ctx, control.UpdateSet{By: who.by, Settings: *c.updates}) })
	part(lists, func() error {
		report, err := s.Lists.Try(ctx, s.listsTry(false, force, who))
		if err == nil && report.Candidate == nil {
			err = refuse("they were refused")
		}
		t.Lists = report.Candidate
		return err
	})
	part(network, func() error {
		report, err := s.TryNetwork(ctx, control.NetworkTry{Settings: *c.network, Actor: who.by.Actor, From: who.by.From, Local: who.local})
		switch {
		case err != nil:
			return err
		case len(report.Problems) > 0:
			return refuse("%s", report.Problems[0].Reason)
		case report.Candidate == nil:
			t.Notes = append(t.Notes, "The network settings are those that are here already.")
		}
		t.Network = report.Candidate
		return nil
	})
}
