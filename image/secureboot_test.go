package image

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"gatehouse/image/authenticode"
	"gatehouse/image/keys"
)

// loader is the smallest program that a signature can be put on.
func loader() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	p := b[0x80:]
	copy(p, "PE\x00\x00")
	le.PutUint16(p[4:], 0x8664)
	le.PutUint16(p[20:], 240)
	o := p[24:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[60:], 0x200)
	le.PutUint32(o[108:], 16)
	return b
}

// An image carries what is revoked, and is not built if that is its own loader or system.
func TestKEY10_ImageRevokesOthersAndNeverItself(t *testing.T) {
	set, err := keys.New(t.TempDir(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	own, err := authenticode.Digest(loader())
	if err != nil {
		t.Fatal(err)
	}
	p := payload{signer: set[keys.Programs]}
	if err := p.revoke(set, nil); err != nil || len(p.files) > 0 {
		t.Errorf("nothing is revoked: %v, %d files", err, len(p.files))
	}
	if err := p.revoke(set, []keys.Revoked{{SHA256: [32]byte{1}}, {SHA256: [32]byte{2}}}); err != nil || len(p.files) != 1 ||
		!bytes.HasSuffix(p.files[0].Content, append([]byte{2}, make([]byte, 31)...)) {
		t.Fatalf("%v, %d files", err, len(p.files))
	}
	if _, err := p.sign(loader()); err != nil {
		t.Errorf("what is not revoked: %v", err)
	}
	p.revoked = append(p.revoked, own)
	if _, err := p.sign(loader()); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("its own loader: %v", err)
	}
}

// Firmware takes a change of dbx only with a later time than the one before: a longer list
// has one, also if it is built of the same commit, and each has a later one than all that was
// handed out with the time of a commit. The same list is the same bytes.
func TestKEY10_ALongerListOfRevokedIsLater(t *testing.T) {
	set, err := keys.New(t.TempDir(), "test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	list := make([]keys.Revoked, keys.MaxRevoked)
	for i := range list {
		list[i].SHA256 = [32]byte{1, byte(i), byte(i >> 8)}
	}
	change := func(n int) []byte {
		p := payload{}
		if err := p.revoke(set, list[:n]); err != nil || len(p.files) != 1 {
			t.Fatalf("%d programs: %v, %d files", n, err, len(p.files))
		}
		return p.files[0].Content
	}
	at := func(b []byte) time.Time {
		return time.Date(int(binary.LittleEndian.Uint16(b)), time.Month(b[2]), int(b[3]), int(b[4]), int(b[5]), int(b[6]), 0, time.UTC)
	}
	before := time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC)
	for _, n := range []int{1, 2, 59, 60, 61, keys.MaxRevoked - 1, keys.MaxRevoked} {
		b := change(n)
		if !at(b).After(before) {
			t.Errorf("%d programs: the time is %s, not later than %s", n, at(b), before)
		}
		before = at(b)
		if !bytes.Equal(b, change(n)) {
			t.Errorf("%d programs: signed twice it is two changes", n)
		}
	}
}
