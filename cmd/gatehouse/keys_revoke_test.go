package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/image/keys"
	"gatehouse/image/uki"
)

// efiProgram is a program of these sections.
func efiProgram(t *testing.T, sections ...uki.Section) []byte {
	t.Helper()
	le := binary.LittleEndian
	b := make([]byte, 0x600)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	p := b[0x80:]
	copy(p, "PE\x00\x00")
	le.PutUint16(p[4:], 0x8664)
	le.PutUint16(p[6:], 1)
	le.PutUint16(p[20:], 240)
	o := p[24:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[32:], 512)
	le.PutUint32(o[36:], 512)
	le.PutUint32(o[56:], 0x2000)
	le.PutUint32(o[60:], 0x400)
	le.PutUint32(o[108:], 16)
	s := o[240:]
	copy(s, ".text")
	le.PutUint32(s[8:], 0x123)
	le.PutUint32(s[12:], 0x1000)
	le.PutUint32(s[16:], 0x200)
	le.PutUint32(s[20:], 0x400)
	whole, err := uki.Assemble(b, sections)
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

// Systems are revoked, and nothing else that firmware starts: a box in the field keeps the
// boot loader that it was written with, and without it tries no update any more.
func TestKEY10_OnlySystemsAreRevoked(t *testing.T) {
	t.Chdir(t.TempDir())
	run := func(args ...string) (exitCode, string) {
		var out, diag bytes.Buffer
		code := execute(context.Background(), append([]string{"image", "keys"}, args...), strings.NewReader(""), &out, &diag)
		return code, out.String() + diag.String()
	}
	if code, text := run("new", "keys"); code != exitOK {
		t.Fatalf("%d: %s", code, text)
	}
	linux, ours := uki.Section{Name: ".linux", Content: []byte("kernel")}, uki.Section{Name: ".osrel", Content: []byte("ID=gatehouse\nNAME=Gatehouse\n")}
	system := efiProgram(t, ours, linux)
	for name, c := range map[string]struct {
		program []byte
		says    string
	}{
		"loader.efi":           {efiProgram(t, uki.Section{Name: ".osrel", Content: []byte("ID=systemd-boot\n")}, uki.Section{Name: ".sdmagic", Content: []byte("#### LoaderInfo: systemd-boot 252 ####")}), "boot loader"},
		"no-kernel.efi":        {efiProgram(t, ours), "boot loader"},
		"no-name.efi":          {efiProgram(t, linux), "boot loader"},
		"of-somebody-else.efi": {efiProgram(t, linux, uki.Section{Name: ".osrel", Content: []byte("ID=debian\nNAME=ID=gatehouse\n")}), "boot loader"},
		"text.efi":             {bytes.Repeat([]byte("text"), 1000), "no program that firmware starts"},
	} {
		for file, b := range map[string][]byte{name: c.program, "system.efi": system} {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		code, text := run("revoke", "keys", "system.efi", name)
		if code != exitUsage || !strings.Contains(text, "nothing was revoked: "+name) || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d: %s", name, code, text)
		}
		if _, err := os.Stat(filepath.Join("keys", keys.RevokedFile)); !os.IsNotExist(err) {
			t.Fatalf("%s: a list was written: %v", name, err)
		}
	}
	if code, text := run("revoke", "keys", "system.efi"); code != exitOK || !strings.Contains(text, "system.efi") {
		t.Errorf("%d: %s", code, text)
	}
	if list, err := keys.LoadRevoked("keys"); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}
