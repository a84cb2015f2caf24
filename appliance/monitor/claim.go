package monitor

import (
	"context"
	"fmt"

	"gatehouse/appliance/control"
)

func (m *Monitor) claimMaterial(context.Context, control.Role, control.None) (control.ClaimMaterial, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != control.StateUnclaimed {
		return control.ClaimMaterial{}, errNotClaimable(m.state)
	}
	return m.material, nil
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
	if s := m.State(); s != control.StateUnclaimed {
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
	restoredData = "this box has an owner, but its data is from before that: it was put back from a copy, or emptied. Put the newest data back, or choose 'Erase and start anew' at the console"
	clearedTPM   = "its data has an owner, but the machine does not remember one: the TPM was cleared, or the data comes from elsewhere. Choose 'Erase and start anew' at the console, or put the data back into its own machine"
)

// consoleReady follows the table of docs/architecture.md, States and the claim.
func (m *Monitor) consoleReady(ctx context.Context, _ control.Role, q control.ConsoleReady) (control.ConsoleState, error) {
	m.claiming.Lock()
	defer m.claiming.Unlock()
	m.mu.Lock()
	m.certificate, m.problem = q.Certificate, q.Problem
	state, reason := m.state, m.reason
	m.mu.Unlock()
	if state == control.StateLocked {
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
	if state == control.StateReady {
		m.mu.Lock()
		m.owner = q.Owner
		m.mu.Unlock()
		m.forgetVerifier()
	}
	if m.State() != state {
		m.setState(state, reason)
	}
	return control.ConsoleState{State: state, Reason: reason, Committed: claimed}, nil
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
