package broker

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker/archive"
	"gatehouse/appliance/broker/target"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/store"
)

const site = "5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e5e"

// desk is a broker with all that it works with in the hands of a test.
type desk struct {
	*testing.T
	*Broker
	dir string

	mu        sync.Mutex
	now       time.Time
	events    []control.Event
	deaf      bool // the audit log cannot be written
	gone      bool // the owner has signed out
	free      uint64
	meanwhile func() // runs when the archive asks for room; nil: nothing does
}

func newDesk(t *testing.T) *desk {
	d := &desk{T: t, dir: t.TempDir(), now: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC), free: 1 << 40}
	d.open()
	return d
}

// open starts the broker, again if it was there before.
func (d *desk) open() {
	d.Helper()
	db, err := store.Open(d.Context(), filepath.Join(d.dir, "x.db"), store.Keys{Fields: bytes.Repeat([]byte{1}, 32), Pepper: bytes.Repeat([]byte{2}, 32)}, append([]store.Domain{account.Domain()}, Domains()...)...)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { db.Close() })
	d.Broker, err = Open(d.Context(), Config{
		DB: db, Box: "gatehouse-7f3k", Folder: filepath.Join(d.dir, "recordings"), Log: slog.New(slog.DiscardHandler),
		Wall: func() time.Time { d.mu.Lock(); defer d.mu.Unlock(); return d.now },
		Audit: func(_ context.Context, e control.Event) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.deaf {
				return errors.New("the disk is full")
			}
			d.events = append(d.events, e)
			return nil
		},
		Meeting: func(context.Context) (control.Meeting, error) {
			return control.Meeting{Gateway: bytes.Repeat([]byte{9}, 32)}, nil
		},
		Free: func() (uint64, error) {
			if d.meanwhile != nil {
				d.meanwhile()
			}
			return d.free, nil
		},
		SignedIn: func(context.Context) (map[int64]bool, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			return map[int64]bool{owner.SignIn: !d.gone}, nil
		},
	})
	if err != nil {
		d.Fatal(err)
	}
}

func (d *desk) pass(t time.Duration) {
	d.mu.Lock()
	d.now = d.now.Add(t)
	d.mu.Unlock()
}

// said gives the actions in the audit log since the last time.
func (d *desk) said() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s []string
	for _, e := range d.events {
		s = append(s, e.Action)
	}
	d.events = nil
	return strings.Join(s, ", ")
}

func person(id int64, role right.Role) Who {
	return Who{Person: account.Person{ID: id, Email: string(role) + "@example.com", Role: role}, SignIn: 70 + id, From: "192.0.2.7",
		Source: netip.MustParseAddr("192.0.2.7"), Host: "box.example.com", Local: netip.MustParseAddrPort("192.0.2.1:443")}
}

var owner = person(1, right.Owner)

// agent is the other end of a line.
type agent struct {
	*testing.T
	conn net.Conn
	said chan attend.ToSite
	done chan error
}

func (d *desk) attend(held ...session.ID) *agent {
	return d.attendAs(site, held...)
}

func (d *desk) attendAs(site string, held ...session.ID) *agent {
	d.Helper()
	here, there := net.Pipe()
	a := &agent{T: d.T, conn: there, said: make(chan attend.ToSite, 100), done: make(chan error, 1)}
	go func() { a.done <- d.Attend(context.WithoutCancel(d.Context()), site, here, here) }()
	d.Cleanup(func() { there.Close(); err := <-a.done; a.done <- err })
	a.tell(attend.FromSite{Hello: &attend.Hello{Key: session.Key{2}, Certificate: session.Key{3}, Sessions: append([]session.ID{}, held...)}})
	go func() {
		r := attend.NewReader(there)
		for {
			var m attend.ToSite
			if attend.Read(r, &m) != nil {
				close(a.said)
				return
			}
			a.said <- m
		}
	}()
	if m := a.hear(); m.Welcome == nil || !bytes.Equal(m.Welcome.Organisation, d.Organisation()) {
		d.Fatalf("the line begins with %+v", m)
	}
	return a
}

func (a *agent) tell(m attend.FromSite) {
	a.Helper()
	a.conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if err := attend.Write(a.conn, m); err != nil {
		a.Fatal(err)
	}
}

// hear gives the next message that says something.
func (a *agent) hear() attend.ToSite {
	a.Helper()
	for {
		select {
		case m, ok := <-a.said:
			if !ok {
				a.Fatal("the line is cut")
			}
			if m != (attend.ToSite{}) {
				return m
			}
		case <-time.After(10 * time.Second):
			a.Fatal("the hub says nothing")
		}
	}
}

