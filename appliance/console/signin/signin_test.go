package signin

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// Strangers with many addresses must not fill the disk with wrong sign-ins:
// beyond a number they are counted, and the count is recorded.
func TestAFloodOfWrongSignInsIsCountedNotRecorded(t *testing.T) {
	var events []control.Event
	var full error
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	v := &shell.Visit{R: httptest.NewRequest("POST", "/sign-in", nil), Box: &shell.Box{
		Wall:  func() time.Time { return now },
		Audit: func(_ context.Context, e control.Event) error { events = append(events, e); return full },
	}}
	p, guess := New(), &account.Refusal{Text: "not right", Wrong: true}
	for range 3 * wrongBurst {
		if err := p.refused(v, "unknown", guess); !errors.Is(err, guess) {
			t.Fatal(err)
		}
	}
	if len(events) != wrongBurst {
		t.Errorf("%d entries", len(events))
	}
	now = now.Add(wrongEach)
	p.refused(v, "ada@example.org", guess)
	last := events[len(events)-1]
	if last.Actor != "ada@example.org" || last.Outcome != "refused" || last.Detail["others since the entry before"] != "400" {
		t.Errorf("the entry after the flood: %+v", last)
	}
	n := len(events)
	if err := p.refused(v, "unknown", &account.Refusal{Text: "wait"}); err == nil || len(events) != n {
		t.Error("a try that was held back was recorded")
	}
	now, full = now.Add(time.Hour), errors.New("no space left on device")
	if err := p.refused(v, "unknown", guess); !errors.Is(err, full) {
		t.Errorf("a log that cannot be written is not said: %v", err)
	}
}
