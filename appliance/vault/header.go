package vault

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"

	"golang.org/x/crypto/cryptobyte"
)

// The header, all numbers big-endian (docs/keys.md has the same as a table):
//
//	magic "GHVAULT1" | version u16 | body length u32 | body | MAC 32 | SHA-256 32
//
// The checksum tells a torn write; the MAC, under a key that only the open
// data key gives, tells an edited one. Every byte is covered by both.
const (
	headerMagic   = "GHVAULT1"
	headerVersion = 3 // with attestation and tunnel key; written only where there are any
	headerBefore  = 2
	headerFixed   = len(headerMagic) + 2 + 4
	maxHeader     = 48 << 10
	bankSHA256    = 0x000B
)

// mode is what opens the data key at a start. It is read from the header, never guessed.
type mode uint8

const (
	modeTPM           mode = 1
	modeHostID        mode = 2
	modePassphrase    mode = 3
	modeTPMPassphrase mode = 4 // both are needed
)

func (m mode) String() string {
	switch m {
	case modeTPM:
		return "tpm"
	case modeHostID:
		return "host-id"
	case modePassphrase:
		return "passphrase"
	case modeTPMPassphrase:
		return "tpm+passphrase"
	}
	return "none"
}

// sealed says that the TPM is needed.
func (m mode) sealed() bool { return m == modeTPM || m == modeTPMPassphrase }

const (
	flagSettled = 1 << 0 // the TPM holds latch and claimed bit
	flagClaimed = 1 << 1 // without a TPM: the box has an owner; with one: the claimed bit is made as set, because a recovery key was used
	flagsKnown  = flagSettled | flagClaimed
)

const (
	gcmOverhead   = 12 + 16 // nonce and tag
	wrappedKey    = 32 + gcmOverhead
	wrappedVolume = 64 + gcmOverhead
	maxBlob       = 2048
	maxName       = 64
	maxSlots      = 8
	maxNote       = 200
)

// header is one generation of what META says.
type header struct {
	generation uint64
	installID  [16]byte
	mode       mode
	flags      uint8
	created    int64               // Unix seconds
	base       [wrappedKey]byte    // the secret that all keys of roles derive from, under the data key
	volume     [wrappedVolume]byte // the volume key, under the data key

	tpm   *tpmKeys        // modes with a TPM
	guard *passphraseSlot // mode tpm+passphrase: what every TPM slot needs besides
	slots []slot
}

// tpmKeys is what of a box is in its TPM, whatever slots there are.
type tpmKeys struct {
	root tpm.Root
	// All are authorised from the base secret.
	checkpoint tpm.Blob // signs the audit log
	ak         tpm.Blob // attestation key: signs what the TPM says, and nothing else
	tunnel     tpm.Blob // signs what shows a hub that this is the site
}

// whole says that no key is missing, as in a header of version 2.
func (k *tpmKeys) whole() bool { return len(k.ak.Public) > 0 }

// version is the oldest that can hold the header: a program of before goes on
// reading what it can.
func (h *header) version() uint16 {
	if h.mode.sealed() && h.tpm.whole() {
		return headerVersion
	}
	return headerBefore
}

type kind uint8

const (
	kindTPM        kind = 1
	kindHostID     kind = 2
	kindPassphrase kind = 3
	kindRecovery   kind = 4
)

func (k kind) String() string {
	switch k {
	case kindTPM:
		return "tpm"
	case kindHostID:
		return "host-id"
	case kindPassphrase:
		return "passphrase"
	case kindRecovery:
		return "recovery"
	}
	return "none"
}

const slotConfirmed = 1 << 0 // recovery: somebody showed that they keep the key

// slot is one way to the data key: encrypted to public, whose private half
// comes from what the slot is made of.
type slot struct {
	kind   kind
	flags  uint8
	made   int64 // Unix seconds
	public []byte
	sealed []byte // the data key

	tpm        *tpmSlot
	host       *hostSlot
	passphrase *passphraseSlot
}

// tpmSlot is a secret sealed to the TPM under a policy.
type tpmSlot struct {
	values   pcr.Values // of registers, at the time of sealing or as foreseen, to name what changed
	approver []byte     // uncompressed P-256 point of the release key; nil: no release is asked for
	epoch    uint64     // of the release
	atMost   uint64     // of the counter; 0: it is not asked
	blob     tpm.Blob
	note     string // what the slot waits for
}

