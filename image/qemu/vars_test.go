package qemu

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gatehouse/image/keys"
)

func TestBOX5_KeysAreEnrolledBeforeTheFirstStart(t *testing.T) {
	set, err := keys.New(filepath.Join(t.TempDir(), "keys"), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &SecureBoot{set[keys.Platform].Certificate, set[keys.Exchange].Certificate, set[keys.Programs].Certificate}
	for name, bad := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 1<<16)} {
		if _, err := s.enrol(bad); err == nil {
			t.Errorf("%s: enrolled", name)
		}
	}
	m := Machine{State: t.TempDir()}
	if _, err := m.prepare(); err != nil {
		t.Fatal(err)
	}
	m.SecureBoot = s
	if _, err := m.prepare(); err == nil {
		t.Error("a machine that was made without keys is taken for one that knows them")
	}
	m.State = t.TempDir()
	for range 2 {
		if _, err := m.prepare(); err != nil {
			t.Fatal(err)
		}
	}
	vars, err := os.ReadFile(filepath.Join(m.State, varsFile))
	if err != nil {
		t.Fatal(err)
	}
	for r, k := range set {
		if in := bytes.Contains(vars, k.Certificate.Raw); in != (r != keys.Release) {
			t.Errorf("%s is among the variables: %v", r, in)
		}
	}
	if _, err := s.enrol(vars); err == nil {
		t.Error("enrolled twice")
	}
	open := Machine{State: t.TempDir(), SecureBoot: &SecureBoot{}}
	if _, err := open.prepare(); err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(boards["amd64"].vars)
	if err != nil {
		t.Fatal(err)
	}
	if vars, err = os.ReadFile(filepath.Join(open.State, varsFile)); err != nil || !bytes.Equal(vars, fresh) {
		t.Errorf("a machine in set-up mode has keys: %v", err)
	}
	args := m.arguments([16]byte{}, "/run", nil)
	for _, want := range []string{"q35,smm=on", "driver=cfi.pflash01,property=secure,value=on"} {
		if !slices.Contains(args, want) {
			t.Errorf("the machine's variables are not kept from the guest: no %s", want)
		}
	}
}
