package monitor

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"net/netip"

	"gatehouse/appliance/control"
)

func (m *Monitor) registerMeeting(s *control.Server) {
	control.Handle(s, control.OpMeetingSet, m.setMeeting)
	control.Handle(s, control.OpMeeting, func(context.Context, control.Role, control.None) (control.Meeting, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.meeting, nil
	})
	control.Handle(s, control.OpHubLine, func(_ context.Context, _ control.Role, l control.HubLine) (control.None, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.hubLine = l.Up
		return control.None{}, nil
	})
}

// HubLine says whether the agent's line to its hub stands, as the agent has it.
func (m *Monitor) HubLine() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hubLine
}

// setMeeting takes from each role what it may say of itself.
func (m *Monitor) setMeeting(_ context.Context, from control.Role, q control.Meeting) (control.None, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch from {
	case control.Console:
		if len(q.Organisation) != ed25519.PublicKeySize {
			return control.None{}, &control.Error{Code: control.CodeInvalid, Text: "the organisation's key is not an Ed25519 key"}
		}
		m.meeting.Organisation = bytes.Clone(q.Organisation)
	case control.Gateway:
		if len(q.Gateway) != sha256.Size {
			return control.None{}, &control.Error{Code: control.CodeInvalid, Text: "the gateway's key is not a SHA-256"}
		}
		if _, err := netip.ParseAddrPort(q.Listens); err != nil {
			return control.None{}, &control.Error{Code: control.CodeInvalid, Text: "the gateway does not say where it listens"}
		}
		m.meeting.Gateway, m.meeting.Listens = bytes.Clone(q.Gateway), q.Listens
	}
	return control.None{}, nil
}
