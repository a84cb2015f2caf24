package monitor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// claimMaterial is asked for by the first visitor who wants to claim the box.
// The code is stretched then and not at the start: most starts are those of a
// box that has an owner, and the smallest one has neither the time nor 32 MiB
// to give away.
func (m *Monitor) claimMaterial(context.Context, control.Role, control.None) (control.ClaimMaterial, error) {
	m.deriving.Lock()
	defer m.deriving.Unlock()
	for {
		m.mu.Lock()
		state, code, material := m.state, m.code, m.material
		m.mu.Unlock()
		if state != control.StateUnclaimed {
			return control.ClaimMaterial{}, errNotClaimable(state)
		}
		if material.Key != nil {
			return material, nil
		}
		key, err := derive(code, material.Salt)
		if err != nil {
			return control.ClaimMaterial{}, err
		}
		m.mu.Lock()
		if m.code == code { // or it was renewed meanwhile, or the box claimed: look again
			m.material.Key = key
		}
		m.mu.Unlock()
	}
}

func derive(text string, salt []byte) ([]byte, error) {
	code, err := proof.ParseCode(text)
	if err != nil || len(salt) != proof.SaltSize {
		return nil, errors.Join(errors.New("the claim code of this start cannot be used: restart the box for a new one"), err)
	}
	defer debug.FreeOSMemory() // 32 MiB of garbage on a box of 256
	key := proof.Derive(code, [proof.SaltSize]byte(salt))
	return key[:], nil
}

func errNotClaimable(s control.State) error {
	return &control.Error{Code: control.CodeState, Text: fmt.Sprintf("this box is %s: it cannot be claimed", s)}
}

// claimCommit is the commit point of a claim. The database holds the new owner
// as pending when it is asked. A power cut
//   - before the vault's bit is set: the next start finds pending and no bit,
//     discards the pending owner, and the box is unclaimed as before;
//   - after it: the next start finds pending and the bit, and finishes.
//
// The audit entry comes first; one without the bit after it is a claim that
// was tried and cut off.
func (m *Monitor) claimCommit(ctx context.Context, _ control.Role, q control.ClaimCommit) (control.None, error) {
	m.claiming.Lock()
	defer m.claiming.Unlock()
	if s := m.State(); s != control.StateUnclaimed && !m.seeds(q.Owner) {
		return control.None{}, errNotClaimable(s)
	}
	if q.Owner == "" {
		return control.None{}, &control.Error{Code: control.CodeInvalid, Text: "a claim names its owner"}
	}
	if err := m.audit(ctx, control.Event{Actor: q.Owner, Action: "claim", Object: m.cfg.Name, From: q.From}); err != nil {
		return control.None{}, err
	}
	if err := m.cfg.Vault.SetClaimed(ctx); err != nil {
		return control.None{}, fmt.Errorf("recording that the box has an owner: %w", err)
	}
	m.mu.Lock()
	m.owner = q.Owner
	m.mu.Unlock()
	m.setState(control.StateReady, "")
	m.forgetVerifier()
	m.finishSeed()
	return control.None{}, nil
}

// forgetVerifier takes the flashed code's verifier off the medium. It opens
// nothing any more; a failure is only untidy, and tried again at each start.
func (m *Monitor) forgetVerifier() {
	if m.cfg.Verifier == nil || m.cfg.ForgetVerifier == nil {
		return
	}
	if err := m.cfg.ForgetVerifier(); err != nil {
		m.cfg.Logger.Warn("the used claim code's verifier stays on the medium", "err", err)
	}
}

// disagreement is said when NV and database tell different stories.
const (
	restoredData = "this box has an owner, but its data is from before that: it was put back from a copy, or emptied. Put the newest data back, or %s"
	clearedTPM   = "its data has an owner, but the machine does not remember one: the TPM was cleared, or the data comes from elsewhere. Put the data back into its own machine, or %s"
)

// anew is how a person gives up what is there and begins again.
func (m *Monitor) anew() string {
	if m.cfg.Hosted {
		return "stop this program and remove its state folder: everything in it is lost then"
	}
	return "choose 'Erase and start anew' at the console: everything on the box is lost then"
}

// consoleReady follows the table of docs/architecture.md, States and the claim.
func (m *Monitor) consoleReady(ctx context.Context, _ control.Role, q control.ConsoleReady) (control.ConsoleState, error) {
	m.claiming.Lock()
	defer m.claiming.Unlock()
	m.mu.Lock()
	m.certificate, m.problem = q.Certificate, q.Problem
	state, reason := m.state, m.reason
	m.mu.Unlock()
	if state == control.StateLocked {
		m.prepareUnlock(ctx, q.Certificate)
		return control.ConsoleState{State: state, Reason: reason}, nil
	}
	claimed, err := m.cfg.Vault.Claimed(ctx)
	if err != nil {
		return control.ConsoleState{}, fmt.Errorf("reading whether the box has an owner: %w", err)
	}
	if q.Problem != "" {
		m.setState(control.StateLocked, q.Problem)
		return control.ConsoleState{State: control.StateLocked, Reason: q.Problem}, nil
	}
	state, reason, err = judge(claimed, q.Database)
	if err != nil {
		return control.ConsoleState{}, err
	}
	if reason != "" {
		reason = fmt.Sprintf(reason, m.anew())
	}
	if state == control.StateReady {
		m.mu.Lock()
		m.owner = q.Owner
		m.mu.Unlock()
		m.forgetVerifier()
		m.finishSeed()
	}
	if state == control.StateUnclaimed {
		if owner := m.seedOwner(q.SeedProblem); owner != nil {
			// The box goes from starting to owned: nobody is shown a code.
			return control.ConsoleState{State: state, Seed: owner}, nil
		}
	}
	if m.State() != state {
		m.setState(state, reason)
	}
	return control.ConsoleState{State: state, Reason: reason, Committed: claimed, ResetFactor: m.orderFor(state)}, nil
}

func judge(claimed bool, db control.DatabaseClaim) (control.State, string, error) {
	switch {
	case db != control.DatabaseUnclaimed && db != control.DatabasePending && db != control.DatabaseClaimed:
		return "", "", &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("database state %q is unknown", db)}
	case claimed && db == control.DatabaseUnclaimed:
		return control.StateLocked, restoredData, nil
	case !claimed && db == control.DatabaseClaimed:
		return control.StateLocked, clearedTPM, nil
	case claimed:
		return control.StateReady, "", nil
	}
	return control.StateUnclaimed, "", nil
}
