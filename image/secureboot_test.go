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
	const built = "2026-11-29T00:00:00Z"
	p := payload{signer: set[keys.Programs]}
	if err := p.revoke(set, nil, built); err != nil || len(p.files) > 0 {
		t.Errorf("nothing is revoked: %v, %d files", err, len(p.files))
	}
	if err := p.revoke(set, []keys.Revoked{{SHA256: [32]byte{1}}}, "yesterday"); err == nil {
		t.Error("signed with no time")
	}
	p = payload{signer: set[keys.Programs]}
	if err := p.revoke(set, []keys.Revoked{{SHA256: [32]byte{1}}, {SHA256: [32]byte{2}}}, built); err != nil || len(p.files) != 1 ||
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