type hostSlot struct {
	salt   [32]byte
	source string // which identifier
}

type passphraseSlot struct {
	salt   [32]byte
	time   uint32 // passes
	memory uint32 // KiB
	lanes  uint8
	// Of a guard; a slot of its own has them outside.
	made   int64 // Unix seconds
	public []byte
}

var errHeader = errors.New("the header is damaged")

func addBytes(b *cryptobyte.Builder, v []byte) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(v) })
}

// body is what MAC and checksum cover, without them.
func (h *header) body() []byte {
	var b cryptobyte.Builder
	b.AddUint64(h.generation)
	b.AddBytes(h.installID[:])
	b.AddUint8(uint8(h.mode))
	b.AddUint8(h.flags)
	b.AddUint64(uint64(h.created))
	b.AddBytes(h.base[:])
	b.AddBytes(h.volume[:])
	if h.mode.sealed() {
		addBytes(&b, h.tpm.root.Public)
		addBytes(&b, h.tpm.root.Name)
		addBlob(&b, h.tpm.checkpoint)
		if h.tpm.whole() {
			addBlob(&b, h.tpm.ak)
			addBlob(&b, h.tpm.tunnel)
		}
	}
	if h.mode == modeTPMPassphrase {
		h.guard.add(&b)
		b.AddUint64(uint64(h.guard.made))
		addBytes(&b, h.guard.public)
	}
	b.AddUint8(uint8(len(h.slots)))
	for i := range h.slots {
		b.AddUint8(uint8(h.slots[i].kind))
		b.AddUint16LengthPrefixed(h.slots[i].add)
	}
	return b.BytesOrPanic() // fails only on a slot over 64 KiB, which the limits exclude
}

func addBlob(b *cryptobyte.Builder, x tpm.Blob) {
	addBytes(b, x.Public)
	addBytes(b, x.Private)
}

func (s *slot) add(b *cryptobyte.Builder) {
	b.AddUint8(s.flags)
	b.AddUint64(uint64(s.made))
	addBytes(b, s.public)
	addBytes(b, s.sealed)
	switch s.kind {
	case kindTPM:
		s.tpm.add(b)
	case kindHostID:
		b.AddBytes(s.host.salt[:])
		addBytes(b, []byte(s.host.source))
	case kindPassphrase:
		s.passphrase.add(b)
	}
}

func (s *tpmSlot) add(b *cryptobyte.Builder) {
	b.AddUint16(bankSHA256)
	b.AddUint24(uint32(s.values.Selection()))
	for _, i := range s.values.Selection().Indices() {
		v := s.values[i]
		b.AddBytes(v[:])
	}
	b.AddUint8(uint8(len(s.approver)))
	b.AddBytes(s.approver)
	b.AddUint64(s.epoch)
	b.AddUint64(s.atMost)
	addBlob(b, s.blob)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(s.note)) })
}

func (s *passphraseSlot) add(b *cryptobyte.Builder) {
	b.AddBytes(s.salt[:])
	b.AddUint32(s.time)
	b.AddUint32(s.memory)
	b.AddUint8(s.lanes)
}

// marshal returns the header as META keeps it.
func (h *header) marshal(macKey []byte) []byte {
	body := h.body()
	var b cryptobyte.Builder
	b.AddBytes([]byte(headerMagic))
	b.AddUint16(h.version())
	b.AddUint32(uint32(len(body)))
	b.AddBytes(body)
	out := b.BytesOrPanic()
	out = append(out, headerMAC(macKey, out)...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...)
}

func headerMAC(key, covered []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(covered)
	return m.Sum(nil)
}

// stored is a header with the bytes it was read from, whose MAC can be checked
// once the data key is open.
type stored struct {
	header
	covered, mac []byte
}

func (s *stored) verify(macKey []byte) error {
	if !hmac.Equal(s.mac, headerMAC(macKey, s.covered)) {
		return errors.New("the header was changed: its MAC under the data key does not verify")
	}
	return nil
}

