package consoletest

import (
	"context"
	"runtime"
	"time"

	"gatehouse/appliance/control"
)

func (b *Box) handle(s *control.Server) {
	b.handleLists(s)
	b.handleNetwork(s)
	b.handleTrials(s)
	b.handleCertificates(s)
	b.handleExposure(s)
	b.handleMeeting(s)
	b.handleKeys(s)
	b.handleUpdate(s)
	b.handleUnlock(s)
	control.Handle(s, control.OpAlive, func(context.Context, control.Role, control.None) (control.None, error) {
		return control.None{}, nil
	})
	control.Handle(s, control.OpStatus, func(context.Context, control.Role, control.None) (control.Status, error) {
		return b.status(), nil
	})
	control.Handle(s, control.OpAudit, func(ctx context.Context, _ control.Role, e control.Event) (control.Appended, error) {
		return b.append(ctx, e)
	})
	control.Handle(s, control.OpKey, func(_ context.Context, _ control.Role, q control.KeyRequest) (control.Key, error) {
		return control.Key{Key: subkey(q.Purpose)}, nil
	})
	control.Handle(s, control.OpClaimMaterial, func(context.Context, control.Role, control.None) (control.ClaimMaterial, error) {
		if s := b.State(); s != control.StateUnclaimed {
			return control.ClaimMaterial{}, refused(control.CodeState, "this box is %s: it cannot be claimed", s)
		}
		return b.material, nil
	})
	control.Handle(s, control.OpClaimCommit, func(ctx context.Context, _ control.Role, q control.ClaimCommit) (control.None, error) {
		return control.None{}, b.commit(ctx, q)
	})
	control.Handle(s, control.OpConsoleReady, func(_ context.Context, _ control.Role, q control.ConsoleReady) (control.ConsoleState, error) {
		return b.consoleReady(q), nil
	})
	control.Handle(s, control.OpFactorReset, func(_ context.Context, _ control.Role, q control.FactorReset) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.order == "" || q.Order != b.order {
			return control.None{}, refused(control.CodeState, "there is no such order")
		}
		b.order = ""
		return control.None{}, nil
	})
	control.Handle(s, control.OpClockSet, func(ctx context.Context, _ control.Role, q control.ClockSet) (control.Clock, error) {
		if q.Time.Before(Built) {
			return control.Clock{}, refused(control.CodeInvalid, "the time is before this software was built")
		}
		_, err := b.append(ctx, control.Event{Actor: q.Actor, Action: "set clock", From: q.From})
		b.mu.Lock()
		defer b.mu.Unlock()
		if err == nil {
			b.clock = control.Clock{Trusted: true, Source: q.Source, Floor: b.clock.Floor}
		}
		return b.clock, err
	})
	control.Handle(s, control.OpPower, func(ctx context.Context, _ control.Role, q control.Power) (control.None, error) {
		if _, err := b.append(ctx, control.Event{Actor: q.Actor, Action: q.Action, From: q.From}); err != nil {
			return control.None{}, err
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		switch {
		case q.Action == "stay" && b.planned == nil:
			return control.None{}, refused(control.CodeState, "the box does not restart: there is nothing to take back")
		case q.Action == "stay":
			b.planned = nil
		case q.Later:
			b.planned = &control.Restart{At: time.Now().Add(control.Grace).UTC().Truncate(time.Second), Off: q.Action == "off"}
		default:
			b.powered = append(b.powered, q)
		}
		return control.None{}, nil
	})
	control.Handle(s, control.OpLog, func(context.Context, control.Role, control.LogQuery) (control.LogLines, error) {
		return control.LogLines{Lines: []control.LogLine{
			{Time: b.started, Role: control.Network, Text: `level=INFO msg="lease" link=eth0 address=192.168.1.40/24`},
			{Time: b.started.Add(time.Second), Role: control.Console, Text: `level=INFO msg=serving state=ready`},
		}}, nil
	})
}

func (b *Box) append(ctx context.Context, e control.Event) (control.Appended, error) {
	b.mu.Lock()
	err := b.noAudit
	b.mu.Unlock()
	if err != nil {
		return control.Appended{}, refused(control.CodeFailed, "the audit log cannot be written: %v", err)
	}
	return b.writer.Append(ctx, e)
}

func (b *Box) commit(ctx context.Context, q control.ClaimCommit) error {
	if s := b.State(); s != control.StateUnclaimed && !b.seeds(q.Owner) {
		return refused(control.CodeState, "this box is %s: it cannot be claimed", s)
	}
	b.mu.Lock()
	fail, claimed := b.noCommit, b.claimed
	b.mu.Unlock()
	if fail != nil {
		return refused(control.CodeFailed, "%v", fail)
	}
	if claimed {
		return refused(control.CodeState, "this box has an owner")
	}
	if _, err := b.append(ctx, control.Event{Actor: q.Owner, Action: "claim", Object: Name, From: q.From}); err != nil {
		return err
	}
	b.SetClaimed(true)
	return nil
}

func (b *Box) seeds(owner string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seed != nil && b.state == control.StateStarting && b.seed.Email == owner
}

// consoleReady follows the table of docs/architecture.md.
func (b *Box) consoleReady(q control.ConsoleReady) control.ConsoleState {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ready = q
	switch {
	case b.state == control.StateLocked:
	case q.Problem != "":
		b.state, b.reason = control.StateLocked, q.Problem
	case b.claimed && q.Database == control.DatabaseUnclaimed, !b.claimed && q.Database == control.DatabaseClaimed:
		b.state, b.reason = control.StateLocked, "the TPM and the data disagree on whether this box has an owner"
	case b.claimed:
		b.state = control.StateReady
	case b.seed != nil && q.SeedProblem == "":
		b.state = control.StateStarting
		return control.ConsoleState{State: control.StateUnclaimed, Seed: b.seed}
	default:
		b.state, b.seed = control.StateUnclaimed, nil
	}
	st := control.ConsoleState{State: b.state, Reason: b.reason, Committed: b.claimed}
	if b.state == control.StateReady {
		st.ResetFactor = b.order
	}
	return st
}

func (b *Box) status() control.Status {
	head := b.writer.Head()
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	since := b.started
	st := control.Status{
		Name: Name, Version: "0.1.0+test", Hosted: b.hosted, State: b.state, Reason: b.reason, Owner: b.ready.Owner,
		Started: since, Now: now, URL: "https://192.168.1.40/", Names: []string{"box.example.org"}, Certificate: b.ready.Certificate, Unlocking: b.unlocking.shown,
		Trust:    b.keys.now.Trust,
		Clock:    b.clock,
		Firewall: control.Firewall{InKernel: true, Sentence: "80 and 443 only, from the box's own networks; everything else is dropped.", Counters: []control.Counter{{Name: "web_connections", Packets: 1204}, {Name: "web_refused", Packets: 31}, {Name: "other_dropped", Packets: 88210}}},
		Links:    b.links(),
		Volume:   control.Volume{Encrypted: true, Size: 28 << 30, Free: 27 << 30},
		Memory:   control.Memory{Total: 256 << 20, Available: 180 << 20},
		Restart:  b.planned,
		Audit:    head, Kernel: runtime.GOOS + " 6.12",
	}
	if u := b.systems.now; u.Restart != nil && u.Transfer != nil {
		st.Restart = &control.Restart{At: *u.Restart, Version: u.Transfer.Version}
	}
	for i, r := range []control.Role{control.Network, control.Gateway, control.Console, control.Agent} {
		st.Roles = append(st.Roles, control.RoleStatus{Name: r, State: "running", PID: 100 + i, Since: since})
	}
	return st
}
