package firmware_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"gatehouse/firmware"
)

func TestBOX4_BundleThereAndBack(t *testing.T) {
	var b bytes.Buffer
	if err := firmware.WriteBundle(&b, []byte("a note\n"), strings.NewReader("a system\n")); err != nil {
		t.Fatal(err)
	}
	if head, want := firmware.BundleHead([]byte("a note\n")), int64(b.Len()-len("a system\n")); head != want {
		t.Errorf("%d bytes before the system, want %d", head, want)
	}
	note, system, err := firmware.ReadBundle(&b)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(system)
	if err != nil || string(note) != "a note\n" || string(rest) != "a system\n" {
		t.Errorf("read %q and %q, %v", note, rest, err)
	}
}

func TestBOX4_BundlesThatAreNone(t *testing.T) {
	for _, s := range []string{
		"", "\n", "gatehouse update 1 7\na note", "gatehouse update 1 0\n", "gatehouse update 1 -1\nx", "gatehouse update 1 +7\na note\n",
		"gatehouse update 1 07\na note\n", "gatehouse update 1 65537\n" + strings.Repeat("x", 1<<17), "gatehouse update 2 7\na note\n",
		"gatehouse update 1 7", strings.Repeat("gatehouse update 1 ", 1000), "MZ\x00\n",
	} {
		if note, _, err := firmware.ReadBundle(strings.NewReader(s)); !errors.Is(err, firmware.ErrMalformed) {
			t.Errorf("%.40q was taken: %q, %v", s, note, err)
		}
	}
	if err := firmware.WriteBundle(io.Discard, make([]byte, firmware.MaxManifest+1), strings.NewReader("")); err == nil {
		t.Error("a note that is too long was written")
	}
}
