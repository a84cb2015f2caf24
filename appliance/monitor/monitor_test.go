package monitor

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

var built = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

type fakeVault struct {
	mu      sync.Mutex
	claimed bool
	sets    int
	err     error
}

func (v *fakeVault) Subkey(purpose string) ([32]byte, error) {
	var k [32]byte
	copy(k[:], purpose)
	return k, nil
}
func (v *fakeVault) Claimed(context.Context) (bool, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.claimed, v.err
}
func (v *fakeVault) SetClaimed(context.Context) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.err != nil {
		return v.err
	}
	v.claimed = true
	v.sets++
	return nil
}
func (v *fakeVault) Trust() control.Trust { return control.Trust{Mechanism: "tpm", Grade: "B"} }

type fakeAudit struct {
	mu     sync.Mutex
	events []control.Event
	err    error
}

func (a *fakeAudit) Append(_ context.Context, e control.Event) (control.Appended, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return control.Appended{}, a.err
	}
	a.events = append(a.events, e)
	return control.Appended{Sequence: uint64(len(a.events))}, nil
}
func (a *fakeAudit) Checkpoint(context.Context) (control.Appended, error) {
	return control.Appended{}, nil
}
func (a *fakeAudit) Head() control.AuditHead { return control.AuditHead{} }

type box struct {
	*Monitor
	vault  *fakeVault
	audit  *fakeAudit
	states []control.State // as the filter saw them
	set    time.Time
	powers []string
}

func newBox(t *testing.T, change func(*Config)) *box {
	t.Helper()
	b := &box{vault: &fakeVault{}, audit: &fakeAudit{}}
	cfg := Config{
		Name: "gatehouse-test", HTTPSPort: 443, Vault: b.vault, Audit: b.audit,
		Roles: func() []control.RoleStatus { return nil }, Alive: func(control.Role) {},
		Log: func(control.LogQuery) []control.LogLine { return nil },
		Filter: func(s netfilter.State) error {
			b.states = append(b.states, s.Phase)
			return nil
		},
		Machine: Machine{
			Links: func() []control.Link {
				return []control.Link{{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}}
			},
			SetClock:     func(t time.Time) error { b.set = t; return nil },
			ApplyNetwork: func(context.Context, control.NetworkApply) error { return nil },
			Power:        func(a string) { b.powers = append(b.powers, a) },
		},
		Clock: NewClock(built, time.Time{}, "rtc", nil),
		Rand:  rand.Reader, Now: func() time.Time { return built.Add(time.Hour) }, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	b.Monitor = m
	return b
}

func (b *box) ready(t *testing.T, db control.DatabaseClaim) control.ConsoleState {
	t.Helper()
	s, err := b.consoleReady(t.Context(), control.Console, control.ConsoleReady{Database: db, Owner: "ann@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestACC1_DisagreementLocks(t *testing.T) {
	for _, c := range []struct {
		claimed   bool
		db        control.DatabaseClaim
		state     control.State
		committed bool
	}{
		{true, control.DatabaseUnclaimed, control.StateLocked, true},
		{false, control.DatabaseClaimed, control.StateLocked, false},
		{false, control.DatabaseUnclaimed, control.StateUnclaimed, false},
		{false, control.DatabasePending, control.StateUnclaimed, false},
		{true, control.DatabasePending, control.StateReady, true},
		{true, control.DatabaseClaimed, control.StateReady, true},
	} {
		b := newBox(t, nil)
		b.vault.claimed = c.claimed
		got := b.ready(t, c.db)
		if got.State != c.state || got.Committed != c.committed || b.State() != c.state {
			t.Errorf("vault %v, database %s: %+v (monitor %s), want %s committed %v", c.claimed, c.db, got, b.State(), c.state, c.committed)
		}
		if (got.Reason != "") != (c.state == control.StateLocked) {
			t.Errorf("vault %v, database %s: reason %q", c.claimed, c.db, got.Reason)
		}
		if c.state == control.StateLocked {
			if _, err := b.claimMaterial(t.Context(), control.Console, control.None{}); err == nil {
				t.Error("a locked box handed out the claim's verifier")
			}
			if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "eve@example.com"}); err == nil {
				t.Error("a locked box was claimed")
			}
		}
	}
}

func TestACC1_OneOwnerOfManyClaims(t *testing.T) {
	b := newBox(t, nil)
	b.ready(t, control.DatabaseUnclaimed)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 100 {
		wg.Go(func() {
			if _, err := b.claimCommit(context.Background(), control.Console, control.ClaimCommit{Owner: "ann@example.com"}); err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			} else if !control.IsCode(err, control.CodeState) {
				t.Errorf("a late claim failed with %v, want a refusal by state", err)
			}
		})
	}
	wg.Wait()
	if won != 1 || b.vault.sets != 1 {
		t.Errorf("%d claims won, the vault was set %d times; want one", won, b.vault.sets)
	}
	if b.Code() != "" {
		t.Error("the claim code is still shown after the claim")
	}
	if !slices.Equal(b.states, []control.State{control.StateStarting, control.StateUnclaimed, control.StateReady}) {
		t.Errorf("the filter saw %v", b.states)
	}
}

