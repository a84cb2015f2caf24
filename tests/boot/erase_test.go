package boot

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/vault"
	"gatehouse/tpm/tpmtest"
)

// canaries are bytes that must not be on a disk, and what they are.
type canaries map[string][]byte

// plant writes one of them, made up, to a place.
func (c canaries) plant(t testing.TB, in part, what string, at int64) {
	t.Helper()
	b := make([]byte, 32)
	rand.Read(b)
	if _, err := in.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	c[what] = b
}

// take makes canaries of what is there, up to most: of each place that is not
// blank, and not public.
func (c canaries) take(t testing.TB, in part, what string, from, to, step int64, most int, public []byte) {
	t.Helper()
	for at := from; at < to && most > 0; at += step {
		b := make([]byte, 32)
		if _, err := in.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(b, []byte{0}) > 8 { // fields of the header that every box has
			continue
		}
		if slices.ContainsFunc([]int{0, 4, 8, 12, 16}, func(i int) bool { return bytes.Contains(public, b[i:i+16]) }) {
			continue
		}
		c[what+" "+hex.EncodeToString(b[:4])] = b
		most--
	}
}

// on lists those that are on a disk, wherever.
func (c canaries) on(t testing.TB, path string) (found []string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const piece = 4 << 20
	buf := make([]byte, piece+32)
	for at := int64(0); ; {
		at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			t.Fatal(err)
		}
		at = max(0, at-32) // one that begins in a hole cannot be, one at a border can
		n, err := f.ReadAt(buf, at)
		if n == 0 && err != nil && err != io.EOF {
			t.Fatal(err)
		}
		for what, b := range c {
			if bytes.Contains(buf[:n], b) && !slices.Contains(found, what) {
				found = append(found, what)
			}
		}
		if err == io.EOF {
			break
		}
		at += piece + 32
	}
	return found
}

// A box with an owner is erased at its console. Nothing of what was on its disk
// is there afterwards: not what was written in the clear, not the header's
// wrapped keys, not the volume's ciphertext. The header of before, put back under
// the same TPM, opens nothing.
func TestBOX13_ErasedDiskHoldsNothing(t *testing.T) {
	t.Parallel()
	_, owned := lives(t)
	box := owned.own(t)
	meta, data := box.partition(t, metaType), box.partition(t, dataType)
	kept := make([]byte, meta.size)
	if _, err := meta.ReadAt(kept, 0); err != nil {
		t.Fatal(err)
	}

	planted := make(canaries)
	for i := range int64(20) {
		planted.plant(t, meta, "META "+string(rune('a'+i)), 256<<10+i*180<<10+i*17)
		// Blocks of the volume that no file has: the last of them.
		planted.plant(t, data, "free block "+string(rune('a'+i)), data.size-(i+2)<<20+i*4096)
	}
	settings := control.NetworkSettings{Search: []string{"canary-" + hex.EncodeToString(kept[16:24]) + ".example.org"}}
	text, err := netconf.Encode(settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.WriteNetwork(meta, text); err != nil {
		t.Fatal(err)
	}
	planted["search domain"] = []byte(settings.Search[0])
	if err := vault.WriteClaimVerifier(meta, [16]byte(kept[100:116]), [32]byte(kept[120:152])); err != nil {
		t.Fatal(err)
	}
	planted["verifier"] = slices.Concat(kept[100:116], kept[120:152])
	before := len(planted)
	// The root key is the TPM's: the header of the next box has it, too.
	root, err := tpmtest.Open(t, filepath.Join(owned.own(t).state, "tpm")).TPM().Root()
	if err != nil {
		t.Fatal(err)
	}
	planted.take(t, meta, "header", 16, 2048, 16, 200, append(root.Public, root.Name...))
	headers := len(planted) - before
	planted.take(t, data, "volume", 0, data.size, 64<<10, 100, nil)
	if found := planted.on(t, box.disk); len(found) != len(planted) || before+headers < 50 || headers < 10 || len(planted) < before+headers+20 {
		t.Fatalf("%d of %d canaries are on the disk before it is erased: this test could not fail", len(found), len(planted))
	}

	guest := start(t, box.machine(t))
	state(t, guest, "ready", "url")
	if found := planted.on(t, box.disk); len(found) < 40 {
		t.Fatalf("only %d canaries outlived a start", len(found))
	}
	choose(t, guest, "5")
	block(t, guest, "Type the name of the box")
	choose(t, guest, owned.line["name"])
	block(t, guest, "Once more:")
	choose(t, guest, owned.line["name"])
	block(t, guest, "Erased: the keys are gone.")
	t.Log("the console says:", say(t, guest, `gatehouse: (Erased\.[^\r\n]*)\r?\n`)[1])
	boots.resets.Add(1)
	say(t, guest, `gatehouse: state=starting`)
	anew := state(t, guest, "unclaimed", "url", "code")
	if anew["name"] == owned.line["name"] || anew["fingerprint"] == owned.line["fingerprint"] {
		t.Errorf("erased, and it is still the old box: %v", anew)
	}
	block(t, guest, "The TPM forgot this box.")
	off(t, guest)
	if found := planted.on(t, box.disk); len(found) > 0 {
		t.Errorf("%d of %d canaries are on the disk after it was erased: %q", len(found), len(planted), found)
	}
	t.Logf("%d canaries, of them %d planted, %d of the header, the rest of the volume", len(planted), before, headers)

	// The machine that has everything of before but the data.
	if _, err := meta.WriteAt(kept, 0); err != nil {
		t.Fatal(err)
	}
	guest = start(t, box.machine(t))
	got := state(t, guest, "locked", "url")
	if got["fingerprint"] == owned.line["fingerprint"] {
		t.Errorf("the old header opened something: %v", got)
	}
	off(t, guest)
}
