package boot

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"gatehouse/appliance/vault"
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
	return &keyring{vault: v, image: image, owner: s, start: started(t, "secure", pcr7With)}, s
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
