package broker

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// live is a session that is not over, as far as it is known here.
type live struct {
	grant    session.Grant
	signed   []byte
	person   int64
	signIn   int64
	from     string
	source   netip.Addr
	targetID int64
	site     string
	state    api.State
	path     string
	open     []string
	recorded int64
	meetings []time.Time // of the last minute
	asked    uint64      // signals
	answers  map[uint64]chan attend.Signalled
}

// meetingsPerMinute bounds how often the ends of one session meet anew.
const meetingsPerMinute = 60

// load reads the sessions that were not over when the console ended. Which of
// them the agent still has, and by which way, it says when it comes. Until then
// they are cut off, and not waiting: who was in one long ago is still in it, and
// what nobody comes back to the agent ends.
func (b *Broker) load(ctx context.Context) error {
	return b.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT person, source, sign_in, target_id, grant_, recorded FROM remote_session WHERE ended = 0")
		if err != nil {
			return fmt.Errorf("reading the sessions that are not over: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			l := &live{state: api.Lost, answers: make(map[uint64]chan attend.Signalled)}
			if err := rows.Scan(&l.person, &l.from, &l.signIn, &l.targetID, &l.signed, &l.recorded); err != nil {
				return err
			}
			// One that is over by now is ended by the sweep.
			if l.grant, err = session.ReadGrant(b.keys.public(), l.signed); err != nil {
				b.cfg.Log.Error("a session is forgotten", "err", err)
				continue
			}
			if l.source, err = netip.ParseAddr(l.from); err != nil {
				l.source = netip.Addr{}
			}
			l.site = l.grant.Site
			b.live[l.grant.ID] = l
		}
		return rows.Err()
	})
}

// Ask grants a session, if the person may and the agent is there.
func (b *Broker) Ask(ctx context.Context, who asker.Who, q api.Ask) (api.Granted, error) {
	if !right.May(who.Person.Role, right.UseSessions) {
		return api.Granted{}, asker.Refuse("Your role (%s) may not open sessions.", who.Person.Role)
	}
	t, err := b.Find(ctx, q.Target)
	if err != nil {
		return api.Granted{}, err
	}
	if q.Key == (session.Key{}) {
		return api.Granted{}, asker.Refuse("A session needs the key of your end.")
	}
	n, err := b.line()
	if err != nil {
		return api.Granted{}, err
	}
	g, err := b.grant(ctx, who, q, t, n)
	if err != nil {
		return api.Granted{}, err
	}
	signed, err := g.Sign(b.keys.sign)
	if err != nil {
		return api.Granted{}, asker.Refuse("The session is not granted: %v.", asker.Words(err))
	}
	detail := map[string]string{"session": g.ID.String(), "kind": string(t.Kind), "host": t.Host, "functions": g.Functions.String(), "recording": string(g.Recording), "with": string(g.Transport)}
	if err := b.audit(ctx, who, "open session", t.Name, detail); err != nil {
		return api.Granted{}, err
	}
	l := &live{grant: g, signed: signed, person: who.Person.ID, signIn: who.SignIn, from: who.Source.String(), source: who.Source, targetID: t.ID, site: n.hello.site, state: api.Waiting, answers: make(map[uint64]chan attend.Signalled)}
	if err := b.keep(ctx, l); err != nil {
		return api.Granted{}, err
	}
	granted, why, err := b.offer(ctx, l, n, who)
	if err != nil {
		b.finish(ctx, g.ID, why)
		return api.Granted{}, err
	}
	return granted, nil
}