func (d *desk) target(q api.TargetNew) api.Target {
	d.Helper()
	t, err := d.Declare(d.Context(), owner, q)
	if err != nil {
		d.Fatal(err)
	}
	return t
}

func nas(recording session.Recording) api.TargetNew {
	return api.TargetNew{Target: session.Target{Name: "nas", Kind: session.SSH, Host: "192.0.2.10", Port: 22}, Recording: recording, Idle: 15}
}

func refused(err error) bool { return errors.As(err, new(*account.Refusal)) }

func TestSES1_WhoGetsNoSession(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingOff))
	ask := api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}}
	if _, err := d.Ask(t.Context(), owner, ask); !refused(err) || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("without an agent: %v", err)
	}
	a := d.attend()
	for name, c := range map[string]struct {
		who  Who
		with func(*api.Ask)
	}{
		"a viewer":                      {person(2, right.Viewer), nil},
		"a technician without a group":  {person(3, right.Technician), nil},
		"nobody":                        {person(4, ""), nil},
		"no such target":                {owner, func(q *api.Ask) { q.Target = "nsa" }},
		"no such number":                {owner, func(q *api.Ask) { q.Target = "77" }},
		"no key":                        {owner, func(q *api.Ask) { q.Key = session.Key{} }},
		"the agent's own key":           {owner, func(q *api.Ask) { q.Key = session.Key{2} }},
		"an unknown function":           {owner, func(q *api.Ask) { q.Functions = []string{"root"} }},
		"another transport":             {owner, func(q *api.Ask) { q.Transport = "quic" }},
		"a recording that is not to be": {owner, func(q *api.Ask) { q.Record = true }},
		"to record alone":               {owner, func(q *api.Ask) { q.Functions = []string{"record"} }},
	} {
		q := ask
		if c.with != nil {
			c.with(&q)
		}
		if g, err := d.Ask(t.Context(), c.who, q); !refused(err) {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
	d.said()
	d.deaf = true
	if _, err := d.Ask(t.Context(), owner, ask); err == nil {
		t.Error("a session that is not in the audit log was granted")
	}
	d.deaf = false
	if len(d.live) != 0 {
		t.Errorf("%d sessions are kept", len(d.live))
	}
	select {
	case m := <-a.said:
		t.Errorf("the agent was told %+v", m)
	default:
	}
}

func TestSES1_GrantedToBothEnds(t *testing.T) {
	d := newDesk(t)
	machine := d.target(nas(session.RecordingAllowed))
	if err := d.SetCredential(t.Context(), owner, api.CredentialSet{ID: machine.ID, User: "root", Password: "open sesame"}); err != nil {
		t.Fatal(err)
	}
	a := d.attend()
	d.said()
	granted, err := d.Ask(t.Context(), owner, api.Ask{Target: "NAS", Transport: session.TLS, Key: session.Key{1}, Functions: []string{"remote-control", "record"}, Record: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := d.said(); s != "open session" {
		t.Errorf("the audit log says %q", s)
	}
	offer := a.hear().Offer
	if offer == nil || !bytes.Equal(offer.Grant, granted.Grant) || offer.Material.Password != "open sesame" || offer.Material.User != "root" || offer.Material.Idle != 15 || offer.Material.Source != "192.0.2.7" {
		t.Fatalf("the agent is offered %+v", offer)
	}
	g, err := session.OpenGrant(d.Organisation(), granted.Grant, d.now)
	if err != nil {
		t.Fatal(err)
	}
	if g.Key != (session.Key{1}) || g.Agent != (session.Key{2}) || g.Technician != "owner@example.com" || g.Functions != right.RemoteControl|right.Record ||
		g.Recording != session.RecordingAllowed || g.Gateways[0].Address != "box.example.com:443" || g.Target != machine.Target || g.Site != site {
		t.Errorf("granted: %+v", g)
	}
	one, err := session.OpenTicket(d.Organisation(), offer.Ticket, d.now, g.Gateways[0].Key, g.Agent)
	if err != nil {
		t.Fatal(err)
	}
	two, err := session.OpenTicket(d.Organisation(), granted.Ticket, d.now, g.Gateways[0].Key, g.Key)
	if err != nil || one.ID != two.ID || one.Side == two.Side || one.ID == g.ID {
		t.Errorf("tickets %+v and %+v, %v", one, two, err)
	}
	if strings.Contains(string(granted.Grant)+string(granted.Ticket), "sesame") {
		t.Error("the technician gets the password")
	}
	meeting, err := d.Meet(t.Context(), owner, granted.Session)
	if m := a.hear().Meet; err != nil || m == nil || m.Session != granted.Session || bytes.Equal(meeting.Ticket, granted.Ticket) {
		t.Errorf("once more: %v", err)
	}
	if _, err := d.Meet(t.Context(), person(5, right.Administrator), granted.Session); !refused(err) {
		t.Errorf("somebody else meets in it: %v", err)
	}
	for range meetingsPerMinute - 1 {
		if _, err := d.Meet(t.Context(), owner, granted.Session); err != nil {
			t.Fatal(err)
		}
		a.hear()
	}
	if _, err := d.Meet(t.Context(), owner, granted.Session); !refused(err) {
		t.Errorf("without a bound: %v", err)
	}
	// Nothing of the password is in the database as it is on the disk.
	for _, name := range []string{"x.db", "x.db-wal"} {
		b, err := os.ReadFile(filepath.Join(d.dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("sesame")) {
			t.Errorf("%s has the password in clear", name)
		}
	}
}

func TestSES7_WhatEndsASession(t *testing.T) {
	d := newDesk(t)
	machine := d.target(nas(session.RecordingOff))
	other := person(6, right.Administrator)
	for name, c := range map[string]struct {
		end    func(session.ID)
		reason string
	}{
		"its technician":   {func(id session.ID) { d.must(d.End(t.Context(), owner, id)) }, "ended by the technician"},
		"an administrator": {func(id session.ID) { d.must(d.End(t.Context(), other, id)) }, "ended by administrator@example.com"},
		"the lists":        {func(session.ID) { d.Recheck(t.Context(), func(netip.Addr) bool { return false }) }, "no allowlist"},
		"nobody came":      {func(session.ID) { d.pass(arrive + time.Minute); d.sweep(t.Context()) }, "nobody came"},
		"signed out": {func(session.ID) {
			d.sweep(t.Context()) // while signed in it goes on
			d.mu.Lock()
			d.gone = true
			d.mu.Unlock()
			d.sweep(t.Context())
			d.mu.Lock()
			d.gone = false
			d.mu.Unlock()
		}, "not signed in any more"},
		"its time": {func(session.ID) { d.pass(life); d.sweep(t.Context()) }, "its time was over"},
		"a change of targets": {func(session.ID) {
			q := nas(session.RecordingOff)
			q.ID, q.Host = machine.ID, "192.0.2.11"
			d.target(q)
			q.Host = "192.0.2.10"
			d.target(q)
		}, "the target was changed"},
	} {
		d.pass(time.Second)
		a := d.attend()
		granted, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
		if err != nil {
			t.Fatal(err)
		}
		a.hear()
		if name == "its time" {
			a.tell(attend.FromSite{Event: &attend.Event{Session: granted.Session, What: attend.Joined}})
			d.until(func() bool { s, _ := d.Sessions(t.Context(), owner); return s[0].State == api.Live })
		}
		if name == "its technician" {
			if err := d.End(t.Context(), person(7, right.Technician), granted.Session); !refused(err) {
				t.Errorf("somebody else ends it: %v", err)
			}
			d.Recheck(t.Context(), func(a netip.Addr) bool { return a == owner.Source })
		}
		c.end(granted.Session)
		if e := a.hear().End; e == nil || e.Session != granted.Session || !strings.Contains(e.Reason, c.reason) {
			t.Errorf("%s: the agent is told %+v", name, e)
		}
		list, err := d.Sessions(t.Context(), owner)
		if err != nil || list[0].State != api.Over || !strings.Contains(list[0].Reason, c.reason) {
			t.Errorf("%s: listed as %+v, %v", name, list[0], err)
		}
		if _, err := d.Meet(t.Context(), owner, granted.Session); !refused(err) {
			t.Errorf("%s: it meets again: %v", name, err)
		}
	}
	if list, err := d.Sessions(t.Context(), person(7, right.Technician)); err != nil || len(list) != 0 {
		t.Errorf("a technician sees %d sessions of others, %v", len(list), err)
	}
}

func (d *desk) must(err error) {
	d.Helper()
	if err != nil {
		d.Error(err)
	}
}

func (d *desk) until(ok func() bool) {
	d.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			d.Fatal("it never came")
		}
	}
}

// TestSES1_RestartOfTheConsole: what both still have goes on, what one of them
// lost is over.
func TestSES1_RestartOfTheConsole(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingOff))
	d.attend()
	var ids []session.ID
	for range 2 {
		g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, g.Session)
	}
	key := d.Organisation()
	d.open()
	if !bytes.Equal(key, d.Organisation()) {
		t.Fatal("the organisation has another key after a restart")
	}
	if _, err := d.Meet(t.Context(), owner, ids[0]); !refused(err) {
		t.Errorf("it meets without an agent: %v", err)
	}
	a := d.attend(ids[0], session.ID{7})
	ended := []session.ID{a.hear().End.Session, a.hear().End.Session}
	if !slices.Contains(ended, session.ID{7}) || !slices.Contains(ended, ids[1]) {
		t.Errorf("the agent is told the end of %v", ended)
	}
	if _, err := d.Meet(t.Context(), owner, ids[0]); err != nil {
		t.Errorf("the session that the agent still has: %v", err)
	}
	d.until(func() bool {
		list, err := d.Sessions(t.Context(), owner)
		return err == nil && len(list) == 2 && list[1].ID == ids[1] && list[1].Reason == "the agent was started anew"
	})
}

