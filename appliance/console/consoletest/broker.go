package consoletest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// Broker doubles the broker for pages. Its contract: it refuses in sentences
// what is not there and what package session refuses, shows one's own sessions
// to whom may not manage them, and keeps no secret that it could be asked for.
type Broker struct {
	mu         sync.Mutex
	targets    []api.Target
	sessions   []api.Session
	recordings []api.RecordingInfo
	casts      map[session.ID]string
	breaks     map[session.ID]error // after what is in casts

	Asked []string            // what was done, in the order
	By    []broker.Who        // and by whom
	Kept  []api.CredentialSet // what came into the vault
	News  *api.Notice         // when all sessions end
}

// Notice is News.
func (b *Broker) Notice() *api.Notice { return b.News }

func (b *Broker) did(who broker.Who, format string, a ...any) {
	b.Asked, b.By = append(b.Asked, fmt.Sprintf(format, a...)), append(b.By, who)
}

// NewBroker has the box itself as a target, and nothing else.
func NewBroker() *Broker {
	own := api.Target{Target: session.Target{Name: Name, Kind: session.Box}, Recording: session.RecordingAllowed, Idle: 30}
	return &Broker{targets: []api.Target{own}, casts: map[session.ID]string{}, breaks: map[session.ID]error{}}
}

// Targets lists them.
func (b *Broker) Targets(context.Context) ([]api.Target, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.targets), nil
}

func (b *Broker) target(id int64) (*api.Target, error) {
	for i := range b.targets {
		if b.targets[i].ID == id {
			return &b.targets[i], nil
		}
	}
	return nil, shell.Refuse("There is no such target.")
}

// Target is one.
func (b *Broker) Target(_ context.Context, id int64) (api.Target, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.target(id)
	if err != nil {
		return api.Target{}, err
	}
	return *t, nil
}

// Declare adds one or changes one.
func (b *Broker) Declare(_ context.Context, who broker.Who, q api.TargetNew) (api.Target, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := q.Check(); err != nil {
		return api.Target{}, shell.Refuse("This cannot be a target: " + err.Error())
	}
	for _, t := range b.targets {
		if t.Name == q.Name && t.ID != q.ID {
			return api.Target{}, shell.Refuse("Another target has this name.")
		}
	}
	t := &api.Target{ID: int64(len(b.targets)), Created: time.Now()}
	if q.ID != 0 {
		var err error
		if t, err = b.target(q.ID); err != nil {
			return api.Target{}, err
		}
	}
	t.Target, t.Recording, t.Idle = q.Target, q.Recording, q.Idle
	if q.ID == 0 {
		b.targets = append(b.targets, *t)
	}
	b.did(who, "declare %s", q.Name)
	return *t, nil
}

// Remove removes one.
func (b *Broker) Remove(_ context.Context, who broker.Who, id int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.target(id); err != nil {
		return err
	}
	b.targets = slices.DeleteFunc(b.targets, func(t api.Target) bool { return t.ID == id })
	b.did(who, "remove %d", id)
	return nil
}

// SetCredential keeps one, or removes it.
func (b *Broker) SetCredential(_ context.Context, who broker.Who, q api.CredentialSet) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.target(q.ID)
	if err != nil {
		return err
	}
	t.User, t.Credential = q.User, ""
	if q.Password != "" {
		t.Credential = "password"
	}
	if q.PrivateKey != "" {
		t.Credential = "key"
	}
	b.Kept = append(b.Kept, q)
	b.did(who, "credential %d %s", q.ID, t.Credential)
	return nil
}

// ForgetHostKeys forgets them.
func (b *Broker) ForgetHostKeys(_ context.Context, who broker.Who, id int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, err := b.target(id)
	if err != nil {
		return err
	}
	t.HostKeys = nil
	b.did(who, "forget %d", id)
	return nil
}

// Sessions lists everybody's, or one's own.
func (b *Broker) Sessions(_ context.Context, who broker.Who) ([]api.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []api.Session
	for _, s := range b.sessions {
		s.Mine = s.Technician == who.Person.Email
		if s.Mine || right.May(who.Person.Role, right.ManageSessions) {
			list = append(list, s)
		}
	}
	return list, nil
}

// End ends one.
func (b *Broker) End(_ context.Context, who broker.Who, id session.ID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.sessions {
		if s := &b.sessions[i]; s.ID == id && s.State != api.Over {
			if s.Technician != who.Person.Email && !right.May(who.Person.Role, right.ManageSessions) {
				return shell.Refuse("This session is somebody else’s.")
			}
			s.State, s.Ended, s.Reason, s.Open = api.Over, time.Now(), "ended by "+who.Person.Email, nil
			b.did(who, "end %s", id)
			return nil
		}
	}
	return shell.Refuse("This session is over already.")
}

// Recordings lists them.
func (b *Broker) Recordings(context.Context) ([]api.RecordingInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.recordings), nil
}

// Cast writes one as asciicast v2.
func (b *Broker) Cast(_ context.Context, who broker.Who, id session.ID, w io.Writer) error {
	b.mu.Lock()
	b.did(who, "cast %s", id)
	text, why := b.casts[id], b.breaks[id]
	b.mu.Unlock()
	for len(text) > 0 { // in pieces, as a reader of chunks writes
		n := min(len(text), 1000)
		if _, err := io.WriteString(w, text[:n]); err != nil {
			return err
		}
		text = text[n:]
	}
	return why
}