// offer tells the agent of a session that is kept, or says why it ends. The
// target is read again: whoever changed or removed it before the session was kept
// found nothing to end, and whoever does it later finds this session.
func (b *Broker) offer(ctx context.Context, l *live, n *line, who asker.Who) (granted api.Granted, why string, err error) {
	g := l.grant
	t, material, err := b.Material(ctx, l.targetID, who)
	switch {
	case errors.Is(err, asker.ErrNone):
		return granted, "the target was removed", err
	case err != nil:
		return granted, "the target could not be read", err
	case t.Host != g.Target.Host || t.Port != g.Target.Port || t.Kind != g.Target.Kind:
		return granted, "the target was changed", asker.Refuse("%s was changed while you asked for it. Ask again.", g.Target.Name)
	}
	offer := attend.Offer{Grant: l.signed, Material: material}
	granted = api.Granted{Session: g.ID, Grant: l.signed, Until: g.Until, Notice: b.cuts(g), Meeting: api.Meeting{Gateway: g.Gateways[0]}}
	if g.Transport == session.TLS {
		if offer.Ticket, granted.Ticket, err = b.tickets(l, n); err != nil {
			return granted, "it could not be signed", err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock() // held, so that the agent is not told of its end first
	if b.live[g.ID] == nil {
		return granted, "", asker.Refuse("The session was ended before it began. Ask again.")
	}
	if n.send(attend.ToSite{Offer: &offer}) != nil {
		return granted, "the agent could not be told", asker.Refuse("The agent does not answer. Try again in a moment.")
	}
	return granted, "", nil
}

// grant is what the person gets of what was asked.
func (b *Broker) grant(ctx context.Context, who asker.Who, q api.Ask, t api.Target, n *line) (session.Grant, error) {
	functions := right.Allowed(who.Person.Role)
	if len(q.Functions) > 0 {
		var wanted right.Functions
		for _, name := range q.Functions {
			i := slices.Index(right.FunctionNames(), name)
			if i < 0 {
				return session.Grant{}, asker.Refuse("%.40q is not a function of a session. There are: %s.", name, strings.Join(right.FunctionNames(), ", "))
			}
			wanted |= 1 << i
		}
		functions &= wanted
	}
	if functions == 0 {
		return session.Grant{}, asker.Refuse("Nothing of what you ask for is granted to you. Ask the owner for the rights that you need.")
	}
	g := session.Grant{Site: n.hello.site, Technician: who.Person.Email, Transport: q.Transport, Key: q.Key, Agent: n.hello.Key, Target: t.Target, Functions: functions, Recording: session.RecordingOff}
	if q.Transport == session.WebRTC {
		g.Agent = n.hello.Certificate
	}
	switch {
	case t.Recording == session.RecordingForced:
		g.Recording = session.RecordingForced
	case q.Record && t.Recording == session.RecordingAllowed && functions.Has(right.Record):
		g.Recording = session.RecordingAllowed
	case q.Record:
		return session.Grant{}, asker.Refuse("Sessions to %s are not recorded: the target says so, or you do not have the right.", t.Name)
	}
	if g.Recording == session.RecordingOff {
		g.Functions &^= right.Record
		if g.Functions == 0 {
			return session.Grant{}, asker.Refuse("To record is of no use alone.")
		}
	} else {
		g.RecordTo = b.keys.recordTo
	}
	var err error
	if g.ID, err = session.NewID(rand.Reader); err != nil {
		return g, err
	}
	g.From = b.cfg.Wall().Truncate(time.Second).UTC()
	g.Until = g.From.Add(life)
	if n := b.cuts(g); n != nil {
		if n.At.Sub(g.From) < shortest {
			return g, asker.Refuse("%s in a moment. Ask again once it is there.", sentence(n.Text))
		}
		g.Until = n.At.Truncate(time.Second).UTC()
	}
	g.Gateways, err = b.gateways(ctx, who)
	return g, err
}

// gateways is where the ends can meet: the one there is, by the address that
// the person has come by.
func (b *Broker) gateways(ctx context.Context, who asker.Who) ([]session.Gateway, error) {
	m, err := b.cfg.Meeting(ctx)
	if err != nil {
		return nil, err
	}
	if len(m.Gateway) != len(session.Key{}) {
		return nil, asker.Refuse("The gateway is not ready yet. Try again in a moment.")
	}
	address := strings.ToLower(who.Host)
	if _, _, err := net.SplitHostPort(address); err != nil {
		address = net.JoinHostPort(strings.Trim(address, "[]"), "443")
	}
	host, _, err := net.SplitHostPort(address)
	if a, perr := netip.ParseAddr(host); err != nil || host == "" || perr == nil && a.IsLinkLocalUnicast() {
		address = who.Local.String()
	}
	return []session.Gateway{{Address: address, Key: session.Key(m.Gateway)}}, nil
}

// tickets makes the two of a new meeting.
func (b *Broker) tickets(l *live, n *line) (agent, technician []byte, err error) {
	id, err := session.NewID(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if agent, err = b.agentTicket(l, n, id); err != nil {
		return nil, nil, err
	}
	technician, err = l.grant.Ticket(id, session.TechnicianSide, l.grant.Gateways[0].Key, b.cfg.Wall()).Sign(b.keys.sign)
	return agent, technician, err
}

// agentTicket is for the key that the agent shows to gateways, whatever the
// ends speak with each other.
func (b *Broker) agentTicket(l *live, n *line, id session.ID) ([]byte, error) {
	t := l.grant.Ticket(id, session.AgentSide, l.grant.Gateways[0].Key, b.cfg.Wall())
	t.Key = n.hello.Key
	return t.Sign(b.keys.sign)
}

// keep stores a session that was granted.
func (b *Broker) keep(ctx context.Context, l *live) error {
	b.mu.Lock()
	mine := 0
	for _, o := range b.live {
		if o.person == l.person {
			mine++
		}
	}
	all := len(b.live)
	full := all >= maxLive || mine >= maxOfPerson
	if !full {
		b.live[l.grant.ID] = l
	}
	b.mu.Unlock()
	if full {
		return asker.Refuse("%d sessions are open, %d of them yours, which is the most. End one that is not used.", all, mine)
	}
	err := b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO remote_session (id, person, technician, source, sign_in, target_id, grant_, started, until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
			l.grant.ID[:], l.person, l.grant.Technician, l.from, l.signIn, l.targetID, l.signed, l.grant.From.Unix(), l.grant.Until.Unix())
		if err != nil {
			return err
		}
		// Sessions with a recording are remembered as long as that is kept.
		_, err = tx.ExecContext(ctx, "DELETE FROM remote_session WHERE ended > 0 AND recorded <= 0 AND id NOT IN (SELECT id FROM remote_session ORDER BY started DESC LIMIT ?)", maxKept)
		return err
	})
	if err != nil {
		b.mu.Lock()
		delete(b.live, l.grant.ID)
		b.mu.Unlock()
		return fmt.Errorf("keeping a session: %w", err)
	}
	return nil
}

var errNoSession = asker.None("There is no such session. It may be over.")

// mine finds a session of this person that is not over.
func (b *Broker) mine(who asker.Who, id session.ID) (*live, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.live[id]
	if l == nil || l.person != who.Person.ID {
		return nil, errNoSession
	}
	return l, nil
}

// Meet lets the two ends of a session meet once more.
func (b *Broker) Meet(_ context.Context, who asker.Who, id session.ID) (api.Meeting, error) {
	l, err := b.mine(who, id)
	if err != nil {
		return api.Meeting{}, err
	}
	n, err := b.lineOf(l)
	if err != nil {
		return api.Meeting{}, err
	}
	now := b.cfg.Wall()
	b.mu.Lock()
	l.meetings = slices.DeleteFunc(l.meetings, func(t time.Time) bool { return now.Sub(t).Abs() > time.Minute })
	full := len(l.meetings) >= meetingsPerMinute
	if !full {
		l.meetings = append(l.meetings, now)
	}
	b.mu.Unlock()
	if full {
		return api.Meeting{}, asker.Refuse("This session has met %d times in a minute. Wait a little.", meetingsPerMinute)
	}
	agent, technician, err := b.tickets(l, n)
	if err != nil {
		return api.Meeting{}, err
	}
	if err := n.send(attend.ToSite{Meet: &attend.Meet{Session: id, Ticket: agent}}); err != nil {
		return api.Meeting{}, asker.Refuse("The agent does not answer. Try again in a moment.")
	}
	return api.Meeting{Ticket: technician, Gateway: l.grant.Gateways[0]}, nil
}

// End ends a session that is one's own, or anybody's with the right.
func (b *Broker) End(ctx context.Context, who asker.Who, id session.ID) error {
	b.mu.Lock()
	l := b.live[id]
	b.mu.Unlock()
	if l == nil || l.person != who.Person.ID && !right.May(who.Person.Role, right.ManageSessions) {
		return errNoSession
	}
	if err := b.audit(ctx, who, "end session", l.grant.Target.Name, map[string]string{"session": id.String(), "technician": l.grant.Technician}); err != nil {
		return err
	}
	by := "the technician"
	if l.person != who.Person.ID {
		by = who.Person.Email
	}
	b.finish(ctx, id, "ended by "+by)
	return nil
}

// finish ends a session here and at the agent. It is over even if that cannot
// be written: the grant is not given to anybody again.
func (b *Broker) finish(ctx context.Context, id session.ID, reason string) {
	b.mu.Lock()
	l := b.live[id]
	delete(b.live, id)
	var n *line
	if l != nil {
		n = b.lines[l.site]
		for _, c := range l.answers {
			close(c)
		}
		l.answers = nil
	}
	b.mu.Unlock()
	if l == nil {
		return
	}
	if n != nil {
		if err := n.send(attend.ToSite{End: &attend.End{Session: id, Reason: reason}}); err != nil {
			b.cfg.Log.Warn("the agent could not be told that a session ended", "session", id, "err", err)
		}
	}
	ctx = context.WithoutCancel(ctx)
	if err := b.hubEvent(ctx, "session over", l.grant.Target.Name, map[string]string{"session": id.String(), "technician": l.grant.Technician, "reason": reason}); err != nil {
		b.cfg.Log.Error("the end of a session could not be recorded", "session", id, "err", err)
	}
	err := b.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE remote_session SET ended = ?, reason = ? WHERE id = ?", b.cfg.Wall().Unix(), reason, id[:])
		return err
	})
	if err != nil {
		b.cfg.Log.Error("the end of a session could not be kept", "session", id, "err", err)
	}
}

