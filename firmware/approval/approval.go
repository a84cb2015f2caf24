// Package approval is what a release brings to be recognised by: the registers that its release key approves, one
// approval for each way in which firmware may start it.
//
// It travels in the UKI as two sections, which the stub passes on as files: the
// approvals themselves (.pcrsig, not measured, since it speaks of what is
// measured) and the public key (.pcrpkey, measured).
package approval

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math"

	"gatehouse/tpm/pcr"
)

// Where the stub of systemd puts the two sections, below the root of the
// initramfs (systemd-stub(7)).
const (
	SignatureFile = ".extra/tpm2-pcr-signature.json"
	KeyFile       = ".extra/tpm2-pcr-public-key.pem"
)

// MaxSize is more than either of them needs.
const MaxSize = 16 << 10

const (
	format   = "gatehouse approvals 1"
	maxPaths = 8
	keyBlock = "PUBLIC KEY"
)

// ErrMalformed: the bytes are not what Make writes.
var ErrMalformed = errors.New("not the approvals of a release")

// Start is one way of starting the system: its name, and the approval of the
// registers that it leads to.
type Start struct {
	Path     string
	Approval pcr.Approval
}

// System is what a release says of itself.
type System struct {
	Key    *ecdsa.PublicKey // P-256, of the release
	Epoch  uint64           // from 1; goes up when older systems shall open nothing any more
	Starts []Start
}

// Reference is what approvals of an epoch are signed under: those of an older
// one open nothing that was sealed to this one.
func Reference(epoch uint64) string { return fmt.Sprintf("gatehouse/epoch-%d", epoch) }

// Approvals are those of all ways.
func (s System) Approvals() []pcr.Approval {
	var out []pcr.Approval
	for _, x := range s.Starts {
		out = append(out, x.Approval)
	}
	return out
}

// Started says in which of the approved ways a system was started of which the
// registers hold these values.
func (s System) Started(now pcr.Values) (path string, ok bool) {
	d := pcr.Digest{}.PCR(now)
	for _, x := range s.Starts {
		if x.Approval.Policy == d {
			return x.Path, true
		}
	}
	return "", false
}

// Expected are the registers after a start in one way.
type Expected struct {
	Path      string
	Registers pcr.Values
}

// document is the form in which approvals travel. There is one way to write
// each: Open takes nothing that Make would not have written.
type document struct {
	Format string      `json:"format"`
	Epoch  uint64      `json:"epoch"`
	Starts []signature `json:"starts"`
}

type signature struct {
	Path      string `json:"path"`
	Policy    string `json:"policy"`    // hex
	Signature []byte `json:"signature"` // base64
}

// Make approves a release. The same key and registers give the same bytes.
func Make(key *ecdsa.PrivateKey, epoch uint64, starts []Expected) ([]byte, error) {
	d := document{Format: format, Epoch: epoch}
	for _, s := range starts {
		a, err := pcr.Approve(key, Reference(epoch), s.Registers)
		if err != nil {
			return nil, err
		}
		d.Starts = append(d.Starts, signature{s.Path, hex.EncodeToString(a.Policy[:]), a.Signature})
	}
	b, err := d.bytes()
	if err != nil {
		return nil, err
	}
	public, err := EncodeKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if _, err := Open(b, public); err != nil {
		return nil, fmt.Errorf("approving a release: %w", err)
	}
	return b, nil
}

func (d document) bytes() ([]byte, error) {
	b, err := json.MarshalIndent(d, "", " ")
	return append(b, '\n'), err
}

// EncodeKey is the public half as it travels, PEM.
func EncodeKey(k *ecdsa.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(k)
	if err != nil {
		return nil, fmt.Errorf("writing the release key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

// Open reads what a release says of itself, and checks that its key says so.
// Whether that key is the right one is not decided here: a box knows the key
// that its data is sealed under, and firmware with Secure Boot starts only what
// its owner signed.
func Open(signatures, key []byte) (System, error) {
	fail := func(text string) (System, error) { return System{}, fmt.Errorf("%w: %s", ErrMalformed, text) }
	if len(signatures) > MaxSize || len(key) > MaxSize {
		return fail("they are too long")
	}
	public, err := decodeKey(key)
	if err != nil {
		return System{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var d document
	dec := json.NewDecoder(bytes.NewReader(signatures))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return System{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fail("something follows them")
	}
	if again, err := d.bytes(); err != nil || !bytes.Equal(again, signatures) {
		return fail("they are written in another way than they are made")
	}
	if d.Format != format || d.Epoch == 0 || d.Epoch > math.MaxInt64 || len(d.Starts) == 0 || len(d.Starts) > maxPaths {
		return fail("the form is another, or the epoch, or the number of ways to start")
	}
	s := System{Key: public, Epoch: d.Epoch}
	seen := make(map[string]bool)
	for _, x := range d.Starts {
		policy, err := hex.DecodeString(x.Policy)
		if err != nil || len(policy) != pcr.Size || hex.EncodeToString(policy) != x.Policy || !name(x.Path) || seen[x.Path] {
			return fail(fmt.Sprintf("the way %.20q", x.Path))
		}
		seen[x.Path] = true
		a := pcr.Approval{Policy: pcr.Digest(policy), Signature: x.Signature}
		if err := a.Check(public, Reference(d.Epoch)); err != nil {
			return System{}, fmt.Errorf("%w: the way %s: %w", ErrMalformed, x.Path, err)
		}
		s.Starts = append(s.Starts, Start{x.Path, a})
	}
	return s, nil
}

// name says whether s is the name of a way: lower-case letters and hyphens.
func name(s string) bool {
	for _, c := range s {
		if (c < 'a' || c > 'z') && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 20
}

func decodeKey(text []byte) (*ecdsa.PublicKey, error) {
	p, rest := pem.Decode(text)
	if p == nil || p.Type != keyBlock || len(p.Headers) != 0 || len(rest) != 0 {
		return nil, errors.New("the release key is not one PEM block " + keyBlock)
	}
	k, err := x509.ParsePKIXPublicKey(p.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the release key: %w", err)
	}
	public, ok := k.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, errors.New("the release key is not P-256")
	}
	if again, err := EncodeKey(public); err != nil || !bytes.Equal(again, text) {
		return nil, errors.New("the release key is written in another way than it is made")
	}
	return public, nil
}
