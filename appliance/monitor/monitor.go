// Package monitor answers the roles' requests: it is the privileged half of the box's privilege separation.
//
// The same code runs under PID 1 on a box and under `gatehoused serve` on a
// host. It parses nothing that came from a network: every request is typed,
// and was attributed to its role by the kernel.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
	"gatehouse/netfilter"
)

// Vault is the opened data key, as far as the monitor needs it.
type Vault interface {
	Subkey(purpose string) ([32]byte, error)
	Claimed(ctx context.Context) (bool, error)
	SetClaimed(ctx context.Context) error
	Trust() control.Trust
}

// Audit is the one writer of the audit log.
type Audit interface {
	Append(ctx context.Context, e control.Event) (control.Appended, error)
	Checkpoint(ctx context.Context) (control.Appended, error)
	Head() control.AuditHead
}

// Machine is what the monitor has done to the machine on behalf of roles. A
// nil function means that this form has no such thing: the request is refused
// in words.
type Machine struct {
	Links        func() []control.Link
	Volume       func() control.Volume
	Memory       func() control.Memory
	ApplyNetwork func(context.Context, control.NetworkApply) error
	SetClock     func(time.Time) error
	Power        func(action string) // restart or off; returns at once
	Erase        func(context.Context) error
	Kernel       string
	Model        string // as its maker calls it
	Serial       string // as its maker counts it
}

// Config is all that a monitor is made of.
type Config struct {
	Name        string
	Version     string
	Development bool
	Hosted      bool
	Names       []string // host names that are ours, besides Name
	HTTPPort    uint16
	HTTPSPort   uint16 // as a person types it
	PublicURL   string // if set, shown in place of an address of ours

	Vault  Vault  // nil while locked
	Locked string // why the vault is not open; the state is locked then
	Trust  control.Trust
	Audit  Audit // nil while locked
	// Spool keeps events while there is no audit log; nil: nothing does.
	Spool func(control.Event)

	// Verifier is a claim code's verifier set when flashing; nil: a code is
	// made at each start. Claimed tells that it may be forgotten.
	Verifier       *control.ClaimMaterial
	ForgetVerifier func() error

	Seed        *Seed  // nil: there is none
	SeedProblem string // why the seed that is there does not count

	Roles    func() []control.RoleStatus
	Alive    func(control.Role)
	Restart  func(control.Role) error // ends a role and starts it at once
	Log      func(control.LogQuery) []control.LogLine
	Filter   func(netfilter.State) error // Phase, OnLink, Lists and Multicast into the kernel; nil: not in the kernel
	Counters func() ([]control.Counter, error)
	Lists    *Lists   // nil: there are none, and nobody is judged by them
	Network  *Network // nil: the host sets its own
	Keys     Keys     // nil: nothing can be changed about them
	Systems  Systems  // nil: there are none to be changed, and NoSystems says why
	// NoSystems is what is wrong with the box's own two systems; "": the system is somebody else's.
	NoSystems string
	Signer    Signer // nil while locked
	Sampling  bool   // the gateway is handed samples of refused packets

	// KeepWithin is how long a change waits to be kept; 0: control.KeepWithin.
	// Boottime is CLOCK_BOOTTIME in ns; nil: the kernel's.
	KeepWithin time.Duration
	Boottime   func() int64

	Machine Machine
	Clock   *Clock
	Rand    io.Reader
	Now     func() time.Time
	Logger  *slog.Logger
}

// Monitor holds the state of the box and answers for it.
type Monitor struct {
	cfg     Config
	started time.Time

	mu          sync.Mutex
	state       control.State
	reason      string
	owner       string
	certificate control.Certificate
	problem     string                // of the database
	code        string                // of the claim, while there is one to show
	material    control.ClaimMaterial // its key is made when first asked for
	filtered    filterState
	meeting     control.Meeting         // what sessions need to know of gateway and console
	hubLine     bool                    // the agent's line to its hub stands
	budgets     map[control.Role]budget // of events
	lists       judged
	files       hostFiles
	network     networkSettings
	local       localName
	trials      map[string]*trial // by what they are about
	order       *order            // to the console, from a person at the box
	seed        *Seed             // until the box has an owner, or it is refused
	seedProblem string
	planned     *planned // a restart by request that is not yet

	certificates certificates
	unlocking    unlocking

	changing  sync.Mutex // one change of lists or network at a time
	filtering sync.Mutex // one writer of the kernel's rules at a time

	past      *past
	observing sync.Mutex // one look at the counters at a time

	claiming sync.Mutex // one claim at a time, from the first look to the commit
	deriving sync.Mutex // one Derive at a time; it takes 32 MiB
}

type filterState struct {
	state     control.State
	addresses []netip.Prefix
	lists     netfilter.Lists
	multicast bool
	err       error
	done      bool
}

// New makes a monitor. The filter is in place when it returns: a role that is
// started afterwards never meets an open box.
func New(cfg Config) (*Monitor, error) {
	m := &Monitor{cfg: cfg, state: control.StateStarting, started: cfg.Now(), budgets: make(map[control.Role]budget), trials: make(map[string]*trial), past: newPast(), seed: cfg.Seed, seedProblem: cfg.SeedProblem}
	if cfg.Locked != "" || cfg.Vault == nil {
		m.state, m.reason = control.StateLocked, cfg.Locked
	} else if err := m.newCode(cfg.Verifier); err != nil {
		return nil, err
	}
	m.startNetwork()
	if m.state == control.StateLocked {
		m.loadLists(context.Background()) // those that were kept before, if they can be trusted
	}
	m.Refilter()
	return m, nil
}

