package consoletest

import (
	"bytes"
	"context"

	"gatehouse/appliance/control"
)

// GatewayKey is the key that the gateway of every Box says it has.
var GatewayKey = bytes.Repeat([]byte{0x9a}, 32)

// handleMeeting plays the gateway too, which has said its key.
func (b *Box) handleMeeting(s *control.Server) {
	control.Handle(s, control.OpMeetingSet, func(_ context.Context, _ control.Role, q control.Meeting) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.organisation = q.Organisation
		return control.None{}, nil
	})
	control.Handle(s, control.OpMeeting, func(context.Context, control.Role, control.None) (control.Meeting, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		return control.Meeting{Organisation: b.organisation, Gateway: GatewayKey}, nil
	})
}
