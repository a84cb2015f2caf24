package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"

	"gatehouse/tpm/pcr"
)

// policyPCR is the register of Secure Boot: its variables, and who vouched for
// what was started (PFP, 3.3.4.8).
const policyPCR = 7

// A guid is written as UEFI stores it: the first three parts little-endian.
type guid [16]byte

var (
	globalVariable = guid{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	imageSecurity  = guid{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
)

// variable is UEFI_VARIABLE_DATA (PFP, 10.4.2.6).
type variable struct {
	vendor guid
	name   string
	data   []byte
}

// longestName of a variable, in UTF-16 units; the longest that is measured is DeployedMode.
const longestName = 64

func parseVariable(b []byte) (v variable, err error) {
	r := reader{rest: b}
	copy(v.vendor[:], r.take(len(v.vendor)))
	units, size := binary.LittleEndian.Uint64(r.take(8)), binary.LittleEndian.Uint64(r.take(8))
	if r.short || units > longestName || 2*units > uint64(len(r.rest)) || size != uint64(len(r.rest))-2*units {
		return v, errors.New("it is not the name and content of a variable")
	}
	name := make([]uint16, units)
	for i := range name {
		name[i] = r.u16()
	}
	v.name, v.data = string(utf16.Decode(name)), r.rest
	return v, nil
}

func (v variable) bytes() []byte {
	units := utf16.Encode([]rune(v.name))
	b := append([]byte(nil), v.vendor[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(units)))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(v.data)))
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, v.data...)
}

// State is Secure Boot as it is to be. Contents are as they are measured, which
// is as the variables hold them: lists of signatures, without what authenticated
// the write. nil is as in the log; empty is none.
type State struct {
	Enabled          bool
	PK, KEK, DB, DBX []byte
	// Authority is the entry of db (EFI_SIGNATURE_DATA: owner, then certificate)
	// that vouches for the loader. nil is as in the log.
	Authority []byte
}

// PredictSecureBoot says what PCR 7 will be at the next start of this machine
// once its Secure Boot is as wanted. The log has to be the one of this start,
// and to lead to PCR 7 as it is now (Differ): the caller checks that.
//
// It knows firmware that measures as the specification and EDK II do: SecureBoot,
// PK, KEK, db, dbx and what else there is, a separator, then each authority once,
// when it first vouches for something. Where the log shows anything else it
// refuses: a wrong prediction locks a box. What it cannot foresee is firmware
// that now starts drivers of cards unasked, and will ask for their signatures
// then: these are further authorities.
func PredictSecureBoot(l *Log, want State) ([pcr.Size]byte, error) {
	var zero [pcr.Size]byte
	p, err := l.policy()
	if err != nil {
		return zero, fmt.Errorf("predicting PCR 7: %w", err)
	}
	if err := p.change(want); err != nil {
		return zero, fmt.Errorf("predicting PCR 7: %w", err)
	}
	return p.register(), nil
}

// policy is the events of PCR 7, taken apart.
type policy struct {
	before      []entry // in order, up to the separator
	separator   [pcr.Size]byte
	authorities []variable
}

// entry is an event: its digest, or the variable that the digest is of.
type entry struct {
	digest [pcr.Size]byte
	of     *variable
}

// policy takes the events of PCR 7 apart, and refuses those that it could not
// put together again.
func (l *Log) policy() (*policy, error) {
	p := new(policy)
	separated := false
	for _, e := range l.Events {
		if e.PCR != policyPCR || e.Type == NoAction {
			continue
		}
		var v variable
		if e.Type == VariableConfig || e.Type == VariableAuthority {
			var err error
			if v, err = parseVariable(e.Data); err != nil {
				return nil, fmt.Errorf("a variable that was measured: %w", err)
			}
			if sha256.Sum256(v.bytes()) != e.Digest {
				return nil, fmt.Errorf("this firmware measures the variable %.64q in a way of its own", v.name)
			}
		}
		switch {
		case e.Type == Separator && !separated:
			separated, p.separator = true, e.Digest
		case e.Type == VariableAuthority && separated:
			p.authorities = append(p.authorities, v)
		case e.Type == VariableConfig && !separated && p.find(v.vendor, v.name) == nil:
			p.before = append(p.before, entry{e.Digest, &v})
		case e.Type != Separator && e.Type != VariableAuthority && e.Type != VariableConfig && !separated:
			p.before = append(p.before, entry{digest: e.Digest})
		default:
			return nil, fmt.Errorf("this firmware measures in an order of its own (event of type %#x)", uint32(e.Type))
		}
	}
	if !separated {
		return nil, errors.New("the log has no separator in PCR 7: it is not complete")
	}
	return p, nil
}

