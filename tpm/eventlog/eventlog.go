// Package eventlog reads what the firmware says it measured, and computes registers from it: as they are, and as
// they will be with other Secure Boot keys.
//
// The form is the crypto-agile log of the "TCG PC Client Platform Firmware Profile
// Specification" (1.06, chapter 10), which Linux shows as
// /sys/kernel/security/tpm0/binary_bios_measurements. A log proves nothing by
// itself: whoever ran on the machine before may have written it. It explains
// the registers of a TPM, if it leads to them.
package eventlog

import (
	"encoding/binary"
	"errors"
	"fmt"

	"gatehouse/tpm/pcr"
)

// Limits of a log. Logs of real machines have 5 to 100 KB and up to some
// hundred events; the largest parts are dbx and the partition table.
const (
	MaxSize   = 1 << 20
	maxEvents = 4096
	maxBanks  = 16
	maxDigest = 64
)

// ErrFormat: the bytes are not a log of this form.
var ErrFormat = errors.New("not a log of measurements with SHA-256")

// Type says what an event is about (PFP, 10.4.1).
type Type uint32

// The types that are looked at.
const (
	NoAction          Type = 0x00000003 // told, not measured
	Separator         Type = 0x00000004
	IPL               Type = 0x0000000D // systemd's loader and stub use it
	VariableConfig    Type = 0x80000001 // a Secure Boot variable, as it was
	BootApplication   Type = 0x80000003 // a program that the firmware started
	FirmwareBlob      Type = 0x80000008
	FirmwareBlob2     Type = 0x8000000A
	VariableAuthority Type = 0x800000E0 // who vouched for such a program
	crtmVersion       Type = 0x00000008
)

// Event is one measurement.
type Event struct {
	PCR    int
	Type   Type
	Digest [pcr.Size]byte // SHA-256
	Data   []byte         // what it says of itself; only for some types the digest is of it
}

// Log is a log that was read.
type Log struct {
	Events []Event
	// locality is where the first command came from, part of what PCR 0 starts as.
	locality byte
}

const (
	algSHA256     = 0x000B
	headerEvent   = 32 // PCR, type, SHA-1, length
	specSignature = "Spec ID Event03\x00"
	locality      = "StartupLocality\x00"
)

// Parse reads a log. It takes no byte for granted: every length is checked
// against what is there, and what follows the last event is an error.
func Parse(b []byte) (*Log, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than the %d that are read", ErrFormat, len(b), MaxSize)
	}
	r := reader{rest: b}
	banks, err := r.header()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	l := new(Log)
	for len(r.rest) > 0 {
		if len(l.Events) == maxEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrFormat, maxEvents)
		}
		at := len(b) - len(r.rest)
		e, err := r.event(banks)
		if err != nil {
			return nil, fmt.Errorf("%w: the event at byte %d: %w", ErrFormat, at, err)
		}
		if e.Type == NoAction && e.PCR == 0 && len(e.Data) == len(locality)+1 && string(e.Data[:len(locality)]) == locality {
			l.locality = e.Data[len(locality)]
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// reader takes from the front of the rest. After an underrun ok stays false.
type reader struct {
	rest  []byte
	short bool
}

var errShort = errors.New("it ends in the middle")

func (r *reader) take(n int) []byte {
	if r.short || n < 0 || n > len(r.rest) {
		r.short = true
		return make([]byte, min(max(n, 0), maxDigest))
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) u8() int     { return int(r.take(1)[0]) }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

// data is a length of four bytes and what it counts.
func (r *reader) data() ([]byte, error) {
	n := r.u32()
	if r.short || uint64(n) > uint64(len(r.rest)) {
		return nil, errShort
	}
	return r.take(int(n)), nil
}

// header reads the first event, which is in the old form and says of which
// banks the others have digests.
func (r *reader) header() (map[uint16]int, error) {
	index, kind := r.u32(), Type(r.u32())
	sha1 := r.take(20)
	body, err := r.data()
	if err != nil {
		return nil, err
	}
	if index != 0 || kind != NoAction || string(sha1) != string(make([]byte, 20)) || len(body) < len(specSignature) ||
		string(body[:len(specSignature)]) != specSignature {
		return nil, errors.New("its first event does not say which banks it is for, as logs of TPM 2.0 do")
	}
	s := reader{rest: body[len(specSignature):]}
	s.take(8) // class of the platform, version of the specification, size of a UINTN
	n := s.u32()
	if s.short || n == 0 || n > maxBanks {
		return nil, fmt.Errorf("it is for %d banks, and 1 to %d are read", n, maxBanks)
	}
	banks := make(map[uint16]int)
	for range n {
		alg, size := s.u16(), int(s.u16())
		if _, twice := banks[alg]; twice || size == 0 || size > maxDigest {
			return nil, fmt.Errorf("its bank %#04x is there twice, or has digests of %d bytes", alg, size)
		}
		banks[alg] = size
	}
	s.take(s.u8()) // the vendor's own
	if s.short || len(s.rest) != 0 {
		return nil, errors.New("its first event is longer or shorter than it says")
	}
	if banks[algSHA256] != pcr.Size {
		return nil, errors.New("it has no digests of the SHA-256 bank")
	}
	return banks, nil
}

func (r *reader) event(banks map[uint16]int) (e Event, err error) {
	index := r.u32()
	e.Type = Type(r.u32())
	n := r.u32()
	if r.short {
		return e, errShort
	}
	if index >= pcr.Count {
		return e, fmt.Errorf("there is no PCR %d", index)
	}
	if n == 0 || int(n) > len(banks) {
		return e, fmt.Errorf("it has %d digests, and the log is for %d banks", n, len(banks))
	}
	e.PCR = int(index)
	seen := make(map[uint16]bool, n)
	for range n {
		alg := r.u16()
		size, known := banks[alg]
		if r.short {
			return e, errShort
		}
		if !known || seen[alg] {
			return e, fmt.Errorf("bank %#04x is there twice, or is not one of this log", alg)
		}
		seen[alg] = true
		digest := r.take(size)
		if alg == algSHA256 {
			copy(e.Digest[:], digest)
		}
	}
	if e.Data, err = r.data(); err != nil {
		return e, err
	}
	if !seen[algSHA256] {
		return e, errors.New("it has no digest of the SHA-256 bank")
	}
	return e, nil
}