func TestAUD1_NoAuditNoAction(t *testing.T) {
	b := newBox(t, nil)
	b.ready(t, control.DatabaseUnclaimed)
	b.audit.err = errors.New("disk full")
	if _, err := b.claimCommit(t.Context(), control.Console, control.ClaimCommit{Owner: "ann@example.com"}); err == nil || b.vault.claimed {
		t.Errorf("claim without an audit entry: err %v, claimed %v", err, b.vault.claimed)
	}
	if err := b.power(t.Context(), control.Power{Action: "off", Actor: "ann@example.com"}); err == nil || len(b.powers) > 0 {
		t.Errorf("switched off without an audit entry: %v %v", err, b.powers)
	}
	if _, err := b.clockSet(t.Context(), control.Console, control.ClockSet{Time: built.Add(48 * time.Hour), Actor: "ann"}); err == nil || !b.set.IsZero() {
		t.Errorf("set the clock without an audit entry: %v %v", err, b.set)
	}
	code := b.Code()
	if err := b.NewCode(t.Context()); err == nil || b.Code() != code {
		t.Error("made a new code without an audit entry")
	}
}

// A code that was set when flashing must not be back after a restart, when the
// console has said that it is void.
func TestANewCodeForgetsTheFlashedOne(t *testing.T) {
	forgotten, fail := 0, errors.New("the disk does not answer")
	b := newBox(t, func(c *Config) {
		c.Verifier = &control.ClaimMaterial{Salt: make([]byte, 16), Key: make([]byte, 32)}
		c.ForgetVerifier = func() error { forgotten++; return fail }
	})
	b.ready(t, control.DatabaseUnclaimed)
	if err := b.NewCode(t.Context()); err == nil || b.Code() != "" {
		t.Errorf("a new code beside the flashed one: %v, %q", err, b.Code())
	}
	fail = nil
	if err := b.NewCode(t.Context()); err != nil || b.Code() == "" || forgotten != 2 {
		t.Errorf("%v, code %q, forgotten %d times", err, b.Code(), forgotten)
	}
}

func TestKEY4_SubkeysOnlyForTheirRoles(t *testing.T) {
	b := newBox(t, nil)
	for _, purpose := range []string{control.PurposeConsoleFields, control.PurposeSelfSite, control.PurposeAgentSecrets, control.PurposeGatewayKey, control.PurposeSignInPepper, control.PurposeAuditSign, "volume", ""} {
		for _, role := range []control.Role{control.Network, control.Gateway, control.Console, control.Agent} {
			_, err := b.key(t.Context(), role, control.KeyRequest{Purpose: purpose})
			want := slices.Contains(purposes[purpose], role)
			if (err == nil) != want {
				t.Errorf("key %q for %s: %v", purpose, role, err)
			}
		}
	}
}

