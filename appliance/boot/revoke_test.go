package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume/esp"
	"gatehouse/appliance/volume/esp/esptest"
	"gatehouse/firmware/program"
	"gatehouse/firmware/slot"
	"gatehouse/image/disk"
	"gatehouse/tpm/tpmtest"
)

// revoking is a dbx that names so many programs.
func revoking(programs int) []byte {
	size := listSize + programs*hashEntry
	b := append(bytes.Clone(hashList), byte(size), byte(size>>8), 0, 0, 0, 0, 0, 0, hashEntry, 0, 0, 0)
	return append(b, bytes.Repeat([]byte{7}, programs*hashEntry)...)
}

const dbxFile = secureBootFolder + "/dbx.auth"

func TestKEY10_RevocationsAreReadStrictly(t *testing.T) {
	good := change(revoking(2))
	other := bytes.Clone(good)
	other[len(good)-2*hashEntry-listSize] ^= 1
	short := bytes.Clone(good)
	short[len(good)-2*hashEntry-4]--
	for name, bad := range map[string][]byte{
		"empty": nil, "cut in the signature": good[:timeSize+certificateSize+50], "cut in the list": good[:len(good)-1], "more behind": append(bytes.Clone(good), 0),
		"names nothing": change(revoking(0)), "of another kind": other, "entries of another size": short, "two lists": append(bytes.Clone(good), revoking(1)...),
		"endless": change(revoking(2000)),
	} {
		if r, err := readRevocations(fstest.MapFS{dbxFile: {Data: bad}}); err == nil {
			t.Errorf("%s: read, %d programs", name, r.count())
		}
	}
	if _, err := readRevocations(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image without: %v", err)
	}
	if r, err := readRevocations(fstest.MapFS{dbxFile: {Data: good}}); err != nil || r.count() != 2 {
		t.Errorf("%d, %v", r.count(), err)
	}
}

// revoker is a keyring of a box whose firmware has the image's keys.
func revoker(t *testing.T, v *vault.Vault) (*keyring, *store) {
	t.Helper()
	image := enrolledImage(t)
	image[dbxFile] = &fstest.MapFile{Data: change(revoking(3))}
	e, err := readEnrolment(image)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{variables: map[string][]byte{}, cut: 100}
	for name, content := range e.contents {
		s.variables[name] = content
	}
	return &keyring{vault: v, image: image, owner: s, start: started(t, "secure", pcr7With), disk: written(t, slot.A)}, s
}

