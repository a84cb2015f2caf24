package boot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/vault"
)

type log []control.Event

func (l *log) append(_ context.Context, e control.Event) error {
	*l = append(*l, e)
	return nil
}

func spoolMeta(t *testing.T) vault.Device {
	t.Helper()
	meta, err := vault.OpenFile(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	return meta
}

func at(n int) func() time.Time { return func() time.Time { return time.Unix(int64(n), 0) } }

// Whoever holds the disk can write the place: what is not ours is left out, and
// nothing of it stops a start.
func TestKEY6_SpoolOfAStrangerIsReadStrictly(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	many := `{"left_out":0,"events":[` + strings.Repeat(`{"at":"2026-01-01T00:00:00Z","event":{"actor":"a","action":"b"}},`, spoolEvents) + `{"at":"2026-01-01T00:00:00Z","event":{"actor":"a","action":"b"}}]}`
	for name, text := range map[string]string{
		"noise": "\x00\xff", "another shape": `{"events":{}}`, "unknown field": `{"left_out":0,"events":[],"x":1}`, "fewer than none": `{"left_out":-1,"events":[]}`, "too many": many,
	} {
		meta := spoolMeta(t)
		if err := vault.WriteSpool(meta, []byte(text)); err != nil {
			t.Fatal(err)
		}
		var got log
		if err := openSpool(meta, at(1), quiet).chain(t.Context(), got.append); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %+v", name, err, got)
		}
	}
	meta := spoolMeta(t)
	long := strings.Repeat("x", 5000)
	if err := vault.WriteSpool(meta, []byte(`{"left_out":0,"events":[{"at":"2026-01-01T00:00:00Z","event":{"actor":"","action":"b"}},{"at":"2026-01-01T00:00:00Z","event":{"actor":"ann@example.com","action":"`+long+`","detail":{"locked":"no","at":"never"}}}]}`)); err != nil {
		t.Fatal(err)
	}
	var got log
	if err := openSpool(meta, at(1), quiet).chain(t.Context(), got.append); err != nil || len(got) != 1 {
		t.Fatalf("%v, %+v", err, got)
	}
	if e := got[0]; len(e.Action) != spoolText || e.Detail["locked"] != "unauthenticated" || e.Detail["at"] != "2026-01-01T00:00:00Z" {
		t.Errorf("%+v", e)
	}
}

// What happened at locked starts outlives a restart, is bounded, keeps how it
// began and how it ended, and is chained once.
func TestKEY6_WhatHappensWhileLockedIsChainedAfterwards(t *testing.T) {
	quiet, meta := slog.New(slog.DiscardHandler), spoolMeta(t)
	s := openSpool(meta, at(1000), quiet)
	s.Append(control.Event{Actor: "system", Action: "start", Outcome: "failed", Detail: map[string]string{"error": strings.Repeat("\x01", 500)}})
	s = openSpool(meta, at(2000), quiet)
	s.Append(control.Event{Actor: "recovery key", Action: "unlock", From: "192.0.2.9", Outcome: "failed", Detail: map[string]string{"error": "another key"}})
	for i := range 200 {
		s.Append(control.Event{Actor: "passphrase", Action: "unlock", Object: fmt.Sprint(i)})
	}
	full := errors.New("no space left on device")
	if err := s.chain(t.Context(), func(context.Context, control.Event) error { return full }); !errors.Is(err, full) {
		t.Errorf("a log that is full: %v", err)
	}
	var got log
	if err := s.chain(t.Context(), got.append); err != nil {
		t.Fatal(err)
	}
	if len(got) != spoolEvents+1 {
		t.Fatalf("%d events", len(got))
	}
	if e := got[0]; e.Action != "start" || e.Detail["at"] != "1970-01-01T00:16:40Z" || e.Detail["locked"] != "unauthenticated" {
		t.Errorf("it begins with %+v", e)
	}
	if e := got[1]; e.From != "192.0.2.9" || e.Detail["error"] != "another key" {
		t.Errorf("then %+v", e)
	}
	if e := got[spoolEvents-1]; e.Object != "199" {
		t.Errorf("the newest is %+v", e)
	}
	if e := got[spoolEvents]; e.Action != "events left out" || e.Detail["count"] != fmt.Sprint(202-spoolEvents) {
		t.Errorf("it ends with %+v", e)
	}
	for _, again := range []*spool{s, openSpool(meta, at(3000), quiet)} {
		var twice log
		if err := again.chain(t.Context(), twice.append); err != nil || len(twice) != 0 {
			t.Errorf("once more: %v, %d events", err, len(twice))
		}
	}
}

// Tries cannot wear META out, and a box without a disk goes on without a place.
func TestSpoolWritesAreBraked(t *testing.T) {
	d := &counting{Device: spoolMeta(t)}
	s := openSpool(d, at(1000), slog.New(slog.DiscardHandler))
	for range 500 {
		s.Append(control.Event{Actor: "passphrase", Action: "unlock"})
	}
	if d.writes != spoolBurst {
		t.Errorf("%d writes, want %d", d.writes, spoolBurst)
	}
	openSpool(nil, at(1), slog.New(slog.DiscardHandler)).Append(control.Event{Actor: "console", Action: "unlock"})
}

type counting struct {
	vault.Device
	writes int
}

func (c *counting) WriteAt(b []byte, at int64) (int, error) {
	c.writes++
	return c.Device.WriteAt(b, at)
}
