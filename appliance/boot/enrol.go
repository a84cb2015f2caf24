package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"gatehouse/appliance/control"
	"gatehouse/appliance/host"
	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// Where the image keeps, for each variable NAME, the change NAME.auth that makes
// its keys the machine's.
const secureBootFolder = "etc/gatehouse/secureboot"

// enrolOrder is that of the writes. PK is last: it ends the set-up mode.
var enrolOrder = []string{"db", "KEK", "PK"}

// enrolment is what makes a machine start our systems alone.
type enrolment struct {
	changes  map[string][]byte // as the firmware takes them
	contents map[string][]byte // what the variables hold, and what is measured, after them
}

// firmwareDoor is the door to the firmware's variables; host.Host is one.
type firmwareDoor interface {
	volume.Machine
	Started() (host.Started, error)
	SecureBoot() (host.SecureBoot, error)
	SecureBootKeys(name string) ([]byte, error)
	EnrolSecureBoot(name string, change []byte) error
	ChangeSecureBoot(name string, change []byte) error
}

// readEnrolment reads the changes that the image brings. fs.ErrNotExist: it has none.
func readEnrolment(root fs.FS) (enrolment, error) {
	e := enrolment{make(map[string][]byte), make(map[string][]byte)}
	for _, name := range enrolOrder {
		change, content, err := readChange(root, name, contentOf)
		if err != nil {
			return e, fmt.Errorf("reading the image's keys of Secure Boot: %w", err)
		}
		e.changes[name], e.contents[name] = change, content
	}
	return e, nil
}

