// Package vault keeps the data key behind the slots of a header in META, and decides when it may be opened.
package vault

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/tpm"
	"gatehouse/tpm/hostid"
)

// Device is META: the partition, or a file of the same size.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// Form is where the program runs.
type Form int

// The forms.
const (
	Box       Form = iota // our own image
	Host                  // a service on somebody's system
	Container             // a container: nothing of the machine is its own
)

// Config is what a vault is opened or created with.
type Config struct {
	Meta       Device
	TPM        *tpm.TPM                  // nil: there is none; one that fails is not none, see tpm.Find
	HostID     func() (hostid.ID, error) // nil: there is none
	Passphrase []byte                    // typed, or GATEHOUSE_KEY; empty: none given
	Variable   string                    // what the passphrase's variable is called; "" is GATEHOUSE_KEY
	Form       Form
	SecureBoot bool             // as the firmware says
	Rand       io.Reader        // nil: crypto/rand
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: nothing is logged
}

// ErrBlank is returned by Open when META was never written and no latch says otherwise.
var ErrBlank = errors.New("META is blank: there is no data key yet")

// PCRChange is a platform register that is not what it was when the key was sealed.
type PCRChange struct {
	Index    int
	Old, New string // hex
}

// Locked says why the data key stays closed, and what to do about it.
type Locked struct {
	Rung   string // tpm, srk, pcr, latch, header, host-id, passphrase, claim
	Cause  string // one sentence
	Advice string // one sentence
	PCRs   []PCRChange
	Err    error // beneath, if any
}

func (l *Locked) Error() string {
	s := l.Cause + " " + l.Advice
	if l.Err != nil {
		s += fmt.Sprintf(" (%v)", l.Err)
	}
	return s
}

// Unwrap returns the error beneath.
func (l *Locked) Unwrap() error { return l.Err }

// Inspection is what can be said of a vault without opening it.
type Inspection struct {
	Blank     bool   // META was never written
	Mechanism string // tpm, host-id, passphrase, or none if blank or unreadable
	InstallID [16]byte
	Latched   bool   // the TPM says that this box is sealed to it
	Problem   string // why it will not open, as far as can be told now
}

// Vault is an open data key.
type Vault struct{}

var errWiped = errors.New("the keys were wiped")

// Inspect reads META and the latch; it opens nothing.
func Inspect(ctx context.Context, c Config) (Inspection, error) { return Inspection{}, errWiped }

// Open opens the data key. ErrBlank: there is none yet, see Create. *Locked: it stays closed.
func Open(ctx context.Context, c Config) (*Vault, error) { return nil, errWiped }

// Create makes new keys in memory; nothing is written before Commit.
func Create(ctx context.Context, c Config) (*Vault, error) { return nil, errWiped }

// Commit writes what Create made.
func (v *Vault) Commit(ctx context.Context) error { return errWiped }

// Erase forgets the data key for good; a new one can be made after a restart.
func Erase(ctx context.Context, c Config) error { return errWiped }

// InstallID is the random name of this installation.
func (v *Vault) InstallID() [16]byte { return [16]byte{} }

// Subkey derives the key for a purpose.
func (v *Vault) Subkey(purpose string) ([32]byte, error) { return [32]byte{}, errWiped }

// VolumeKey returns the 64 bytes of the data volume's aes-xts-plain64 key. The caller wipes them.
func (v *Vault) VolumeKey() ([]byte, error) { return nil, errWiped }

// Trust is what guards the data key and what it is worth.
func (v *Vault) Trust() control.Trust { return control.Trust{} }

// Claimed says whether the box has an owner.
func (v *Vault) Claimed(ctx context.Context) (bool, error) { return false, errWiped }

// SetClaimed is the commit point of a claim. It cannot be undone but by Erase.
func (v *Vault) SetClaimed(ctx context.Context) error { return errWiped }

// Sign signs a SHA-256 digest with the checkpoint key; the signature is ASN.1.
func (v *Vault) Sign(ctx context.Context, digest [32]byte) ([]byte, error) { return nil, errWiped }

// Public is the checkpoint key's public half.
func (v *Vault) Public() *ecdsa.PublicKey { return nil }

// LockoutCounter is the TPM's count of failed authorisations; 0 without a TPM.
func (v *Vault) LockoutCounter(ctx context.Context) (uint32, error) { return 0, errWiped }

// Wipe zeroes the keys; every later use is an error.
func (v *Vault) Wipe() {}
