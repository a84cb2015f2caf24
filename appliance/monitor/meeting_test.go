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
	for _, q := range []control.Meeting{{Organisation: key}, {Gateway: key}, {Gateway: key, Listens: "here"}} {
		if _, err := m.setMeeting(t.Context(), control.Gateway, q); err == nil {
			t.Errorf("the gateway said %v", q)
		}
	}
	if m.meeting.Organisation != nil || m.meeting.Gateway != nil {
		t.Fatalf("refused, and kept: %v", m.meeting)
	}
	evil := bytes.Repeat([]byte{6}, 32)
	for role, q := range map[control.Role]control.Meeting{control.Console: {Organisation: key, Gateway: evil}, control.Gateway: {Organisation: evil, Gateway: key, Listens: "[::]:443"}} {
		if _, err := m.setMeeting(t.Context(), role, q); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(m.meeting.Organisation, key) || !bytes.Equal(m.meeting.Gateway, key) {
		t.Errorf("kept %v", m.meeting)
	}
}