// readChange reads the signed change of a variable that the image brings, and what the
// variable holds after it, which of says.
func readChange(root fs.FS, name string, of func(change []byte) ([]byte, error)) (change, content []byte, err error) {
	const limit = 64 << 10
	file := path.Join(secureBootFolder, name+".auth")
	f, err := root.Open(file)
	if err != nil {
		return nil, nil, err
	}
	change, err = io.ReadAll(io.LimitReader(f, limit+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, nil, err
	}
	if len(change) > limit {
		return nil, nil, fmt.Errorf("%s has more than %d bytes", file, limit)
	}
	if content, err = of(change); err != nil {
		return nil, nil, fmt.Errorf("%s is not the signed change of a variable: %w", file, err)
	}
	return change, content, nil
}

// Sizes of EFI_TIME, of WIN_CERTIFICATE_UEFI_GUID without its data, and of
// EFI_SIGNATURE_LIST without its entries (UEFI 2.10, 8.2.2 and 32.4.1).
const (
	timeSize        = 16
	certificateSize = 24
	listSize        = 28
)

// contentOf is the content of EFI_VARIABLE_AUTHENTICATION_2: one list with one
// certificate. Others are not what this image is built with.
func contentOf(change []byte) ([]byte, error) {
	le := binary.LittleEndian
	list, err := payloadOf(change)
	if err != nil {
		return nil, err
	}
	if all, entry := le.Uint32(list[16:]), le.Uint32(list[24:]); uint64(all) != uint64(len(list)) || le.Uint32(list[20:]) != 0 || uint64(entry)+listSize != uint64(all) {
		return nil, errors.New("its content is not one certificate")
	}
	return list, nil
}

// payloadOf is what stands in EFI_VARIABLE_AUTHENTICATION_2 behind the signature: at
// least the head of a list.
func payloadOf(change []byte) ([]byte, error) {
	if len(change) < timeSize+certificateSize {
		return nil, io.ErrUnexpectedEOF
	}
	signature := uint64(binary.LittleEndian.Uint32(change[timeSize:]))
	if signature < certificateSize || timeSize+signature+listSize > uint64(len(change)) {
		return nil, io.ErrUnexpectedEOF
	}
	return change[timeSize+signature:], nil
}

// foreseen are the values of PCR 7 at a start after each of the writes: the
// power may be cut between any two, and a box whose firmware has db and no PK
// yet is to open as well as one that has all.
func (e enrolment) foreseen(m *measured) ([][pcr.Size]byte, error) {
	var out [][pcr.Size]byte
	var want eventlog.State
	for _, name := range enrolOrder {
		switch name {
		case "db":
			want.DB = e.contents[name]
		case "KEK":
			want.KEK = e.contents[name]
		case "PK":
			want.PK, want.Enabled, want.Authority = e.contents[name], true, e.contents["db"][listSize:]
		}
		v, err := m.foresee(want)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// foresee is PCR 7 at the next start with Secure Boot as wanted. The log is
// believed only as far as it leads to what the TPM holds.
func (m *measured) foresee(want eventlog.State) ([pcr.Size]byte, error) {
	switch {
	case m.registers == nil:
		return [pcr.Size]byte{}, errors.New("predicting PCR 7: there is no TPM")
	case m.log == nil && m.problem != nil:
		return [pcr.Size]byte{}, fmt.Errorf("predicting PCR 7: the firmware's log cannot be read: %w", m.problem)
	case m.log == nil:
		return [pcr.Size]byte{}, errors.New("predicting PCR 7: the firmware keeps no log of what it measured")
	}
	for _, c := range m.log.Differ(m.registers, 7) {
		return [pcr.Size]byte{}, fmt.Errorf("predicting PCR 7: the firmware's log leads to %x, and the TPM holds %x", c.Old, c.New)
	}
	return eventlog.PredictSecureBoot(m.log, want)
}

// write puts the keys into the firmware, each in one write. What is there
// already, after a power cut, is left.
func (e enrolment) write(f firmwareDoor) error {
	for _, name := range enrolOrder {
		now, err := f.SecureBootKeys(name)
		if err != nil {
			return fmt.Errorf("enrolling %s: %w", name, err)
		}
		if bytes.Equal(now, e.contents[name]) {
			continue
		}
		if err := f.EnrolSecureBoot(name, e.changes[name]); err != nil {
			return err
		}
	}
	return nil
}

// firmware says of the firmware's keys what a person may do about them. What it
// cannot find out it leaves out: the ladder tells of this start in any case.
func (k *keyring) firmware(out *control.Keys) {
	if k.owner == nil {
		return
	}
	now, err := k.owner.SecureBoot()
	if err != nil || !now.Known {
		return
	}
	e, err := readEnrolment(k.image)
	if err != nil {
		return
	}
	if pk, err := k.owner.SecureBootKeys("PK"); err == nil && len(pk) > 0 {
		out.SecureBoot.Ours = bytes.Equal(pk, e.contents["PK"])
	}
	out.SecureBoot.SetupMode, out.SecureBoot.CanEnrol = now.SetupMode, now.SetupMode && k.vault != nil
	if k.boot.SetupMode && !now.SetupMode {
		out.SecureBoot.Sentence = "The keys of this image are in the firmware. Restart the box: from then on the firmware starts nothing else."
	}
}

// EnrolSecureBoot makes this image's keys the machine's. The slots for what the
// TPM will hold then, after each of the writes, are there before the first of
// them: a power cut anywhere leaves a box that opens.
func (k *keyring) EnrolSecureBoot(ctx context.Context) error {
	v, err := k.open()
	if err != nil {
		return err
	}
	if k.owner == nil {
		return errors.New("the keys of this machine's firmware are its owner's affair: this program is a service here")
	}
	state, err := k.owner.SecureBoot()
	if err != nil {
		return err
	}
	if !state.SetupMode {
		return errors.New("the firmware is not in set-up mode: clear its Secure Boot keys in its set-up screen, and start the box again")
	}
	e, err := readEnrolment(k.image)
	if err != nil {
		return err
	}
	if strings.HasPrefix(v.Trust().Mechanism, "tpm") {
		values, err := e.foreseen(k.start)
		if err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
		var boots []vault.Boot
		for _, x := range values {
			boots = append(boots, vault.Boot{PCR7: x, Note: "for the start after this image's Secure Boot keys were written into the firmware"})
		}
		if err := v.Expect(ctx, boots); err != nil {
			return fmt.Errorf("nothing was changed: %w", err)
		}
	}
	return e.write(k.owner)
}

// explain is what the ladder is made of, but for what the caller knows of keys and data.
func (m *measured) explain(boot eventlog.SecureBoot, sealed bool) eventlog.Start {
	s := eventlog.Start{Log: m.log, Problem: m.problem, Registers: m.registers, SecureBoot: boot}
	if errors.Is(m.problem, fs.ErrNotExist) {
		s.Problem = nil // there is none: no more to say
	}
	if m.release != nil {
		s.Release = eventlog.Release{Brought: true, Epoch: m.release.Epoch, Path: m.path(), Sealed: sealed}
	}
	return s
}
