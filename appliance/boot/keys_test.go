package boot

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/unlock"
	"gatehouse/appliance/vault"
	"gatehouse/firmware/slot"
	"gatehouse/tpm/hostid"
)

// ownedVault is one in a file, with an owner and a recovery key.
func ownedVault(t *testing.T) (*vault.Vault, vault.Config, string) {
	t.Helper()
	meta, err := vault.OpenFile(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	c := vault.Config{Meta: meta, Form: vault.Box, HostID: func() (hostid.ID, error) {
		return hostid.ID{{Name: "machine-id", Value: "b08dfa6083e7567a1921a715000001fb"}}, nil
	}}
	v, err := vault.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Wipe)
	if err := v.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := v.SetClaimed(t.Context()); err != nil {
		t.Fatal(err)
	}
	key, err := v.MakeRecovery(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.ConfirmRecovery(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return v, c, key
}

func TestKEY8_WhatIsNoLockedBoxTakesNoRecoveryKey(t *testing.T) {
	v, c, key := ownedVault(t)
	for name, b := range map[string]*box{"open already": {keys: v, config: c}, "without a disk": {}} {
		if err := b.unlocks(t.Context(), unlock.Secret{Text: []byte(key)}); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	if _, err := v.Subkey("test"); err != nil {
		t.Errorf("a second recovery key closed the box: %v", err)
	}
	b := &box{config: c}
	if err := b.unlocks(t.Context(), unlock.Secret{Text: []byte("0" + key[1:])}); err == nil || b.keys != nil {
		t.Errorf("another key: %v", err)
	}
}

// In a trial that waits for the passphrase the recovery key would seal for the new system
// alone; and one whose data do not open after the passphrase goes back.
func TestBOX4_TrialThatWaitsForThePassphrase(t *testing.T) {
	v, c, key := ownedVault(t)
	if err := v.SetPassphrase(t.Context(), []byte("violet tractor")); err != nil {
		t.Fatal(err)
	}
	v.Wipe()
	var locked *vault.Locked
	if _, err := vault.Open(t.Context(), c); !errors.As(err, &locked) || !locked.WaitsForPassphrase() {
		t.Fatalf("it does not wait for the passphrase: %v", err)
	}
	armed, err := slot.Record{A: &systemA, B: &systemB}.Begin(slot.B, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b, _ := startOf(t, &twoSlots{first: slot.A}, armed, selectedIs(slot.B))
	b.config, b.broken = c, locked
	if b.leaveTrial() || !b.systems.waits.Load() {
		t.Fatal("it does not wait")
	}
	for _, kind := range []unlock.Kind{unlock.Either, unlock.Recovery} {
		if err := b.unlocks(t.Context(), unlock.Secret{Kind: kind, Text: []byte(key)}); err == nil || !strings.Contains(err.Error(), "on trial") || b.keys != nil {
			t.Errorf("the recovery key as kind %d: %v", kind, err)
		}
	}
	// There is no disk behind this box, so its volume does not open.
	if err := b.unlocks(t.Context(), unlock.Secret{Kind: unlock.Passphrase, Text: []byte("violet tractor")}); err == nil {
		t.Error("a volume without a disk was opened")
	}
	if e := b.systems.book.Record().Trial.End; b.ending != "restart" || b.systems.waits.Load() || e == nil || !e.Explained || !strings.Contains(e.Reason, "does not open the data") {
		t.Errorf("it stays: ending %q, %+v", b.ending, e)
	}
}

// A locked box shows what changed and which ways there are, and nothing that
// only the open data could say.
func TestKEY6_LockedBoxSaysWhatChangedAndWhichWaysThereAre(t *testing.T) {
	_, c, _ := ownedVault(t)
	k := &keyring{config: c, locked: &vault.Locked{
		Rung: "pcr", Cause: "PCR 7 changed.", Advice: "Set it back.", PCRs: []vault.PCRChange{{Index: 7, Old: "01", New: "02"}},
	}}
	got, err := k.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Registers) != 1 || !got.Registers[0].Changed() || got.Registers[0].Name == "" || got.Registers[0].Sealed != "01" {
		t.Errorf("registers %+v", got.Registers)
	}
	if got.Recovery != "confirmed" || len(got.Slots) != 2 || got.Slots[0].InUse || got.TPM != nil || got.Generation != 0 {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(got.Rungs[3].Sentence, "PCR 7 changed.") {
		t.Errorf("rungs %+v", got.Rungs)
	}
	for _, change := range []error{
		k.ConfirmRecovery(t.Context(), "x"), k.Rotate(t.Context(), "data"), k.SetPassphrase(t.Context(), nil), k.TakeTPM(t.Context()), k.EnrolSecureBoot(t.Context()),
	} {
		if change != errKeysClosed {
			t.Errorf("a locked box changed its keys: %v", change)
		}
	}
}
