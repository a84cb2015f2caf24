package boot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/host/hosttest"
	"gatehouse/appliance/journal"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/vault"
)

// The watchdog is armed from its step on. Checking a large volume, or roles
// that fail and are tried again after a minute, must not end in a reset.
func TestWatchdogIsKickedFromItsStepOn(t *testing.T) {
	m := hosttest.New(t, map[string]string{"dev/watchdog0": ""}) // a plain file keeps each kick, one byte
	b := &box{machine: m.Host, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := b.openWatchdog(ctx); err != nil || b.watchdog == nil {
		t.Fatalf("%v, %v", b.watchdog, err)
	}
	for range 500 {
		if info, err := os.Stat(filepath.Join(m.Root, "dev/watchdog0")); err != nil || info.Size() > 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("no role runs yet, and nobody kicks the watchdog")
}

// A box that cannot open its audit log has to say so on its page and console,
// where it can be erased: without roles and panel it would be silent.
func TestWithoutAuditLogTheBoxIsLockedAndNotSilent(t *testing.T) {
	dir := t.TempDir()
	meta, err := vault.OpenFile(filepath.Join(dir, "meta"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := vault.Create(t.Context(), vault.Config{Meta: meta, Form: vault.Container, Passphrase: []byte("a passphrase of a test")})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	b := &box{log: log, keys: keys}
	r := &roles{log: log, journal: journal.New(1<<10, time.Now), keys: keys, reaper: supervise.NewReaper(log), monitor: monitor.Config{Name: "gatehouse-test"}}
	r.paths.Data = filepath.Join(dir, "data")
	if err := os.WriteFile(r.paths.Data, nil, 0o600); err != nil { // no folder: nothing can be in it
		t.Fatal(err)
	}
	err = r.run(t.Context())
	if err == nil {
		t.Fatal("the roles ran without an audit log")
	}
	b.ended(err)
	if b.keys != nil || !strings.Contains(b.locked, "audit log") {
		t.Errorf("after %v the box goes on, locked %q", err, b.locked)
	}
	c := &box{log: log, keys: keys}
	if c.ended(errors.New("a role's socket")); c.locked != "" || c.keys == nil {
		t.Errorf("any other failure locks the box: %q", c.locked)
	}
}