func (m *Monitor) newCode(preset *control.ClaimMaterial) error {
	if preset != nil {
		m.code, m.material = "", *preset
		return nil
	}
	code, err := proof.NewCode(m.cfg.Rand)
	if err != nil {
		return fmt.Errorf("making a claim code: %w", err)
	}
	var salt [16]byte
	if _, err := io.ReadFull(m.cfg.Rand, salt[:]); err != nil {
		return fmt.Errorf("making a claim code: %w", err)
	}
	m.code, m.material = code.String(), control.ClaimMaterial{Salt: salt[:]}
	return nil
}

// NewCode replaces the claim code, for a person at the console. It reaches the
// page with its next question.
func (m *Monitor) NewCode(ctx context.Context) error {
	m.claiming.Lock() // a claim that is being committed makes the code worthless
	defer m.claiming.Unlock()
	if m.State() != control.StateUnclaimed {
		return errors.New("this box has an owner: there is no claim code to renew")
	}
	if err := m.audit(ctx, control.Event{Actor: "console", Action: "new claim code"}); err != nil {
		return err
	}
	// A code that was set when flashing would be back after a restart.
	if m.cfg.Verifier != nil && m.cfg.ForgetVerifier != nil {
		if err := m.cfg.ForgetVerifier(); err != nil {
			return fmt.Errorf("removing the claim code that was set when flashing: %w", err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.newCode(nil)
}

// Code is the claim code to show at the box: empty when there is none to show.
func (m *Monitor) Code() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != control.StateUnclaimed {
		return ""
	}
	return m.code
}

// State is the state of the box now.
func (m *Monitor) State() control.State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *Monitor) setState(s control.State, reason string) {
	if s == control.StateReady {
		m.loadLists(context.Background())
	}
	m.mu.Lock()
	m.state, m.reason = s, reason
	if s == control.StateReady {
		m.code, m.material = "", control.ClaimMaterial{}
	}
	m.mu.Unlock()
	m.cfg.Logger.Info("state", "state", s, "reason", reason)
	m.Refilter()
	m.mu.Lock()
	gone := errors.Is(m.filtered.err, fs.ErrNotExist)
	m.lists.loaded = m.lists.loaded && !gone
	m.mu.Unlock()
	if gone {
		// Rules of the state before came between the filling and this: their
		// loading removed the sets, since they asked none.
		m.loadLists(context.Background())
		m.Refilter()
	}
}

// Refilter puts the rules of the present state and links into the kernel, if
// they changed. It is called at every change of either.
func (m *Monitor) Refilter() {
	if m.cfg.Filter == nil {
		return
	}
	m.filtering.Lock()
	defer m.filtering.Unlock()
	addresses := m.addresses()
	lists, closed := m.inForce()
	m.mu.Lock()
	state, last, multicast := m.state, m.filtered, m.multicast()
	m.mu.Unlock()
	switch judging := !closed && !lists.Off && len(lists.Names) > 0; {
	case state == control.StateReady && closed:
		state = control.StateLocked // the rules of it: the box's own networks
	case state == control.StateLocked && judging:
		state = control.StateReady // the rules of it: who is in the lists
	case state == control.StateLocked:
		lists = netfilter.Lists{Off: true} // lists that let anybody in are none here
	}
	if last.done && last.state == state && slices.Equal(last.addresses, addresses) && last.lists.Equal(lists) && last.multicast == multicast {
		return
	}
	err := m.cfg.Filter(netfilter.State{Phase: state, OnLink: addresses, Lists: lists, Multicast: multicast})
	if err != nil {
		// The rules before stay in force: they were never wider than the
		// state they were made for, and default drop came before any link.
		m.cfg.Logger.Error("the filter was not changed", "err", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.filtered = filterState{state, addresses, lists, multicast, err, err == nil}
}

func (m *Monitor) boottime() int64 {
	if m.cfg.Boottime != nil {
		return m.cfg.Boottime()
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return math.MaxInt64 // no connection is younger: nothing can be kept
	}
	return t.Nano()
}

// addresses are those of every link, with their prefix lengths; netfilter
// makes of them what counts as on-link.
func (m *Monitor) addresses() []netip.Prefix {
	if m.cfg.Machine.Links == nil {
		return nil
	}
	var out []netip.Prefix
	for _, l := range m.cfg.Machine.Links() {
		out = append(out, l.Addresses...)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return slices.Compact(out)
}

// audit appends an event; without an open log (locked) it waits in the spool,
// and nothing that needs an audit trail is possible in that state.
func (m *Monitor) audit(ctx context.Context, e control.Event) error {
	if m.cfg.Audit == nil {
		m.cfg.Logger.Info("event while locked", "actor", e.Actor, "action", e.Action, "object", e.Object, "outcome", e.Outcome)
		if m.cfg.Spool != nil {
			m.cfg.Spool(e)
		}
		return nil
	}
	if _, err := m.cfg.Audit.Append(ctx, e); err != nil {
		return fmt.Errorf("the audit log could not be written, so nothing was done: %w", err)
	}
	return nil
}
