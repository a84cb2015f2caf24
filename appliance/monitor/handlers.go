package monitor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"gatehouse/appliance/control"
)

// purposes says which role may have which subkey. What is not here is nobody's.
var purposes = map[string][]control.Role{
	control.PurposeConsoleFields: {control.Console},
	control.PurposeSignInPepper:  {control.Console},
	control.PurposeSelfSite:      {control.Console, control.Agent},
	control.PurposeAgentSecrets:  {control.Agent},
	control.PurposeGatewayKey:    {control.Gateway},
}

// Register puts the answers on a server.
func (m *Monitor) Register(s *control.Server) {
	control.Handle(s, control.OpAlive, func(_ context.Context, from control.Role, _ control.None) (control.None, error) {
		m.cfg.Alive(from)
		return control.None{}, nil
	})
	control.Handle(s, control.OpStatus, func(context.Context, control.Role, control.None) (control.Status, error) {
		return m.Status(), nil
	})
	control.Handle(s, control.OpAudit, m.appendEvent)
	control.Handle(s, control.OpAuditCheckpoint, func(ctx context.Context, _ control.Role, _ control.None) (control.Appended, error) {
		if m.cfg.Audit == nil {
			return control.Appended{}, errLocked
		}
		return m.cfg.Audit.Checkpoint(ctx)
	})
	control.Handle(s, control.OpKey, m.key)
	control.Handle(s, control.OpClaimMaterial, m.claimMaterial)
	control.Handle(s, control.OpClaimCommit, m.claimCommit)
	control.Handle(s, control.OpConsoleReady, m.consoleReady)
	control.Handle(s, control.OpNetworkApply, m.networkApply)
	control.Handle(s, control.OpClockSet, m.clockSet)
	control.Handle(s, control.OpDiscovery, m.discovery)
	m.registerLists(s)
	m.registerNetwork(s)
	control.Handle(s, control.OpFactorReset, m.factorReset)
	m.registerCertificates(s)
	m.registerExposure(s)
	m.registerMeeting(s)
	m.registerKeys(s)
	m.registerUnlock(s)
	m.registerUpdate(s)
	m.registerErase(s)
	control.Handle(s, control.OpPower, func(ctx context.Context, _ control.Role, p control.Power) (control.None, error) {
		return control.None{}, m.power(ctx, p)
	})
	control.Handle(s, control.OpLog, func(_ context.Context, _ control.Role, q control.LogQuery) (control.LogLines, error) {
		return control.LogLines{Lines: m.cfg.Log(q)}, nil
	})
}

var errLocked = &control.Error{Code: control.CodeState, Text: "the box is locked: its data is not open"}

func (m *Monitor) appendEvent(ctx context.Context, from control.Role, e control.Event) (control.Appended, error) {
	if m.cfg.Audit == nil {
		return control.Appended{}, errLocked
	}
	if e.Action == "" || e.Actor == "" {
		return control.Appended{}, &control.Error{Code: control.CodeInvalid, Text: "an event names who did what: actor or action is missing"}
	}
	// Only the console knows people. Another role that speaks for one is
	// broken or taken over; its events carry its own name.
	if from != control.Console {
		e.Actor = string(from)
		if err := m.mayRecord(from, e); err != nil {
			return control.Appended{}, err
		}
	}
	return m.cfg.Audit.Append(ctx, e)
}

// What a role besides the console may write to the audit log: it has little to
// say, and one that was taken over must not fill the disk that the owner signs
// in with. The console speaks for people, whose tries it counts itself.
const (
	eventBurst = 100
	eventEach  = 10 * time.Second
	eventSize  = 2 << 10 // bytes of text
	// The agent records each file that a technician copies.
	agentBurst = 2000
	agentEach  = time.Second
)

// budget is a bucket that fills with time.
type budget struct {
	used int
	last time.Time
}

func (b *budget) take(now time.Time, burst int, each time.Duration) bool {
	if back := int(now.Sub(b.last) / each); back > 0 {
		b.used, b.last = max(0, b.used-back), now
	}
	if b.used >= burst {
		return false
	}
	b.used++
	return true
}

func (m *Monitor) mayRecord(from control.Role, e control.Event) error {
	size := len(e.Action) + len(e.Object) + len(e.From) + len(e.Outcome)
	for k, v := range e.Detail {
		size += len(k) + len(v)
	}
	if size > eventSize {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("an event of %d bytes is more than %s has to say", size, from)}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	// Setting the clock gives nothing back: times of this process are compared
	// by the clock that is never set.
	b := m.budgets[from]
	burst, each := eventBurst, eventEach
	if from == control.Agent {
		burst, each = agentBurst, agentEach
	}
	if !b.take(m.cfg.Now(), burst, each) {
		return &control.Error{Code: control.CodeState, Text: fmt.Sprintf("%s has said too much of late", from)}
	}
	m.budgets[from] = b
	return nil
}