func TestSES5_WhatIsNoTarget(t *testing.T) {
	d := newDesk(t)
	first := d.target(nas(session.RecordingForced))
	for name, spoil := range map[string]func(*api.TargetNew){
		"the box":                        func(q *api.TargetNew) { q.Kind, q.Host, q.Port = session.Box, "", 0 },
		"the box's name":                 func(q *api.TargetNew) { q.Name = "Gatehouse-7F3K" },
		"a name that is taken":           func(q *api.TargetNew) { q.Name = "NAS" },
		"a number":                       func(q *api.TargetNew) { q.Name = "42" },
		"no name":                        func(q *api.TargetNew) { q.Name = " " },
		"a name that turns the text":     func(q *api.TargetNew) { q.Name = "a\u202eb" },
		"loopback":                       func(q *api.TargetNew) { q.Host = "127.0.0.1" },
		"loopback in IPv6 clothes":       func(q *api.TargetNew) { q.Host = "::ffff:127.0.0.1" },
		"link-local":                     func(q *api.TargetNew) { q.Host = "169.254.169.254" },
		"localhost":                      func(q *api.TargetNew) { q.Host = "localhost" },
		"no host":                        func(q *api.TargetNew) { q.Host = "" },
		"an unknown kind":                func(q *api.TargetNew) { q.Kind = "telnet" },
		"no port for tcp":                func(q *api.TargetNew) { q.Kind, q.Port, q.Recording = session.TCP, 0, session.RecordingOff },
		"idle for two days":              func(q *api.TargetNew) { q.Idle = 2 * 24 * 60 },
		"an unknown recording":           func(q *api.TargetNew) { q.Recording = "maybe" },
		"a forced recording of a screen": func(q *api.TargetNew) { q.Kind, q.Port = session.VNC, 5900 },
		"a change of nothing":            func(q *api.TargetNew) { q.ID = 99 },
	} {
		q := nas(session.RecordingForced)
		q.Name = "second"
		spoil(&q)
		if _, err := d.Declare(t.Context(), owner, q); !refused(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, q := range map[string]api.CredentialSet{
		"no user":           {ID: first.ID, Password: "x"},
		"a user with space": {ID: first.ID, User: "a b", Password: "x"},
		"both":              {ID: first.ID, User: "a", Password: "x", PrivateKey: "y"},
		"not a key":         {ID: first.ID, User: "a", PrivateKey: "-----BEGIN"},
		"no target":         {ID: 99, User: "a", Password: "x"},
		"of the box":        {User: "a", Password: "x"},
	} {
		if err := d.SetCredential(t.Context(), owner, q); !refused(err) {
			t.Errorf("credential, %s: %v", name, err)
		}
	}
	list, err := d.Targets(t.Context())
	if err != nil || len(list) != 2 || list[0].Kind != session.Box || list[1].Credential != "" {
		t.Errorf("there are %+v, %v", list, err)
	}
	d.deaf = true
	for name, err := range map[string]error{
		"removed":  d.Remove(t.Context(), owner, first.ID),
		"vault":    d.SetCredential(t.Context(), owner, api.CredentialSet{ID: first.ID, User: "a", Password: "x"}),
		"host key": d.ForgetHostKeys(t.Context(), owner, first.ID),
	} {
		if err == nil || refused(err) {
			t.Errorf("%s without the audit log: %v", name, err)
		}
	}
	if again, err := d.Target(t.Context(), first.ID); err != nil || again.Credential != "" {
		t.Errorf("changed without the audit log: %+v, %v", again, err)
	}
}

// TestSES5_HostKeyIsPinnedOnce: what was accepted first counts; another machine
// behind the name forgets it.
func TestSES5_HostKeyIsPinnedOnce(t *testing.T) {
	d := newDesk(t)
	machine := d.target(nas(session.RecordingOff))
	a := d.attend()
	g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	keys := [][]byte{sshKey(1), sshKey(2)}
	for _, k := range keys {
		a.tell(attend.FromSite{HostKey: &attend.HostKey{Session: g.Session, Key: k}})
	}
	a.tell(attend.FromSite{Event: &attend.Event{Session: g.Session, What: attend.Joined}})
	d.until(func() bool { s, _ := d.Sessions(t.Context(), owner); return s[0].State == api.Live })
	got, err := d.Target(t.Context(), machine.ID)
	if err != nil || len(got.HostKeys) != 1 || got.HostKeys[0] != target.Fingerprint(keys[0]) {
		t.Fatalf("pinned: %v, %v", got.HostKeys, err)
	}
	q := nas(session.RecordingOff)
	q.ID, q.Host = machine.ID, "192.0.2.11"
	if got = d.target(q); len(got.HostKeys) != 0 {
		t.Errorf("of the machine before: %v", got.HostKeys)
	}
}

func sshKey(n byte) []byte {
	return append([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"), bytes.Repeat([]byte{n}, 32)...)
}

func TestSES9_RecordingsAreKeptAtTheirPlace(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingForced))
	a := d.attend()
	g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		t.Fatal(err)
	}
	grant, err := session.ReadGrant(d.Organisation(), a.hear().Offer.Grant)
	if err != nil || grant.Recording != session.RecordingForced {
		t.Fatalf("%+v, %v", grant, err)
	}
	var file bytes.Buffer
	w, err := recording.NewWriter(&file, grant.RecordTo, recording.Header{Session: g.Session.String(), Site: site, Who: "x", Target: "nas", Width: 80, Height: 24, Started: d.now})
	if err != nil {
		t.Fatal(err)
	}
	d.must(w.Output(time.Second, []byte("hello")))
	d.must(w.Close())
	b := file.Bytes()
	send := func(c attend.Chunk) attend.Kept {
		t.Helper()
		a.tell(attend.FromSite{Chunk: &c})
		return *a.hear().Kept
	}
	half := int64(len(b) / 2)
	for _, c := range []struct {
		what string
		attend.Chunk
		size    int64
		problem bool
	}{
		{"beyond the end", attend.Chunk{At: 5, Bytes: b[5:]}, 0, false},
		{"the first half", attend.Chunk{Bytes: b[:half]}, half, false},
		{"again", attend.Chunk{Bytes: b[:half]}, half, false},
		{"negative", attend.Chunk{At: -1, Bytes: b}, 0, true},
		{"of another session", attend.Chunk{Session: session.ID{5}, Bytes: b}, 0, true},
		{"with an overlap", attend.Chunk{At: half - 7, Bytes: b[half-7:]}, int64(len(b)), false},
	} {
		if c.Session == (session.ID{}) {
			c.Session = g.Session
		}
		if k := send(c.Chunk); k.Size != c.size || (k.Problem != "") != c.problem {
			t.Errorf("%s: %+v", c.what, k)
		}
	}
	d.free = archive.LeaveFree
	if k := send(attend.Chunk{Session: g.Session, At: int64(len(b)), Bytes: []byte("x")}); k.Problem == "" || k.Size != int64(len(b)) {
		t.Errorf("on a full disk: %+v", k)
	}
	list, err := d.Recordings(t.Context())
	if err != nil || len(list) != 1 || !list[0].Whole || list[0].Problem != "" || list[0].Size != int64(len(b)) {
		t.Fatalf("%+v, %v", list, err)
	}
	var cast bytes.Buffer
	d.said()
	if err := d.Cast(t.Context(), owner, g.Session, &cast); err != nil || !strings.Contains(cast.String(), `"hello"`) {
		t.Errorf("%v: %s", err, cast.String())
	}
	if s := d.said(); s != "read recording" {
		t.Errorf("the audit log says %q", s)
	}
	if err := d.RemoveRecording(t.Context(), owner, g.Session); !refused(err) {
		t.Errorf("removed while it goes on: %v", err)
	}
	d.must(d.End(t.Context(), owner, g.Session))
	d.must(d.RemoveRecording(t.Context(), owner, g.Session))
	if err := d.Cast(t.Context(), owner, g.Session, &cast); !refused(err) {
		t.Errorf("read after it was removed: %v", err)
	}
	// Another site has no business with it.
	evil := d.attendAs(strings.Repeat("ab", 16))
	evil.tell(attend.FromSite{Chunk: &attend.Chunk{Session: g.Session, Bytes: b}})
	if k := evil.hear().Kept; k.Problem == "" {
		t.Errorf("of another site: %+v", k)
	}
}

func TestSES4_BrowsersOfferAndAnswer(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingOff))
	a := d.attend()
	g, err := d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.WebRTC, Key: session.Key{1}})
	if err != nil || g.Ticket != nil {
		t.Fatalf("%+v, %v", g, err)
	}
	if o := a.hear().Offer; o.Ticket != nil {
		t.Error("the agent has a ticket for the other transport")
	}
	if _, err := d.Signal(t.Context(), person(9, right.Owner), api.SignalAsk{Session: g.Session, SDP: "v=0"}); !refused(err) {
		t.Errorf("somebody else's offer: %v", err)
	}
	if _, err := d.Signal(t.Context(), owner, api.SignalAsk{Session: g.Session, SDP: strings.Repeat("x", maxSDP+1)}); !refused(err) {
		t.Errorf("an endless offer: %v", err)
	}
	said := make(chan struct{})
	go func() {
		defer close(said)
		s := a.hear().Signal
		a.tell(attend.FromSite{Signalled: &attend.Signalled{Session: g.Session, Number: s.Number + 1, SDP: "of another"}})
		a.tell(attend.FromSite{Signalled: &attend.Signalled{Session: g.Session, Number: s.Number, SDP: "answer to " + s.SDP}})
		a.tell(attend.FromSite{Signalled: &attend.Signalled{Session: g.Session, Number: s.Number, SDP: "twice"}})
	}()
	s, err := d.Signal(t.Context(), owner, api.SignalAsk{Session: g.Session, SDP: "v=0"})
	if err != nil || s.SDP != "answer to v=0" {
		t.Errorf("%+v, %v", s, err)
	}
	<-said
}

