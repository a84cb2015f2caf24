package boot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume"
	"gatehouse/appliance/volume/esp"
	"gatehouse/firmware/program"
	"gatehouse/firmware/slot"
	"gatehouse/tpm/eventlog"
)

// revocations are what the image has firmware refuse: the whole of dbx.
type revocations struct {
	change  []byte // as the firmware takes it
	content []byte // what dbx holds, and what is measured, after it
}

// count is how many programs they name.
func (r revocations) count() int { return (len(r.content) - listSize) / hashEntry }

// names says whether a program is among them, by the sum that firmware computes.
func (r revocations) names(sum [sha256.Size]byte) bool {
	for entry := range slices.Chunk(r.content[listSize:], hashEntry) {
		if bytes.Equal(entry[hashEntry-sha256.Size:], sum[:]) {
			return true
		}
	}
	return false
}

// hashEntry is the size of EFI_SIGNATURE_DATA with a SHA-256: its owner, and the sum.
const hashEntry = 16 + 32

// hashList is EFI_CERT_SHA256_GUID, with which a list of such sums begins.
var hashList = []byte{0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43, 0x28}

// readRevocations reads the change that the image brings. fs.ErrNotExist: it has none.
func readRevocations(root fs.FS) (r revocations, err error) {
	if r.change, r.content, err = readChange(root, "dbx", hashesOf); err != nil {
		return revocations{}, fmt.Errorf("reading what the image has the firmware refuse: %w", err)
	}
	return r, nil
}

// hashesOf is the content of a change: one list of SHA-256.
func hashesOf(change []byte) ([]byte, error) {
	list, err := payloadOf(change)
	if err == nil && !isHashList(list) {
		err = errors.New("its content is not one list of SHA-256")
	}
	return list, err
}

func isHashList(list []byte) bool {
	le := binary.LittleEndian
	return len(list) > listSize && bytes.Equal(list[:16], hashList) && uint64(le.Uint32(list[16:])) == uint64(len(list)) &&
		le.Uint32(list[20:]) == 0 && le.Uint32(list[24:]) == hashEntry && (len(list)-listSize)%hashEntry == 0
}

// unknown is what the image has a firmware refuse that goes by this image's keys, and that
// does not know it yet; nil: there is nothing.
func (k *keyring) unknown() (*revocations, error) {
	if k.owner == nil {
		return nil, nil
	}
	r, err := readRevocations(k.image)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if ours, err := k.ours(); !ours || err != nil {
		return nil, err
	}
	now, err := k.owner.SecureBootKeys("dbx")
	if err != nil || bytes.Equal(now, r.content) {
		return nil, err
	}
	return &r, nil
}

// Revokes says whether there is something to tell the firmware.
func (k *keyring) Revokes() (bool, error) {
	r, err := k.unknown()
	return r != nil, err
}

// Revoke tells the firmware what the image has it refuse, and returns how many programs
// that are; 0 if it knows. The slot for what the TPM will hold then is there before the
// firmware is told: a power cut between leaves a box that opens.
func (k *keyring) Revoke(ctx context.Context) (programs int, err error) {
	v, err := k.open()
	if err != nil {
		return 0, err
	}
	r, err := k.unknown()
	if r == nil || err != nil {
		return 0, err
	}
	if err := k.spares(*r); err != nil {
		return 0, fmt.Errorf("nothing was changed: %w", err)
	}
	if strings.HasPrefix(v.Trust().Mechanism, "tpm") {
		value, err := k.start.foresee(eventlog.State{Enabled: true, DBX: r.content})
		if err != nil {
			return 0, fmt.Errorf("nothing was changed: %w", err)
		}
		if err := v.Expect(ctx, []vault.Boot{{PCR7: value, Note: "for the start after the firmware was told what this image revokes"}}); err != nil {
			return 0, fmt.Errorf("nothing was changed: %w", err)
		}
	}
	return r.count(), k.owner.ChangeSecureBoot("dbx", r.change)
}

// ownDisk is what the firmware starts of the box's disk.
type ownDisk struct {
	*esp.Partition
	running slot.Slot // 0: it cannot be told
	close   func() error
}

func loaderPath() string { return strings.ReplaceAll(strings.TrimPrefix(loaderFile, `\`), `\`, "/") }

// spares refuses revocations that name what this box starts by. The loader is that with which
// the disk was written: no update replaces it, and without it none is tried any more.
func (k *keyring) spares(r revocations) error {
	find := k.disk
	if find == nil {
		find = k.findDisk
	}
	d, err := find()
	if err != nil {
		return fmt.Errorf("whether this box's own programs are revoked cannot be told: %w", err)
	}
	err = r.spare(d)
	return errors.Join(err, d.close())
}

func (r revocations) spare(d ownDisk) error {
	loader, err := d.Program(loaderPath())
	if err != nil {
		return fmt.Errorf("reading the boot loader: %w", err)
	}
	runs := d.running
	if runs == 0 {
		if runs, err = d.Default(); err != nil {
			return err
		}
	}
	system, err := d.Content(runs)
	if err != nil {
		return fmt.Errorf("reading the system that runs: %w", err)
	}
	for _, x := range []struct {
		what    string
		content *io.SectionReader
		advice  string
	}{
		{"the boot loader of this disk", loader, "no update replaces it: take it out of the list, and make another release"},
		{"the system that runs", system, "make a release that does not revoke itself"},
	} {
		sum, err := program.Digest(x.content, x.content.Size())
		if err != nil {
			return fmt.Errorf("%s: %w", x.what, err)
		}
		if r.names(sum) {
			return fmt.Errorf("this image revokes %s (SHA-256 %x): %s", x.what, sum, x.advice)
		}
	}
	return nil
}

// findDisk opens the disk to be read alone.
func (k *keyring) findDisk() (ownDisk, error) {
	disk, err := volume.FindDisk(k.owner)
	if err != nil {
		return ownDisk{}, err
	}
	part, err := disk.ESP()
	if err != nil {
		return ownDisk{}, err
	}
	// What is not known of the start in full tells no slot; then the default one counts.
	started, _ := k.owner.Started()
	d := ownDisk{close: part.Close}
	d.running, _ = runningSlot(started)
	if d.Partition, err = esp.Open(part, 0); err != nil {
		return ownDisk{}, errors.Join(err, part.Close())
	}
	return d, nil
}

// ours says whether Secure Boot is on with the keys of this image.
func (k *keyring) ours() (bool, error) {
	state, err := k.owner.SecureBoot()
	if err != nil || !state.Known || !state.Enabled || state.SetupMode {
		return false, err
	}
	e, err := readEnrolment(k.image)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range []string{"PK", "KEK"} {
		if now, err := k.owner.SecureBootKeys(name); err != nil || !bytes.Equal(now, e.contents[name]) {
			return false, err
		}
	}
	return true, nil
}