func (m *Monitor) key(_ context.Context, from control.Role, q control.KeyRequest) (control.Key, error) {
	if !slices.Contains(purposes[q.Purpose], from) {
		return control.Key{}, &control.Error{Code: control.CodeDenied, Text: fmt.Sprintf("the key for %q is not for %s", q.Purpose, from)}
	}
	if m.cfg.Vault == nil {
		return control.Key{}, errLocked
	}
	k, err := m.cfg.Vault.Subkey(q.Purpose)
	if err != nil {
		return control.Key{}, err
	}
	return control.Key{Key: k[:]}, nil
}

func (m *Monitor) networkApply(ctx context.Context, _ control.Role, n control.NetworkApply) (control.None, error) {
	if m.cfg.Machine.ApplyNetwork == nil {
		return control.None{}, &control.Error{Code: control.CodeState, Text: "the host sets its own network"}
	}
	if err := checkNetwork(n); err != nil {
		return control.None{}, err
	}
	if err := m.cfg.Machine.ApplyNetwork(ctx, n); err != nil {
		return control.None{}, fmt.Errorf("setting what was learnt for %s: %w", n.Interface, err)
	}
	m.Refilter()
	return control.None{}, nil
}

// checkNetwork refuses what no honest network says. The role checked it too;
// it faces the network, so its word is not enough.
func checkNetwork(n control.NetworkApply) error {
	refuse := func(format string, a ...any) error {
		return &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf(format, a...)}
	}
	if n.Interface == "" || len(n.Interface) > 15 {
		return refuse("%q is not the name of a link", n.Interface)
	}
	if len(n.Addresses) > 16 || len(n.Gateways) > 2 || len(n.Resolvers) > 8 || len(n.Search) > 8 {
		return refuse("more addresses, gateways or resolvers for %s than any network needs", n.Interface)
	}
	for _, p := range n.Addresses {
		a := p.Addr()
		if !p.IsValid() || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.Is4In6() || p.Bits() < 8 {
			return refuse("%s is not an address for a link", p)
		}
	}
	for _, a := range slices.Concat(n.Gateways, n.Resolvers) {
		if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() {
			return refuse("%s is neither a gateway nor a resolver", a)
		}
	}
	if n.MTU != 0 && (n.MTU < 1280 || n.MTU > 9216) {
		return refuse("an MTU of %d is outside 1280 to 9216", n.MTU)
	}
	return nil
}

func (m *Monitor) clockSet(ctx context.Context, from control.Role, q control.ClockSet) (control.Clock, error) {
	if m.cfg.Machine.SetClock == nil {
		return control.Clock{}, &control.Error{Code: control.CodeState, Text: "the clock is the host's: set it there"}
	}
	if from == control.Network {
		q.Source, q.Actor = "ntp", string(from)
	} else {
		q.Source, q.Servers = "browser", 0
	}
	now := m.cfg.Now()
	if t := m.cfg.Clock.Nearest(q.Time, now); from == control.Network && !t.Equal(q.Time) {
		q.Time, q.Source, q.Servers = t, "floor", 0
	}
	if err := m.cfg.Clock.Check(q.Time); err != nil {
		return control.Clock{}, err
	}
	// Steps that no one would notice are not worth a line each; the log keeps
	// those that a person might wonder about.
	if d := q.Time.Sub(now).Abs(); d > time.Second || from == control.Console {
		e := control.Event{Actor: q.Actor, Action: "set clock", From: q.From, Object: q.Time.UTC().Format(time.RFC3339),
			Detail: map[string]string{"source": q.Source, "step": q.Time.Sub(now).Round(time.Millisecond).String(), "servers": strconv.Itoa(q.Servers)}}
		if from == control.Network {
			if err := m.mayRecord(from, e); err != nil {
				return control.Clock{}, err
			}
		}
		if err := m.audit(ctx, e); err != nil {
			return control.Clock{}, err
		}
	}
	if err := m.cfg.Machine.SetClock(q.Time); err != nil {
		return control.Clock{}, fmt.Errorf("setting the clock: %w", err)
	}
	m.cfg.Clock.Set(q.Source, q.Servers)
	return m.cfg.Clock.Status(q.Time), nil
}