func TestRolesSpeakForThemselves(t *testing.T) {
	b := newBox(t, nil)
	if _, err := b.appendEvent(t.Context(), control.Gateway, control.Event{Actor: "owner@example.com", Action: "sign-in"}); err != nil {
		t.Fatal(err)
	}
	if got := b.audit.events[0].Actor; got != "gateway" {
		t.Errorf("the gateway wrote an event as %q", got)
	}
	if _, err := b.appendEvent(t.Context(), control.Console, control.Event{Actor: "a"}); !control.IsCode(err, control.CodeInvalid) {
		t.Errorf("an event without an action: %v", err)
	}
}

// A role that was taken over must not fill the disk, by events of its own or by
// a clock that it sets back and forth.
func TestRolesCannotFloodTheAuditLog(t *testing.T) {
	now := built.Add(time.Hour)
	b := newBox(t, func(c *Config) { c.Now = func() time.Time { return now } })
	flood := func() (n int) {
		for range 1000 {
			if _, err := b.appendEvent(t.Context(), control.Gateway, control.Event{Actor: "x", Action: "sign-in"}); err == nil {
				n++
			}
		}
		return n
	}
	if n := flood(); n != eventBurst {
		t.Errorf("%d events of one role at once", n)
	}
	if now = now.Add(time.Minute); flood() != 6 {
		t.Error("a minute later it has not a few more")
	}
	if now = now.Add(-24 * time.Hour); flood() != 0 {
		t.Error("a clock that was set back gives more")
	}
	if _, err := b.appendEvent(t.Context(), control.Agent, control.Event{Actor: "x", Action: "a", Detail: map[string]string{"k": strings.Repeat("x", eventSize)}}); err == nil {
		t.Error("an event of any size")
	}
	if _, err := b.appendEvent(t.Context(), control.Agent, control.Event{Actor: "x", Action: "a"}); err != nil {
		t.Errorf("another role is held up: %v", err)
	}
	set := 0
	for i := range 1000 {
		if _, err := b.clockSet(t.Context(), control.Network, control.ClockSet{Time: built.Add(time.Duration(i%2+2) * time.Hour), Servers: 3}); err == nil {
			set++
		}
	}
	if set != eventBurst {
		t.Errorf("%d steps of the clock at once", set)
	}
	for range 2 * eventBurst {
		if _, err := b.appendEvent(t.Context(), control.Console, control.Event{Actor: "ann@example.com", Action: "sign-in"}); err != nil {
			t.Fatalf("people are held up: %v", err)
		}
	}
}