// efi is a program of so many bytes that a signature can be put on, and what firmware
// computes of it.
func efi(t *testing.T, name string, size int) (content []byte, sum [32]byte) {
	t.Helper()
	le := binary.LittleEndian
	b := bytes.Repeat([]byte(name), size/len(name)+1)[:size]
	clear(b[:0x200])
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	le.PutUint16(b[0x80+24:], 0x20b)
	sum, err := program.Digest(bytes.NewReader(b), int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return b, sum
}

// written is the disk of a box as the image has it, with a system in both slots.
func written(t *testing.T, running slot.Slot) func() (ownDisk, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	loader, _ := efi(t, "loader", 50_000)
	a, _ := efi(t, "system a", 100_000)
	b, _ := efi(t, "system b", 100_000)
	if err := disk.Write(f, []disk.File{
		{Path: loaderPath(), Content: loader}, {Path: slot.A.Path(), Content: a, Reserve: disk.SlotSize},
		{Path: slot.B.Path(), Content: b, Reserve: disk.SlotSize}, {Path: slot.ConfigPath, Content: slot.Config(slot.A)},
	}, nil); err != nil {
		t.Fatal(err)
	}
	at, size, _, _, err := esptest.Places(f, disk.Size)
	if err != nil {
		t.Fatal(err)
	}
	return func() (ownDisk, error) {
		part, err := esp.Open(onlyRead{io.NewSectionReader(f, at, size)}, 0)
		return ownDisk{part, running, func() error { return nil }}, err
	}
}

// onlyRead is a partition that nobody may write to.
type onlyRead struct{ io.ReaderAt }

func (onlyRead) WriteAt([]byte, int64) (int, error) {
	return 0, errors.New("what looks at the disk wrote to it")
}
func (onlyRead) Sync() error { return nil }

// A box tells its firmware nothing that would keep its own boot loader or the system that
// runs from starting, and nothing if it cannot tell. What lies in the other slot may be refused.
func TestKEY10_ABoxNeverHasItsOwnProgramsRefused(t *testing.T) {
	v, _, _ := ownedVault(t)
	_, loader := efi(t, "loader", 50_000)
	_, a := efi(t, "system a", 100_000)
	_, b := efi(t, "system b", 100_000)
	for name, c := range map[string]struct {
		names   [32]byte
		running slot.Slot
		refused string
	}{
		"the loader": {loader, slot.A, "boot loader"}, "what runs": {a, slot.A, "system that runs"}, "what runs, in the other slot": {b, slot.B, "system that runs"},
		"the system before": {b, slot.A, ""}, "somebody else's": {[32]byte{1}, slot.A, ""}, "what starts next, where nobody knows what runs": {a, 0, "system that runs"},
	} {
		k, s := revoker(t, v)
		k.disk = written(t, c.running)
		list := revoking(3)
		copy(list[listSize+hashEntry+16:], c.names[:])
		k.image.(fstest.MapFS)[dbxFile] = &fstest.MapFile{Data: change(list)}
		n, err := k.Revoke(t.Context())
		if c.refused == "" && (n != 3 || err != nil) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
		if c.refused != "" && (n != 0 || err == nil || !strings.Contains(err.Error(), "nothing was changed") || !strings.Contains(err.Error(), c.refused) || len(s.writes) > 0) {
			t.Errorf("%s: %d, %v, wrote %v", name, n, err, s.writes)
		}
	}
	k, s := revoker(t, v)
	k.disk = func() (ownDisk, error) { return ownDisk{}, errCut }
	if _, err := k.Revoke(t.Context()); !errors.Is(err, errCut) || len(s.writes) > 0 {
		t.Errorf("a disk that cannot be read: %v, wrote %v", err, s.writes)
	}
	k.disk = nil // the store has no disk
	if _, err := k.Revoke(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was changed") || len(s.writes) > 0 {
		t.Errorf("no disk: %v, wrote %v", err, s.writes)
	}
}

func TestKEY10_OnlyAFirmwareWithOurKeysIsTold(t *testing.T) {
	v, _, _ := ownedVault(t)
	for name, spoil := range map[string]func(*keyring, *store){
		"somebody else's PK":  func(_ *keyring, s *store) { s.variables["PK"] = []byte("vendor") },
		"somebody else's KEK": func(_ *keyring, s *store) { s.variables["KEK"] = append(s.variables["KEK"], 1) },
		"set-up mode":         func(_ *keyring, s *store) { s.variables["PK"] = nil },
		"Secure Boot off":     func(_ *keyring, s *store) { s.off = true },
		"an image without":    func(k *keyring, _ *store) { delete(k.image.(fstest.MapFS), dbxFile) },
		"it knows":            func(_ *keyring, s *store) { s.variables["dbx"] = revoking(3) },
		"a host":              func(k *keyring, _ *store) { k.owner = nil },
	} {
		k, s := revoker(t, v)
		spoil(k, s)
		if n, err := k.Revoke(t.Context()); n != 0 || err != nil || len(s.writes) > 0 {
			t.Errorf("%s: %d, %v, wrote %v", name, n, err, s.writes)
		}
	}
	k, s := revoker(t, v)
	if n, err := k.Revoke(t.Context()); n != 3 || err != nil || !slices.Equal(s.writes, []string{"dbx"}) {
		t.Errorf("%d, %v, wrote %v", n, err, s.writes)
	}
	k.vault = nil
	if _, err := k.Revoke(t.Context()); !errors.Is(err, errKeysClosed) {
		t.Errorf("locked: %v", err)
	}
}

// sealedVault is one that a TPM opens.
func sealedVault(t *testing.T, s *tpmtest.Server) *vault.Vault {
	t.Helper()
	meta, err := vault.OpenFile(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { meta.Close() })
	v, err := vault.Create(t.Context(), vault.Config{Meta: meta, TPM: s.TPM(), Form: vault.Box})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Wipe)
	if err := v.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return v
}

// The data of a box that is sealed to its TPM open at the next start, wherever the power
// is cut: the slot for that start comes first, and without it nothing is written.
func TestKEY10_TheSlotComesBeforeTheRevocation(t *testing.T) {
	v := sealedVault(t, tpmtest.Start(t))
	k, s := revoker(t, v)
	k.start = started(t, "setup", pcr7With) // a log of another start
	before := len(v.Slots())
	if _, err := k.Revoke(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing was changed") || len(s.writes) > 0 || len(v.Slots()) != before {
		t.Fatalf("what cannot be foreseen: %v, wrote %v, %d slots", err, s.writes, len(v.Slots()))
	}
	k, s = revoker(t, v)
	s.cut = 0
	if _, err := k.Revoke(t.Context()); !errors.Is(err, errCut) || len(v.Slots()) != before+1 {
		t.Fatalf("cut before the write: %v, %d slots", err, len(v.Slots()))
	}
	s.cut = 1
	if n, err := k.Revoke(t.Context()); n != 3 || err != nil || len(v.Slots()) != before+1 {
		t.Errorf("tried again: %d, %v, %d slots", n, err, len(v.Slots()))
	}
}
