package monitor

import (
	"bytes"
	"testing"

	"gatehouse/appliance/control"
)

// TestSES1_EachRoleSpeaksForItself: a gateway that was taken over names no
// other organisation, and a console no other gateway.
func TestSES1_EachRoleSpeaksForItself(t *testing.T) {
	m := &Monitor{}
	key := bytes.Repeat([]byte{7}, 32)
	for _, q := range []control.Meeting{{}, {Organisation: key[1:]}, {Gateway: key}} {
		if _, err := m.setMeeting(t.Context(), control.Console, q); err == nil {
			t.Errorf("the console said %v", q)
		}
	}
	if _, err := m.setMeeting(t.Context(), control.Gateway, control.Meeting{Organisation: key}); err == nil {
		t.Error("the gateway named an organisation")
	}
	if m.meeting.Organisation != nil || m.meeting.Gateway != nil {
		t.Fatalf("refused, and kept: %v", m.meeting)
	}
	evil := bytes.Repeat([]byte{6}, 32)
	for role, q := range map[control.Role]control.Meeting{control.Console: {Organisation: key, Gateway: evil}, control.Gateway: {Organisation: evil, Gateway: key}} {
		if _, err := m.setMeeting(t.Context(), role, q); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(m.meeting.Organisation, key) || !bytes.Equal(m.meeting.Gateway, key) {
		t.Errorf("kept %v", m.meeting)
	}
}
