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
	headerVersion = 1
	headerFixed   = len(headerMagic) + 2 + 4
	maxHeader     = 16 << 10
	bankSHA256    = 0x000B
)

// mode is what guards the data key. It is read from the header, never guessed.
type mode uint8

const (
	modeTPM        mode = 1
	modeHostID     mode = 2
	modePassphrase mode = 3
)

func (m mode) String() string {
	switch m {
	case modeTPM:
		return "tpm"
	case modeHostID:
		return "host-id"
	case modePassphrase:
		return "passphrase"
	}
	return "none"
}

const (
	flagSettled = 1 << 0 // the TPM holds latch and claimed bit
	flagClaimed = 1 << 1 // without a TPM: the box has an owner
	flagsKnown  = flagSettled | flagClaimed
)

const (
	gcmOverhead   = 12 + 16 // nonce and tag
	wrappedKey    = 32 + gcmOverhead
	wrappedVolume = 64 + gcmOverhead
	maxBlob       = 2048
	maxName       = 64
)

// header is one generation of what META says.
type header struct {
	generation uint64
	installID  [16]byte
	mode       mode
	flags      uint8
	created    int64 // Unix seconds
	wrapped    [wrappedKey]byte
	volume     [wrappedVolume]byte

	tpm        *tpmSlot
	host       *hostSlot
	passphrase *passphraseSlot
}

// tpmSlot is what the TPM needs to give the key that wraps the data key.
type tpmSlot struct {
	root       tpm.Root
	values     pcr.Values // at the time of sealing, to name what changed
	sealed     tpm.Blob
	checkpoint tpm.Blob // signing key, authorised from the data key
	latch      uint32   // NV indices
	claimed    uint32
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
	b.AddBytes(h.volume[:])
	b.AddUint8(1) // slots
	b.AddUint8(uint8(h.mode))
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddBytes(h.wrapped[:])
		switch h.mode {
		case modeTPM:
			h.tpm.add(b)
		case modeHostID:
			b.AddBytes(h.host.salt[:])
			addBytes(b, []byte(h.host.source))
		case modePassphrase:
			b.AddBytes(h.passphrase.salt[:])
			b.AddUint32(h.passphrase.time)
			b.AddUint32(h.passphrase.memory)
			b.AddUint8(h.passphrase.lanes)
		}
	})
	return b.BytesOrPanic() // fails only on a slot over 64 KiB, which the limits exclude
}

func (s *tpmSlot) add(b *cryptobyte.Builder) {
	addBytes(b, s.root.Public)
	addBytes(b, s.root.Name)
	b.AddUint16(bankSHA256)
	b.AddUint24(uint32(s.values.Selection()))
	for _, i := range s.values.Selection().Indices() {
		v := s.values[i]
		b.AddBytes(v[:])
	}
	for _, blob := range []tpm.Blob{s.sealed, s.checkpoint} {
		addBytes(b, blob.Public)
		addBytes(b, blob.Private)
	}
	b.AddUint32(s.latch)
	b.AddUint32(s.claimed)
}

// marshal returns the header as META keeps it.
func (h *header) marshal(macKey []byte) []byte {
	body := h.body()
	var b cryptobyte.Builder
	b.AddBytes([]byte(headerMagic))
	b.AddUint16(headerVersion)
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
	if version != headerVersion {
		return nil, fmt.Errorf("the header has version %d; this program knows version %d: start the version that wrote it", version, headerVersion)
	}
	s := &stored{covered: bytes.Clone(covered), mac: bytes.Clone(mac)}
	if err := s.parse(body); err != nil {
		return nil, fmt.Errorf("%w: %w", errHeader, err)
	}
	return s, nil
}

func (h *header) parse(body []byte) error {
	r := cryptobyte.String(body)
	var (
		m, slots, kind uint8
		created        uint64
		slot           cryptobyte.String
	)
	if !r.ReadUint64(&h.generation) || !r.CopyBytes(h.installID[:]) || !r.ReadUint8(&m) || !r.ReadUint8(&h.flags) ||
		!r.ReadUint64(&created) || !r.CopyBytes(h.volume[:]) || !r.ReadUint8(&slots) || !r.ReadUint8(&kind) ||
		!r.ReadUint16LengthPrefixed(&slot) || !r.Empty() {
		return errors.New("its parts do not fit its length")
	}
	h.mode, h.created = mode(m), int64(created)
	switch {
	case slots != 1 || mode(kind) != h.mode:
		return errors.New("it must have one slot, of its mode")
	case h.flags&^flagsKnown != 0, h.mode == modeTPM && h.flags&flagClaimed != 0, h.mode != modeTPM && h.flags&flagSettled != 0:
		return errors.New("its flags do not fit its mode")
	case h.generation == 0:
		return errors.New("generation 0 does not exist")
	}
	if !slot.CopyBytes(h.wrapped[:]) {
		return errors.New("its slot is too short")
	}
	var err error
	switch h.mode {
	case modeTPM:
		h.tpm, err = parseTPM(&slot)
	case modeHostID:
		h.host, err = parseHost(&slot)
	case modePassphrase:
		h.passphrase, err = parsePassphrase(&slot)
	default:
		err = fmt.Errorf("mode %d does not exist", m)
	}
	if err == nil && !slot.Empty() {
		err = errors.New("its slot is too long")
	}
	return err
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
	)
	if !readBytes(r, maxBlob, &s.root.Public) || !readBytes(r, maxName+4, &s.root.Name) ||
		!r.ReadUint16(&bank) || bank != bankSHA256 || !r.ReadUint24(&selection) || !pcr.Selection(selection).Valid() {
		return nil, errors.New("its TPM slot does not name root key and registers")
	}
	for _, i := range pcr.Selection(selection).Indices() {
		var v [pcr.Size]byte
		if !r.CopyBytes(v[:]) {
			return nil, errors.New("its TPM slot lacks values of registers")
		}
		s.values[i] = v
	}
	if !readBytes(r, maxBlob, &s.sealed.Public) || !readBytes(r, maxBlob, &s.sealed.Private) ||
		!readBytes(r, maxBlob, &s.checkpoint.Public) || !readBytes(r, maxBlob, &s.checkpoint.Private) ||
		!r.ReadUint32(&s.latch) || !r.ReadUint32(&s.claimed) {
		return nil, errors.New("its TPM slot lacks keys")
	}
	// Other indices belong to somebody else; a header must not send us there.
	if s.latch != nvLatch || s.claimed != nvClaimed {
		return nil, errors.New("its TPM slot names NV indices that are not ours")
	}
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