// RemoveRecording removes one.
func (b *Broker) RemoveRecording(_ context.Context, who broker.Who, id session.ID) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recordings = slices.DeleteFunc(b.recordings, func(r api.RecordingInfo) bool { return r.Session == id })
	b.did(who, "remove recording %s", id)
	return nil
}

// Put adds what is there already.
func (b *Broker) Put(things ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range things {
		switch x := x.(type) {
		case api.Target:
			b.targets = append(b.targets, x)
		case api.Session:
			b.sessions = append(b.sessions, x)
		default:
			panic(fmt.Sprintf("a broker has no %T", x))
		}
	}
}

// PutRecording adds a recording of events; breaks is why it cannot be read further.
func (b *Broker) PutRecording(t testing.TB, r api.RecordingInfo, breaks error, events ...[3]any) {
	t.Helper()
	out, err := json.Marshal(map[string]any{"version": 2, "width": 80, "height": 24, "title": r.Target.Name})
	must(t, err)
	for _, e := range events {
		line, err := json.Marshal(e)
		must(t, err)
		out = append(append(out, '\n'), line...)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.recordings = append(b.recordings, r)
	b.casts[r.Session], b.breaks[r.Session] = string(out)+"\n", breaks
}

// SessionID is one that is known beforehand.
func SessionID(n int) (id session.ID) {
	for i := range 4 {
		id[15-i] = byte(n >> (8 * i))
	}
	id[0] = 0xa7
	return id
}

// AtWork is a broker with targets, people who are in, some who were, and recordings.
func AtWork(t testing.TB, now time.Time) *Broker {
	t.Helper()
	b := NewBroker()
	nas := session.Target{Name: "nas", Kind: session.SSH, Host: "192.168.1.20", Port: 22}
	pump := session.Target{Name: "Pump house, east", Kind: session.SSH, Host: "pump-east.lan", Port: 2222}
	b.Put(
		api.Target{ID: 1, Target: nas, Recording: session.RecordingAllowed, Idle: 30, Credential: "key", User: "root", HostKeys: []string{"SHA256:9jYqkF0mE1b2vJ8l1nYw4cSx7GfVd3m1o1Hh7eTzKfA"}},
		api.Target{ID: 2, Target: pump, Recording: session.RecordingForced, Idle: 10},
		api.Target{ID: 3, Target: session.Target{Name: "printer", Kind: session.HTTPS, Host: "192.168.1.9", Port: 443}, Recording: session.RecordingOff},
		api.Target{ID: 4, Target: session.Target{Name: "till 2", Kind: session.RDP, Host: "2001:db8:1::4", Port: 3389}, Recording: session.RecordingOff, Idle: 60},
	)
	open := func(n int, who string, at session.Target, ago time.Duration) api.Session {
		return api.Session{ID: SessionID(n), Technician: who, From: "203.0.113.7", Target: at, Transport: session.TLS, State: api.Live, Path: "relay",
			Functions: []string{"remote-control", "file-manager"}, Recording: session.RecordingOff, Started: now.Add(-ago), Until: now.Add(8*time.Hour - ago)}
	}
	first, second, third := open(1, "ada@example.org", nas, 4*time.Minute), open(2, "grace@example.org", pump, 51*time.Minute), open(3, "grace@example.org", nas, time.Minute)
	first.Open, first.Path = []string{"terminal", "forward"}, "udp"
	second.Open, second.Recording, second.Recorded, second.State = nil, session.RecordingForced, 1<<20+7, api.Lost
	third.State, third.Path = api.Waiting, ""
	over := open(4, "grace@example.org", pump, 26*time.Hour)
	over.State, over.Ended, over.Reason, over.Recorded, over.Recording = api.Over, now.Add(-25*time.Hour), "ended by ada@example.org", 48213, session.RecordingForced
	idle := open(5, "ada@example.org", nas, 50*time.Hour)
	idle.State, idle.Ended, idle.Reason = api.Over, now.Add(-49*time.Hour-12*time.Minute), "nobody typed for 30 minutes"
	b.Put(first, second, third, over, idle)
	info := func(n int, s api.Session, seconds float64) api.RecordingInfo {
		return api.RecordingInfo{Session: SessionID(n), Technician: s.Technician, Target: s.Target, Started: s.Started, Seconds: seconds, Size: 48213, Whole: true}
	}
	b.PutRecording(t, info(4, over, 62.5), nil,
		[3]any{0.1, "o", "\x1b[1;32mgrace@pump-east\x1b[0m:~$ "}, [3]any{1.5, "o", "systemctl status pump\r\n"}, [3]any{1.7, "o", "\x1b[32m●\x1b[0m pump.service - East pump\r\n   Active: \x1b[1;32mactive (running)\x1b[0m since Mon\r\n"},
		[3]any{3, "o", "grace@pump-east:~$ "}, [3]any{30, "o", "tail -n1 /var/log/pump\r\npressure 4.2 bar, valve seven is open\r\n"}, [3]any{45.25, "r", "100x30"}, [3]any{50, "m", "files: valves.toml was sent"}, [3]any{62.5, "o", "exit\r\n"})
	cut := info(6, over, 3.25)
	cut.Whole = false
	b.PutRecording(t, cut, nil, [3]any{0.5, "o", "$ reboot\r\n"}, [3]any{3.25, "o", "Connection closed.\r\n"})
	broken := info(7, idle, 8)
	broken.Problem, broken.Whole = "chunk 3 was changed after it was written", false
	b.PutRecording(t, broken, fmt.Errorf("chunk 3 was changed after it was written"), [3]any{1, "o", "$ make\r\n"}, [3]any{7.5, "o", "cc -o pump"})
	return b
}