// endIf ends the sessions for which reason gives one.
func (b *Broker) endIf(ctx context.Context, reason func(*live) string) {
	over := make(map[session.ID]string)
	b.mu.Lock()
	for id, l := range b.live {
		if why := reason(l); why != "" {
			over[id] = why
		}
	}
	b.mu.Unlock()
	for id, why := range over {
		b.finish(ctx, id, why)
	}
}

func (b *Broker) endOf(ctx context.Context, target int64, why string) {
	b.endIf(ctx, func(l *live) string {
		if l.targetID == target {
			return why
		}
		return ""
	})
}

// Live is how many sessions somebody is in.
func (b *Broker) Live() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.live {
		if l.state != api.Waiting {
			n++
		}
	}
	return n
}

// EndAll ends every session, and tells both of its ends why.
func (b *Broker) EndAll(ctx context.Context, why string) {
	b.endIf(ctx, func(*live) string { return why })
}

// Announce says when all sessions end, and why; nil: they do not. Who is in one
// hears of it by asking, who is granted one at once.
func (b *Broker) Announce(n *api.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notice = n
}

// Notice is what was announced.
func (b *Broker) Notice() *api.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.notice
}

// cuts is the notice that a session does not outlive; nil: none.
func (b *Broker) cuts(g session.Grant) *api.Notice {
	if n := b.Notice(); n != nil && !n.At.After(g.Until) {
		return n
	}
	return nil
}

