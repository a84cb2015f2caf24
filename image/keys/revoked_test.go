package keys

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKEY10_WhatIsRevokedIsReadStrictly(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for name, bad := range map[string]string{
		"no sum": "gatehouse-1.4.0-amd64.efi\n", "short": sum[:62] + " x\n", "long": sum + "ab x\n", "no hex": strings.Repeat("xy", 32) + "\n",
		"twice": sum + " one\n" + sum + " another\n", "an empty line": sum + " x\n\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, RevokedFile), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := LoadRevoked(dir); err == nil || !strings.Contains(err.Error(), RevokedFile+", line ") {
			t.Errorf("%s: %v, %v", name, list, err)
		}
		if _, err := Revoke(dir, Revoked{SHA256: [32]byte{1}}); err == nil {
			t.Errorf("%s: added to", name)
		}
		if b, err := os.ReadFile(filepath.Join(dir, RevokedFile)); err != nil || string(b) != bad {
			t.Errorf("%s: changed to %q (%v)", name, b, err)
		}
	}
}

func TestKEY10_ProgramsAreRevokedOnce(t *testing.T) {
	dir := t.TempDir()
	if list, err := LoadRevoked(dir); err != nil || list != nil {
		t.Fatalf("a folder without a list: %v, %v", list, err)
	}
	one, two := Revoked{[32]byte{1}, "one.efi"}, Revoked{[32]byte{2}, "two\n words"}
	for range 2 {
		if _, err := Revoke(dir, one, two, one); err != nil {
			t.Fatal(err)
		}
	}
	list, err := LoadRevoked(dir)
	if err != nil || len(list) != 2 || list[0] != one || list[1] != (Revoked{[32]byte{2}, "two words"}) {
		t.Errorf("%v, %v", list, err)
	}
	many := make([]Revoked, MaxRevoked)
	for i := range many {
		many[i].SHA256 = [32]byte{9, byte(i), byte(i >> 8)}
	}
	if _, err := Revoke(dir, many...); err == nil {
		t.Error("more than the limit")
	}
	if list, err := LoadRevoked(dir); err != nil || len(list) != 2 {
		t.Errorf("after a refusal: %v, %v", list, err)
	}
}