// Status is what every face shows.
func (m *Monitor) Status() control.Status {
	now := m.cfg.Now()
	s := control.Status{
		Name: m.cfg.Name, Names: m.cfg.Names, HTTPPort: m.cfg.HTTPPort, HTTPSPort: m.cfg.HTTPSPort, Version: m.cfg.Version, Development: m.cfg.Development, Hosted: m.cfg.Hosted,
		Started: m.started, Now: now, Trust: m.cfg.Trust, Kernel: m.cfg.Machine.Kernel,
		Clock: m.cfg.Clock.Status(now), Roles: m.cfg.Roles(),
	}
	if m.cfg.Vault != nil {
		s.Trust = m.cfg.Vault.Trust()
	}
	if m.cfg.Machine.Links != nil {
		s.Links = m.cfg.Machine.Links()
	}
	if m.cfg.Machine.Volume != nil {
		s.Volume = m.cfg.Machine.Volume()
	}
	if m.cfg.Machine.Memory != nil {
		s.Memory = m.cfg.Machine.Memory()
	}
	if m.cfg.Audit != nil {
		s.Audit = m.cfg.Audit.Head()
	}
	if m.cfg.PublicURL != "" {
		s.URL = m.cfg.PublicURL
	} else {
		s.URL = urlOf(s.Links, m.cfg.HTTPSPort)
	}
	m.mu.Lock()
	s.State, s.Reason, s.Owner, s.Certificate, s.Unlocking, s.Seed = m.state, m.reason, m.owner, m.certificate, m.unlocking.shown, m.seedProblem
	s.Local = m.localNow()
	multicast := m.multicast()
	if s.Volume.Problem == "" {
		s.Volume.Problem = m.problem
	}
	filtered := m.filtered
	m.mu.Unlock()
	s.Firewall, s.Waiting = m.firewall(s.State, filtered, multicast), m.Candidates()
	s.Restart = m.restart(context.Background()) // it asks nobody who could keep it waiting
	return s
}

func (m *Monitor) firewall(state control.State, filtered filterState, multicast bool) control.Firewall {
	f := m.wall(state, filtered, multicast)
	if f.InKernel && m.cfg.Counters != nil {
		counters, err := m.cfg.Counters()
		if err != nil {
			m.cfg.Logger.Warn("reading the filter's counters", "err", err)
		}
		f.Counters = counters
	}
	return f
}

// wall is the firewall in words, without its counters.
func (m *Monitor) wall(state control.State, filtered filterState, multicast bool) control.Firewall {
	f := control.Firewall{InKernel: m.cfg.Filter != nil && filtered.err == nil, Lists: m.listsOn() && state != control.StateLocked}
	if state == control.StateReady {
		_, f.Closed = m.inForce()
	}
	switch {
	case !f.InKernel:
		f.Sentence = "not in the kernel: this program may not filter here"
	case m.cfg.Hosted:
		f.Sentence = fmt.Sprintf("ports %d and %d: %s; the host's other ports are not ours to judge", m.cfg.HTTPPort, m.cfg.HTTPSPort, m.listsSentence())
	default:
		f.Sentence = "80 and 443 only; " + m.listsSentence()
		if multicast {
			f.Sentence += "; mDNS on the link"
		}
	}
	return f
}

// urlOf picks the address that a person most likely reaches: a routable or
// private v4 address before v6, link-local ones last.
func urlOf(links []control.Link, port uint16) string {
	var best netip.Addr
	rank := func(a netip.Addr) int {
		switch {
		case a.Is4() && !a.IsLinkLocalUnicast():
			return 4
		case a.Is6() && !a.IsLinkLocalUnicast():
			return 3
		case a.Is4():
			return 2
		}
		return 1
	}
	for _, l := range links {
		for _, p := range l.Addresses {
			a := p.Addr()
			if a.IsLoopback() || !a.IsValid() || (a.Is6() && a.IsLinkLocalUnicast()) {
				continue // a link-local v6 address needs a zone, which no browser takes
			}
			if !best.IsValid() || rank(a) > rank(best) {
				best = a
			}
		}
	}
	if !best.IsValid() {
		return ""
	}
	return URL(best, port)
}

// URL is the address of the console as a person types it.
func URL(a netip.Addr, port uint16) string {
	switch {
	case port != 443:
		return "https://" + netip.AddrPortFrom(a, port).String() + "/"
	case a.Is6():
		return "https://[" + a.String() + "]/"
	}
	return "https://" + a.String() + "/"
}