func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// Recheck ends the sessions of sources that may not have any more, whatever way
// their bytes go.
func (b *Broker) Recheck(ctx context.Context, admitted func(netip.Addr) bool) {
	b.endIf(ctx, func(l *live) string {
		if l.source.IsValid() && !admitted(l.source) {
			return "no allowlist admits the technician's address any more"
		}
		return ""
	})
}

// sweep ends what is over.
func (b *Broker) sweep(ctx context.Context) {
	b.mu.Lock()
	none := len(b.live) == 0
	b.mu.Unlock()
	if none {
		return
	}
	signedIn, err := b.cfg.SignedIn(ctx)
	if err != nil {
		b.cfg.Log.Error("who is signed in cannot be read", "err", err)
	}
	now := b.cfg.Wall()
	b.endIf(ctx, func(l *live) string {
		switch {
		case err == nil && !signedIn[l.signIn]:
			return "the technician is not signed in any more"
		case !now.Before(l.grant.Until):
			return "its time was over"
		case l.state == api.Waiting && now.Sub(l.grant.From) > arrive:
			return "nobody came"
		}
		return ""
	})
}

// Sessions are those that a person may see, newest first.
func (b *Broker) Sessions(ctx context.Context, who asker.Who) ([]api.Session, error) {
	all := right.May(who.Person.Role, right.ManageSessions)
	var list []api.Session
	b.mu.Lock()
	for _, l := range b.live {
		if all || l.person == who.Person.ID {
			s := describe(l.grant, l.from)
			s.State, s.Path, s.Open, s.Recorded, s.Mine = l.state, l.path, slices.Clone(l.open), l.recorded, l.person == who.Person.ID
			list = append(list, s)
		}
	}
	b.mu.Unlock()
	slices.SortFunc(list, func(a, b api.Session) int {
		return cmp.Or(b.Started.Compare(a.Started), strings.Compare(a.ID.String(), b.ID.String()))
	})
	err := b.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT person, source, grant_, ended, reason, recorded FROM remote_session WHERE ended > 0 ORDER BY ended DESC, started DESC LIMIT 100")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var person, ended, recorded int64
			var source, reason string
			var signed []byte
			if err := rows.Scan(&person, &source, &signed, &ended, &reason, &recorded); err != nil {
				return err
			}
			g, err := session.ReadGrant(b.keys.public(), signed)
			if err != nil || !all && person != who.Person.ID {
				continue
			}
			s := describe(g, source)
			s.State, s.Ended, s.Reason, s.Recorded, s.Mine = api.Over, time.Unix(ended, 0).UTC(), reason, max(0, recorded), person == who.Person.ID
			list = append(list, s)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	return list, nil
}

func describe(g session.Grant, from string) api.Session {
	return api.Session{ID: g.ID, Technician: g.Technician, From: from, Target: g.Target, Transport: g.Transport, Functions: g.Functions.Names(), Recording: g.Recording, Started: g.From, Until: g.Until}
}
