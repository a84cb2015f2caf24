package monitor

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/released"
)

// Signer signs as the box, with the key of the audit log's checkpoints.
type Signer interface {
	Sign(ctx context.Context, digest [32]byte) ([]byte, error)
	Public() *ecdsa.PublicKey
}

var errHosted = &control.Error{Code: control.CodeState, Text: "this Gatehouse runs on a host of yours: stop it there, run gatehoused uninstall, and remove the state folder that it names"}

func (m *Monitor) registerErase(s *control.Server) {
	control.Handle(s, control.OpErase, m.eraseAsked)
	control.Handle(s, control.OpReleased, m.released)
}

// eraseAsked is Erase for the owner at the page, who typed the box's name.
func (m *Monitor) eraseAsked(ctx context.Context, _ control.Role, q control.Erase) (control.None, error) {
	if m.cfg.Machine.Erase == nil {
		return control.None{}, errHosted
	}
	// A locked box is erased by who stands before it, and one without an owner has
	// nothing to erase: whoever took the console over must not do it either.
	if m.State() != control.StateReady {
		return control.None{}, &control.Error{Code: control.CodeState, Text: "nothing was erased: a box that is locked, or has no owner, is erased at its console alone"}
	}
	if !strings.EqualFold(strings.TrimSpace(q.Name), m.cfg.Name) {
		return control.None{}, &control.Error{Code: control.CodeInvalid, Text: fmt.Sprintf("nothing was erased: the name of this box is %s", m.cfg.Name)}
	}
	return control.None{}, m.erase(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "erase", Object: m.cfg.Name})
}

// released signs that the box is given away. Only a box that has an owner and is
// open can say so.
func (m *Monitor) released(ctx context.Context, _ control.Role, q control.ReleaseAsk) (control.Released, error) {
	switch {
	case m.cfg.Machine.Erase == nil:
		return control.Released{}, errHosted
	case m.cfg.Signer == nil || m.State() != control.StateReady:
		return control.Released{}, errLocked
	}
	if err := m.audit(ctx, control.Event{Actor: q.Actor, From: q.From, Action: "sign release statement", Object: m.cfg.Name}); err != nil {
		return control.Released{}, err
	}
	s := released.Statement{
		Box: m.cfg.Name, Model: m.cfg.Machine.Model, Serial: m.cfg.Machine.Serial, Released: m.cfg.Now().UTC().Truncate(time.Second), By: q.Name,
		Erases: []string{"the keys of the data and what the TPM remembers of them", "people, settings, certificates, recordings and the audit log on the data volume", "this box's name and identity"},
	}
	file, err := released.Sign(ctx, s, m.cfg.Signer.Public(), m.cfg.Signer.Sign)
	return control.Released{File: file}, err
}

// Erase forgets everything and restarts, for a person at the console.
func (m *Monitor) Erase(ctx context.Context) error {
	if m.cfg.Machine.Erase == nil {
		return errors.New("this Gatehouse runs on a host of yours: stop it there and remove its state folder")
	}
	return m.erase(ctx, control.Event{Actor: "console", Action: "erase", Object: m.cfg.Name})
}

// erase does it. The audit log goes with the rest, so a log that cannot be
// written is no reason to stop.
func (m *Monitor) erase(ctx context.Context, e control.Event) error {
	if err := m.audit(ctx, e); err != nil {
		m.cfg.Logger.Warn("erasing without an entry in the audit log", "err", err)
	}
	if err := m.cfg.Machine.Erase(ctx); err != nil {
		return fmt.Errorf("erasing: %w", err)
	}
	m.cfg.Machine.Power("restart")
	return nil
}