func TestBOX8_ClockRefusesBelowFloorAndFarAhead(t *testing.T) {
	b := newBox(t, nil)
	for _, bad := range []time.Time{built.Add(-time.Second), built.Add(11 * 365 * 24 * time.Hour)} {
		if _, err := b.clockSet(t.Context(), control.Network, control.ClockSet{Time: bad, Servers: 3}); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("clock set to %s: %v", bad, err)
		}
	}
	c, err := b.clockSet(t.Context(), control.Network, control.ClockSet{Time: built.Add(400 * 24 * time.Hour), Servers: 3})
	if err != nil || !c.Trusted || c.Source != "ntp" {
		t.Errorf("three servers: %+v, %v", c, err)
	}
	if err := b.cfg.Clock.Keep(built.Add(400 * 24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	if f := b.cfg.Clock.Status(built).Floor; f.After(built.Add(floorStep)) {
		t.Errorf("one save carried the floor to %s: a liar could push it away", f)
	}
}

func TestNetworkRefusesTheAbsurd(t *testing.T) {
	b := newBox(t, nil)
	ok := control.NetworkApply{Interface: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}
	if _, err := b.networkApply(t.Context(), control.Network, ok); err != nil {
		t.Errorf("an ordinary lease: %v", err)
	}
	for name, change := range map[string]func(*control.NetworkApply){
		"no link":   func(n *control.NetworkApply) { n.Interface = "" },
		"loopback":  func(n *control.NetworkApply) { n.Addresses[0] = netip.MustParsePrefix("127.0.0.1/8") },
		"multicast": func(n *control.NetworkApply) { n.Addresses[0] = netip.MustParsePrefix("224.0.0.1/24") },
		"all":       func(n *control.NetworkApply) { n.Addresses[0] = netip.MustParsePrefix("192.0.2.7/0") },
		"gateway":   func(n *control.NetworkApply) { n.Gateways = []netip.Addr{netip.MustParseAddr("0.0.0.0")} },
		"mtu":       func(n *control.NetworkApply) { n.MTU = 68 },
		"flood":     func(n *control.NetworkApply) { n.Resolvers = make([]netip.Addr, 100) },
	} {
		n := ok
		n.Addresses = slices.Clone(ok.Addresses)
		change(&n)
		if _, err := b.networkApply(t.Context(), control.Network, n); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNET1_FilterFollowsStateAndAddresses(t *testing.T) {
	var seen [][]netip.Prefix
	addresses := []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}
	fail := errors.New("no")
	b := newBox(t, func(c *Config) {
		c.Machine.Links = func() []control.Link { return []control.Link{{Addresses: addresses}} }
		c.Filter = func(s netfilter.State) error {
			seen = append(seen, slices.Clone(s.OnLink))
			return fail
		}
	})
	if b.Status().Firewall.InKernel {
		t.Error("a filter that could not be set is said to be in the kernel")
	}
	fail = nil
	b.Refilter()
	b.Refilter() // nothing changed: nothing to do
	addresses = append(addresses, netip.MustParsePrefix("2001:db8::1/64"))
	b.Refilter()
	if len(seen) != 3 || len(seen[2]) != 2 {
		t.Errorf("the filter was set %d times: %v; want a failed one tried again, and one for the new address", len(seen), seen)
	}
	if f := b.Status().Firewall; !f.InKernel || f.Sentence == "" {
		t.Errorf("firewall %+v", f)
	}
}

func TestLockedServesNoSecret(t *testing.T) {
	b := newBox(t, func(c *Config) { c.Vault, c.Audit, c.Locked = nil, nil, "this disk was sealed by another TPM" })
	if s := b.Status(); s.State != control.StateLocked || !strings.Contains(s.Reason, "another TPM") {
		t.Errorf("status %s: %s", s.State, s.Reason)
	}
	if _, err := b.key(t.Context(), control.Console, control.KeyRequest{Purpose: control.PurposeConsoleFields}); err == nil {
		t.Error("a locked box gave a key")
	}
	if _, err := b.appendEvent(t.Context(), control.Console, control.Event{Actor: "a", Action: "b"}); err == nil {
		t.Error("a locked box acknowledged an event that it cannot keep")
	}
	if got := b.ready(t, control.DatabaseUnclaimed); got.State != control.StateLocked {
		t.Errorf("console-ready while locked: %+v", got)
	}
}

func TestURLOf(t *testing.T) {
	link := func(ps ...string) []control.Link {
		l := control.Link{}
		for _, p := range ps {
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(p))
		}
		return []control.Link{l}
	}
	for _, c := range []struct {
		links []control.Link
		port  uint16
		want  string
	}{
		{nil, 443, ""},
		{link("fe80::1/64"), 443, ""},
		{link("169.254.1.1/16"), 443, "https://169.254.1.1/"},
		{link("169.254.1.1/16", "2001:db8::5/64"), 443, "https://[2001:db8::5]/"},
		{link("2001:db8::5/64", "192.168.1.40/24"), 443, "https://192.168.1.40/"},
		{link("192.168.1.40/24"), 8443, "https://192.168.1.40:8443/"},
	} {
		if got := urlOf(c.links, c.port); got != c.want {
			t.Errorf("urlOf(%v, %d) = %q, want %q", c.links, c.port, got, c.want)
		}
	}
}
