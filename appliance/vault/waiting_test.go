package vault

import (
	"context"
	"errors"
	"testing"

	"gatehouse/tpm/tpmtest"
)

var wrong = []byte("another passphrase")

// A box whose owner wants a passphrase at each start is started without one, as
// boxes are: it waits, and takes it later in the same start, although the TPM
// is closed by then. Wrong ones change nothing, and the TPM counts none.
func TestKEY2_PassphraseIsTypedAfterTheStart(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, text := owned(t, c)
	if err := v.SetPassphrase(t.Context(), []byte("a long passphrase")); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	l := wantLocked(t, err, "passphrase")
	if !l.WaitsForPassphrase() {
		t.Fatal("it does not wait for its passphrase")
	}
	for range 40 { // more than any TPM takes of wrong ones
		_, err := l.Resume(t.Context(), c, wrong)
		if l := wantLocked(t, err, "passphrase"); !l.WaitsForPassphrase() {
			t.Fatal("after a wrong one it waits no more")
		}
	}
	gone, end := context.WithCancel(t.Context())
	end()
	if _, err := l.Resume(gone, c, []byte("a long passphrase")); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
	_, err = l.Resume(t.Context(), c, nil)
	wantLocked(t, err, "passphrase")
	w, err := l.Resume(t.Context(), c, []byte("a long passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Wipe)
	same(t, v, w)
	if n, err := w.LockoutCounter(t.Context()); err != nil || n != 0 {
		t.Errorf("the TPM counted %d wrong passphrases, %v", n, err)
	}
	// Forgotten: the recovery key is the way out.
	s.PowerCut(t)
	_, err = Open(t.Context(), c)
	wantLocked(t, err, "passphrase")
	r, err := Recover(t.Context(), c, text)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Wipe)
	same(t, v, r)
}

// What is locked for another reason takes no passphrase: not the one that
// belongs to it either.
func TestKEY2_NoPassphraseOpensWhatAnotherRungBroke(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, _ := owned(t, c)
	if err := v.SetPassphrase(t.Context(), []byte("a long passphrase")); err != nil {
		t.Fatal(err)
	}
	s.Firmware = "another"
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	changed := wantLocked(t, err, "pcr")
	_, err = Open(t.Context(), box(tpmtest.Start(t), c.Meta))
	other := wantLocked(t, err, "srk")
	for name, l := range map[string]*Locked{"changed firmware": changed, "another TPM": other, "not locked": nil} {
		if _, err := l.Resume(t.Context(), c, []byte("a long passphrase")); err == nil || l.WaitsForPassphrase() {
			t.Errorf("%s: it was taken", name)
		}
	}
}

// Without a TPM the passphrase is all there is, and it is typed later too.
func TestKEY2_PassphraseAloneIsTypedAfterTheStart(t *testing.T) {
	c := Config{Meta: newDisk(), Form: Box, HostID: hostID(machine)}
	v, _ := owned(t, c)
	if err := v.SetPassphrase(t.Context(), []byte("a long passphrase")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), c)
	l := wantLocked(t, err, "passphrase")
	_, err = l.Resume(t.Context(), c, wrong)
	wantLocked(t, err, "passphrase")
	w, err := l.Resume(t.Context(), c, []byte("a long passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Wipe)
	same(t, v, w)
}