// parseHeader is strict: what it accepts, marshal gives back byte for byte.
// Until the MAC is verified nothing in it is believed but what opening needs.
func parseHeader(raw []byte) (*stored, error) {
	r := cryptobyte.String(raw)
	var (
		magic, body, mac, sum []byte
		version               uint16
		size                  uint32
	)
	if !r.ReadBytes(&magic, len(headerMagic)) || string(magic) != headerMagic {
		return nil, fmt.Errorf("%w: it does not begin as one", errHeader)
	}
	if !r.ReadUint16(&version) || !r.ReadUint32(&size) || size > maxHeader ||
		!r.ReadBytes(&body, int(size)) || !r.ReadBytes(&mac, sha256.Size) || !r.ReadBytes(&sum, sha256.Size) {
		return nil, fmt.Errorf("%w: it ends too early", errHeader)
	}
	covered := raw[:headerFixed+int(size)]
	if want := sha256.Sum256(raw[:len(covered)+sha256.Size]); !bytes.Equal(sum, want[:]) {
		return nil, fmt.Errorf("%w: its checksum does not fit", errHeader)
	}
	if version != headerVersion && version != headerBefore {
		return nil, fmt.Errorf("the header has version %d; this program knows versions %d and %d: start the version that wrote it", version, headerBefore, headerVersion)
	}
	s := &stored{covered: bytes.Clone(covered), mac: bytes.Clone(mac)}
	if err := s.parse(body, version); err != nil {
		return nil, fmt.Errorf("%w: %w", errHeader, err)
	}
	return s, nil
}

func (h *header) parse(body []byte, version uint16) error {
	r := cryptobyte.String(body)
	var (
		m, count uint8
		created  uint64
	)
	if !r.ReadUint64(&h.generation) || !r.CopyBytes(h.installID[:]) || !r.ReadUint8(&m) || !r.ReadUint8(&h.flags) ||
		!r.ReadUint64(&created) || !r.CopyBytes(h.base[:]) || !r.CopyBytes(h.volume[:]) {
		return errors.New("its parts do not fit its length")
	}
	h.mode, h.created = mode(m), int64(created)
	switch {
	case h.mode.String() == "none":
		return fmt.Errorf("mode %d does not exist", m)
	case h.flags&^flagsKnown != 0, !h.mode.sealed() && h.flags&flagSettled != 0:
		return errors.New("its flags do not fit its mode")
	case h.generation == 0:
		return errors.New("generation 0 does not exist")
	case version == headerVersion && !h.mode.sealed():
		return errors.New("its version does not fit its mode")
	}
	if h.mode.sealed() {
		h.tpm = new(tpmKeys)
		if !readBytes(&r, maxBlob, &h.tpm.root.Public) || !readBytes(&r, maxName+4, &h.tpm.root.Name) || !readBlob(&r, &h.tpm.checkpoint) {
			return errors.New("it lacks keys of the TPM")
		}
		if version == headerVersion && (!readBlob(&r, &h.tpm.ak) || !readBlob(&r, &h.tpm.tunnel)) {
			return errors.New("it lacks the attestation or the tunnel key")
		}
	}
	if h.mode == modeTPMPassphrase {
		var err error
		if h.guard, err = parsePassphrase(&r); err != nil {
			return err
		}
		var made uint64
		if !r.ReadUint64(&made) || !readBytes(&r, maxBlob, &h.guard.public) {
			return errors.New("its passphrase has no key")
		}
		h.guard.made = int64(made)
	}
	if !r.ReadUint8(&count) || count == 0 || count > maxSlots {
		return fmt.Errorf("it has no slot, or more than %d", maxSlots)
	}
	for i := range count {
		s, err := parseSlot(&r)
		if err != nil {
			return fmt.Errorf("slot %d: %w", i+1, err)
		}
		h.slots = append(h.slots, s)
	}
	if !r.Empty() {
		return errors.New("it is longer than its parts")
	}
	return h.fits()
}

// fits says whether the slots are those of the mode.
func (h *header) fits() error {
	var n [kindRecovery + 1]int
	for _, s := range h.slots {
		n[s.kind]++
	}
	want := map[mode]kind{modeTPM: kindTPM, modeTPMPassphrase: kindTPM, modeHostID: kindHostID, modePassphrase: kindPassphrase}[h.mode]
	for k := kindTPM; k <= kindPassphrase; k++ {
		if (k == want) != (n[k] > 0) || k != kindTPM && n[k] > 1 {
			return fmt.Errorf("its slots (%s) do not fit its mode, %s", k, h.mode)
		}
	}
	return nil
}