// TestSES7_SessionsAreCutToARestart: who is granted a session while a restart is
// planned is told with it, and has it no longer than that.
func TestSES7_SessionsAreCutToARestart(t *testing.T) {
	d := newDesk(t)
	if _, err := d.Declare(t.Context(), owner, api.TargetNew{Target: session.Target{Name: "nas", Kind: session.SSH, Host: "192.0.2.9", Port: 22}, Recording: session.RecordingOff}); err != nil {
		t.Fatal(err)
	}
	d.attend()
	ask := func(key byte) (api.Granted, error) {
		return d.Ask(t.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{key}})
	}
	at := func(after time.Duration) {
		d.Announce(&api.Notice{At: d.now.Add(after), Text: "the box restarts into version 1.5.0"})
	}
	at(shortest - time.Second)
	if _, err := ask(10); !refused(err) || !strings.Contains(err.Error(), "The box restarts into version 1.5.0 in a moment") {
		t.Errorf("in a moment: %v", err)
	}
	at(life + time.Hour)
	if g, err := ask(11); err != nil || g.Notice != nil || !g.Until.Equal(d.now.Add(life)) {
		t.Errorf("after its end: %+v, until %s, %v", g.Notice, g.Until, err)
	}
	at(10 * time.Minute)
	g, err := ask(12)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := session.ReadGrant(d.keys.public(), g.Grant)
	if want := d.now.Add(10 * time.Minute); err != nil || g.Notice == nil || !g.Until.Equal(want) || !signed.Until.Equal(want) || *g.Notice != *d.Notice() {
		t.Errorf("%+v, until %s, signed until %s, %v", g.Notice, g.Until, signed.Until, err)
	}
	d.Announce(nil)
	if g, err := ask(13); err != nil || g.Notice != nil || !g.Until.Equal(d.now.Add(life)) {
		t.Errorf("called off: %+v, until %s, %v", g.Notice, g.Until, err)
	}
}
