package vault

import (
	"strings"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/tpmtest"
)

func behind(t *testing.T, v *Vault, newest, signed uint64) string {
	t.Helper()
	if err := v.Compare(t.Context(), newest, signed); err != nil {
		t.Fatal(err)
	}
	return v.Behind()
}

func TestKEY10_OlderDataAreShown(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v, _ := owned(t, c)
	if got := behind(t, v, 0, 0); got != "" {
		t.Errorf("a new box: %s", got)
	}
	for _, n := range []uint64{40, 90} {
		if err := v.Remember(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	older := c.Meta.(*disk).clone()
	if err := v.Rotate(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	if err := v.Remember(t.Context(), 90); err != nil {
		t.Fatal(err)
	}
	for _, now := range []uint64{90, 91} {
		s.PowerCut(t)
		if got := behind(t, mustOpen(t, c), now, 90); got != "" {
			t.Errorf("the log at %d: %s", now, got)
		}
	}
	s.PowerCut(t)
	w := mustOpen(t, c)
	if got := behind(t, w, 89, 70); !strings.Contains(got, "entry 89") || !strings.Contains(got, "90") {
		t.Errorf("an older log: %q", got)
	}
	// What is older does not become right by being signed.
	if err := w.Remember(t.Context(), 70); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	if got := behind(t, mustOpen(t, c), 71, 70); !strings.Contains(got, "entry 71") {
		t.Errorf("an older log, signed since: %q", got)
	}
	s.PowerCut(t)
	c.Meta = older
	if got := behind(t, mustOpen(t, c), 95, 90); !strings.Contains(got, "generation") {
		t.Errorf("an older header: %q", got)
	}
}

// What another system on this machine does to it as the TPM's owner is shown,
// and keeps nobody out.
func TestKEY10_WhatTheTPMForgotIsShown(t *testing.T) {
	s := tpmtest.Start(t)
	c := box(s, newDisk())
	v := mustCreate(t, c)
	if err := v.Remember(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	root := v.tpmRoot()
	if err := s.TPM().UndefineNV(root, nvMemory); err != nil {
		t.Fatal(err)
	}
	if got := behind(t, v, 6, 5); !strings.Contains(got, "gone") {
		t.Errorf("removed: %q", got)
	}
	theirs := tpm.Index{Handle: nvMemory, Size: memorySize, Auth: []byte("theirs"), Public: true}
	if err := s.TPM().DefineNV(root, theirs); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().WriteNV(root, theirs, memory{1, 1}.bytes()); err != nil {
		t.Fatal(err)
	}
	s.PowerCut(t)
	if got := behind(t, mustOpen(t, c), 6, 5); !strings.Contains(got, "not from this box") {
		t.Errorf("exchanged: %q", got)
	}
	soft := forms()["host-id"]
	soft.Meta = newDisk()
	w := mustCreate(t, soft)
	if err := w.Remember(t.Context(), 5); err != nil {
		t.Fatal(err)
	}
	if got := behind(t, w, 1, 1); got != "" {
		t.Errorf("without a TPM: %q", got)
	}
}