func parseSlot(r *cryptobyte.String) (s slot, err error) {
	var (
		k    uint8
		made uint64
		body cryptobyte.String
	)
	if !r.ReadUint8(&k) || !r.ReadUint16LengthPrefixed(&body) || !body.ReadUint8(&s.flags) || !body.ReadUint64(&made) ||
		!readBytes(&body, maxBlob, &s.public) || !readBytes(&body, 2*maxBlob, &s.sealed) {
		return s, errors.New("it is too short")
	}
	s.kind, s.made = kind(k), int64(made)
	if s.flags&^slotConfirmed != 0 || s.flags != 0 && s.kind != kindRecovery {
		return s, errors.New("its flags do not exist")
	}
	switch s.kind {
	case kindTPM:
		s.tpm, err = parseTPM(&body)
	case kindHostID:
		s.host, err = parseHost(&body)
	case kindPassphrase:
		s.passphrase, err = parsePassphrase(&body)
	case kindRecovery:
	default:
		err = fmt.Errorf("kind %d does not exist", k)
	}
	if err == nil && !body.Empty() {
		err = errors.New("it is too long")
	}
	return s, err
}

func readBlob(r *cryptobyte.String, b *tpm.Blob) bool {
	return readBytes(r, maxBlob, &b.Public) && readBytes(r, maxBlob, &b.Private)
}

func readBytes(r *cryptobyte.String, limit int, v *[]byte) bool {
	var x cryptobyte.String
	if !r.ReadUint16LengthPrefixed(&x) || len(x) == 0 || len(x) > limit {
		return false
	}
	*v = bytes.Clone(x)
	return true
}

func parseTPM(r *cryptobyte.String) (*tpmSlot, error) {
	s := &tpmSlot{values: make(pcr.Values)}
	var (
		bank      uint16
		selection uint32
		size      uint8
		note      cryptobyte.String
	)
	if !r.ReadUint16(&bank) || bank != bankSHA256 || !r.ReadUint24(&selection) || !pcr.Selection(selection).Valid() {
		return nil, errors.New("it does not name registers")
	}
	for _, i := range pcr.Selection(selection).Indices() {
		var v [pcr.Size]byte
		if !r.CopyBytes(v[:]) {
			return nil, errors.New("it lacks values of registers")
		}
		s.values[i] = v
	}
	if !r.ReadUint8(&size) || size != 0 && size != 65 || !r.ReadBytes(&s.approver, int(size)) ||
		!r.ReadUint64(&s.epoch) || !r.ReadUint64(&s.atMost) || !readBlob(r, &s.blob) ||
		!r.ReadUint8LengthPrefixed(&note) || len(note) > maxNote {
		return nil, errors.New("it lacks a policy or what is sealed")
	}
	if size == 0 {
		s.approver = nil
	}
	s.approver, s.note = bytes.Clone(s.approver), string(note)
	return s, nil
}

func parseHost(r *cryptobyte.String) (*hostSlot, error) {
	var (
		s      hostSlot
		source []byte
	)
	if !r.CopyBytes(s.salt[:]) || !readBytes(r, maxName, &source) {
		return nil, errors.New("its host-id slot does not name salt and source")
	}
	s.source = string(source)
	return &s, nil
}

// The bounds keep an edited header from making the box spend minutes or all
// its memory before the MAC can be checked.
func parsePassphrase(r *cryptobyte.String) (*passphraseSlot, error) {
	var s passphraseSlot
	if !r.CopyBytes(s.salt[:]) || !r.ReadUint32(&s.time) || !r.ReadUint32(&s.memory) || !r.ReadUint8(&s.lanes) {
		return nil, errors.New("its passphrase slot does not name salt and cost")
	}
	if s.time < 2 || s.time > 16 || s.memory < 19<<10 || s.memory > 128<<10 || s.lanes < 1 || s.lanes > 4 {
		return nil, errors.New("the cost of its passphrase slot is out of bounds")
	}
	return &s, nil
}
