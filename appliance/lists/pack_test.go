package lists

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/appliance/control"
)

func TestKEY6_PackedListsAreReadStrictly(t *testing.T) {
	file := func(name, text string) []byte {
		return append(append(append([]byte{byte(len(name))}, name...), 0, 0, 0, byte(len(text))), text...)
	}
	good := bytes.Join([][]byte{file("allowlists.toml", "x"), file("office.list", "192.0.2.0/24\n")}, nil)
	for name, packed := range map[string][]byte{
		"nothing": nil, "noise": []byte("\x05noise"), "cut short": good[:len(good)-1], "more behind it": append(bytes.Clone(good), 1),
		"a path": file("../evil.list", "x"), "a path down": file("a/b.list", "x"), "absolute": file("/etc/x.list", "x"), "no name": file("", "x"),
		"another file": file("passwd", "x"), "hidden": file(".list", "x"), "twice": append(bytes.Clone(good), file("office.list", "x")...),
		"another order": append(file("office.list", "x"), file("allowlists.toml", "x")...), "a length of nothing": {3, 'a', 'b'},
		"endless": append([]byte{11}, "office.list\xff\xff\xff\xffx"...),
	} {
		dir := t.TempDir()
		if err := Unpack(dir, packed); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if f, err := Open(dir); err == nil && f.Kept() != "" {
			t.Errorf("%s: some of it counts", name)
		}
	}
	dir := t.TempDir()
	if err := Unpack(dir, good); err != nil {
		t.Fatal(err)
	}
	if f, err := Open(dir); err != nil || f.Kept() == "" || f.Off() {
		t.Errorf("%v, %+v", err, f)
	}
}

// What is packed is what is in force, bounded; nothing where nothing judges.
func TestKEY6_ListsInForceArePacked(t *testing.T) {
	f, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := f.Pack(1 << 10); b != nil || err != nil {
		t.Errorf("without lists: %q, %v", b, err)
	}
	told := 0
	f.OnKept = func() { told++ }
	candidate := filepath.Join(f.dir, "7")
	if err := os.Mkdir(candidate, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"office.list": "192.0.2.0/24\n", "allowlists.toml": "enabled = true\n"} {
		if err := os.WriteFile(filepath.Join(candidate, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Keep(candidate); err != nil {
		t.Fatal(err)
	}
	packed, err := f.Pack(1 << 10)
	if err != nil || len(packed) == 0 {
		t.Fatalf("%q, %v", packed, err)
	}
	for _, most := range []int{0, 5, len(packed) - 1} {
		if b, err := f.Pack(most); err == nil {
			t.Errorf("%d bytes in %d", len(b), most)
		}
	}
	if _, err := f.Pack(len(packed)); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if err := Unpack(dir, packed); err != nil {
		t.Fatal(err)
	}
	back, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if part, err := back.Read(control.ListsRead{File: "office.list"}); err != nil || string(part.Data) != "192.0.2.0/24\n" {
		t.Errorf("%q, %v", part.Data, err)
	}
	if err := f.SwitchOff(); err != nil {
		t.Fatal(err)
	}
	if b, err := f.Pack(1 << 10); b != nil || err != nil || told != 2 {
		t.Errorf("switched off: %q, %v, told %d times", b, err, told)
	}
}
