package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/session/api"
	"gatehouse/appliance/technician"
)

// heard is standard error, written while it is read.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(b)
}

// since is what was said since it was last asked.
func (h *heard) since() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer h.b.Reset()
	return h.b.String()
}

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func TestSES7_RestartsAreCriedOnce(t *testing.T) {
	var out heard
	now := noon
	c := &crier{out: &out, now: func() time.Time { return now }}
	restart := &api.Notice{At: noon.Add(4 * time.Hour), Text: "the box restarts into version 1.5.0"}
	for _, s := range []struct {
		what  string
		after time.Duration
		tell  func(*api.Notice)
		n     *api.Notice
		said  string
	}{
		{"nothing", 0, c.granted, nil, ""},
		{"hours away, to who is in", 0, c.asked, restart, ""},
		{"hours away, to who comes in", 0, c.granted, restart, "[gatehouse: the box restarts into version 1.5.0 at 16:00 UTC, in 4 hours; this session ends then]\n"},
		{"again", time.Hour, c.asked, restart, ""},
		{"near", 4*time.Hour - 5*time.Minute, c.asked, restart, "[gatehouse: the box restarts into version 1.5.0 at 16:00 UTC, in 5 minutes; this session ends then]\n"},
		{"near, again", 4*time.Hour - 4*time.Minute, c.asked, restart, ""},
		{"very near", 4*time.Hour - 40*time.Second, c.asked, restart, "[gatehouse: the box restarts into version 1.5.0 at 16:00 UTC, in 40s; this session ends then]\n"},
		{"called off", 4*time.Hour - 30*time.Second, c.asked, nil, "[gatehouse: the box does not restart]\n"},
		{"still", 4*time.Hour - 20*time.Second, c.asked, nil, ""},
		{"another, with what no terminal may be told", 5 * time.Hour, c.asked, &api.Notice{At: noon.Add(5*time.Hour + 3*time.Minute), Text: "the \x1b[2Jbox"}, "[gatehouse: the ?[2Jbox at 17:03 UTC, in 3 minutes; this session ends then]\n"},
	} {
		now = noon.Add(s.after)
		s.tell(s.n)
		if got := out.since(); got != s.said {
			t.Errorf("%s: %q, want %q", s.what, got, s.said)
		}
	}
}

// A session hears with its grant of a restart that is to come, and afterwards of
// one that was not planned then.
func TestSES7_ASessionHearsOfARestart(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	b, _, err := findBox(t.Context(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	var out heard
	c := &crier{out: &out, raw: true, now: time.Now}
	h.notice.Store(&api.Notice{At: time.Now().Add(time.Hour), Text: "the box is switched off"})
	err = b.as(t.Context(), signIn{}, nil, func(ctx context.Context) error {
		s, err := begin(ctx, b, technician.Config{Hub: hub{b, c.granted}, Dial: (&net.Dialer{}).DialContext, Near: b.address, Patience: patience}, api.Ask{Target: "7"})
		if err != nil {
			return err
		}
		defer s.Close("the test is over")
		if got := out.since(); !strings.HasPrefix(got, "\r\n[gatehouse: the box is switched off at ") || !strings.HasSuffix(got, ", in 60 minutes; this session ends then]\r\n") {
			t.Errorf("with the grant: %q", got)
		}
		h.used.Store(0)
		defer c.listen(ctx, b, s, 10*time.Millisecond)()
		h.notice.Store(&api.Notice{At: time.Now().Add(2 * time.Minute), Text: "the box restarts"})
		for got := ""; !strings.Contains(got, "[gatehouse: the box restarts at ") && ctx.Err() == nil; got += out.since() {
			time.Sleep(time.Millisecond)
		}
		if n := h.used.Load(); n != 0 {
			t.Errorf("listening was taken for work %d times", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