// find is the variable of this name that was measured before the separator.
func (p *policy) find(vendor guid, name string) *variable {
	for _, e := range p.before {
		if e.of != nil && e.of.vendor == vendor && e.of.name == name {
			return e.of
		}
	}
	return nil
}

func (p *policy) set(vendor guid, name string, data []byte) error {
	v := p.find(vendor, name)
	if v == nil {
		return fmt.Errorf("this firmware does not measure the variable %s", name)
	}
	v.data = data
	return nil
}

func (p *policy) enabled() (bool, error) {
	v := p.find(globalVariable, "SecureBoot")
	if v == nil || len(v.data) != 1 || v.data[0] > 1 {
		return false, errors.New("this firmware does not measure whether Secure Boot is on")
	}
	return v.data[0] == 1, nil
}

func (p *policy) change(want State) error {
	was, err := p.enabled()
	if err != nil {
		return err
	}
	if !was && len(p.authorities) > 0 {
		return errors.New("with Secure Boot off the firmware measured who vouches for programs: what it measures with it on cannot be foreseen")
	}
	on := []byte{0}
	if want.Enabled {
		on[0] = 1
	}
	if err := p.set(globalVariable, "SecureBoot", on); err != nil {
		return err
	}
	for _, v := range []struct {
		vendor guid
		name   string
		data   []byte
	}{{globalVariable, "PK", want.PK}, {globalVariable, "KEK", want.KEK}, {imageSecurity, "db", want.DB}, {imageSecurity, "dbx", want.DBX}} {
		if v.data == nil {
			continue
		}
		if err := p.set(v.vendor, v.name, v.data); err != nil {
			return err
		}
	}
	if p.find(globalVariable, "SetupMode") != nil { // few firmwares measure it
		setup := []byte{1}
		if pk := p.find(globalVariable, "PK"); pk != nil && len(pk.data) > 0 {
			setup[0] = 0
		}
		if err := p.set(globalVariable, "SetupMode", setup); err != nil {
			return err
		}
	}
	return p.vouch(want)
}

// vouch sets who vouches for what is started.
func (p *policy) vouch(want State) error {
	if !want.Enabled {
		p.authorities = nil
		return nil
	}
	if want.Authority == nil {
		if len(p.authorities) == 0 {
			return errors.New("with Secure Boot on something has to vouch for the loader, and it is not said which certificate does")
		}
		return nil
	}
	if db := p.find(imageSecurity, "db"); db == nil || !bytes.Contains(db.data, want.Authority) {
		return errors.New("the certificate that is to vouch for the loader is not in db")
	}
	given := variable{imageSecurity, "db", want.Authority}
	same := func(v variable) bool { return bytes.Equal(v.bytes(), given.bytes()) }
	switch {
	case slices.ContainsFunc(p.authorities, same):
	case len(p.authorities) <= 1:
		p.authorities = []variable{given}
	default:
		return fmt.Errorf("%d certificates vouch for what is started now: which of them the new one replaces cannot be foreseen", len(p.authorities))
	}
	return nil
}

// register is PCR 7 after all of it.
func (p *policy) register() [pcr.Size]byte {
	var r [pcr.Size]byte
	for _, e := range p.before {
		if e.of != nil {
			e.digest = sha256.Sum256(e.of.bytes())
		}
		r = pcr.Extend(r, e.digest)
	}
	r = pcr.Extend(r, p.separator)
	for _, v := range p.authorities {
		r = pcr.Extend(r, sha256.Sum256(v.bytes()))
	}
	return r
}
