// Package vault keeps the data key behind the slots of a header in META, and decides when it may be opened.
package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/firmware/approval"
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
	System     *approval.System // what the running image brings; nil: nothing is measured
	Rand       io.Reader        // nil: crypto/rand
	Now        func() time.Time // nil: time.Now
	Log        *slog.Logger     // nil: nothing is logged
}

func (c Config) ready() Config {
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c *Config) fill(b []byte) error {
	if _, err := io.ReadFull(c.Rand, b); err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	return nil
}

// Inspection is what can be said of a vault without opening it.
type Inspection struct {
	Blank     bool   // META was never written
	Mechanism string // tpm, host-id, passphrase, or none if blank or unreadable
	InstallID [16]byte
	Latched   bool // the TPM says that this box is sealed to it
	Trust     control.Trust
	Problem   *Locked // why it will not open, as far as can be told now

	// Of a header that is sound; nothing vouches for it before it is open.
	Slots    []control.KeySlot
	Recovery string // none, unconfirmed, confirmed
}

// Inspect reads META and the latch; it opens nothing.
func Inspect(ctx context.Context, c Config) (Inspection, error) {
	c = c.ready()
	i := Inspection{Mechanism: mode(0).String(), Recovery: "none"}
	p, err := look(ctx, &c)
	if err != nil && !errors.As(err, &i.Problem) {
		return i, err
	}
	i.Trust = trustOf(0, c.SecureBoot, false)
	if p != nil && p.pages != nil {
		i.Blank, i.Latched = p.unwritten(), p.latched
		if p.newest != nil {
			i.Mechanism, i.InstallID = p.newest.mode.String(), p.newest.installID
			i.Trust = trustOf(p.newest.mode, c.SecureBoot, p.newest.measured())
			i.Slots, i.Recovery = p.newest.list(nil), p.newest.recoveryState()
		}
	}
	return i, nil
}

// sight is META and what the TPM says of it.
type sight struct {
	*pages
	latched bool
}

// look reads META, then asks the TPM whether that can be the truth. A header
// that is sealed to a TPM is judged by unsealing it, so only the other cases
// ask for the latch here.
func look(ctx context.Context, c *Config) (*sight, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := readPages(c.Meta)
	if err != nil {
		return nil, lockedMeta(err)
	}
	s := &sight{pages: p}
	if p.newest != nil && p.newest.mode.sealed() {
		return s, nil
	}
	set, err := c.latch()
	if err != nil {
		return s, lockedTPM("The TPM does not work, so it cannot say whether this machine is sealed to it.", err)
	}
	s.latched = set
	switch {
	case set && p.newest != nil:
		return s, lockedLatch(fmt.Sprintf("The TPM says that this machine is sealed to it, and the header says %s.", p.newest.mode), nil)
	case set && p.unwritten():
		return s, lockedLatch("The TPM says that this machine is sealed to it, and META is blank.", nil)
	case p.newest == nil && !p.unwritten():
		return s, lockedHeader(p.problem)
	}
	return s, nil
}

// Vault is an open data key.
type Vault struct {
	c    Config
	keys *arena

	mu        sync.Mutex // header and pages
	h         *header
	p         *pages
	committed bool
	used      slot   // by which the data key was opened at this start
	behind    string // what the TPM remembers and the data do not show
	pending   string // last group of a recovery key that waits to be confirmed

	vouching sync.Mutex
	vouched  vouched

	// Set before anybody else has the vault, and never after.
	installID [16]byte
	by        kind     // of the slot that opened the data at this start
	note      string   // what a person should know of how the data was opened
	signer    *tpmKeys // of the checkpoint key; nil: it is derived
	public    *ecdsa.PublicKey
}

// Open opens the data key. ErrBlank: there is none yet, see Create. *Locked:
// it stays closed. On a box the TPM is closed behind it for the rest of the
// machine's run, except when there is nothing yet.
func Open(ctx context.Context, c Config) (*Vault, error) {
	c = c.ready()
	s, err := look(ctx, &c)
	if err != nil {
		c.closeQuietly()
		return nil, err
	}
	if s.newest == nil {
		return nil, ErrBlank
	}
	h := &s.newest.header
	var (
		data []byte
		used *slot
	)
	switch h.mode {
	case modeTPM, modeTPMPassphrase:
		data, used, err = h.openTPM(&c)
	case modeHostID:
		data, used, err = h.openHost(&c)
	case modePassphrase:
		data, used, err = h.openPassphrase(&c)
	}
	defer clear(data)
	if !h.mode.sealed() {
		c.closeQuietly()
	}
	if err != nil {
		var l *Locked
		if errors.As(err, &l) && l.waits != nil {
			l.waits.s = s
		}
		return nil, err
	}
	return finish(&c, s, data, used)
}

// finish makes a vault of a data key that was opened.
func finish(c *Config, s *sight, data []byte, used *slot) (*Vault, error) {
	v, err := assemble(c, s, data, used)
	if err != nil {
		return nil, err
	}
	if err := v.recover(); err != nil {
		v.Wipe()
		return nil, err
	}
	return v, nil
}

// closeQuietly closes the TPM where nothing was taken out of it: a failure
// there is logged, what stands in the way of the key is the other error.
func (c *Config) closeQuietly() {
	if err := c.closeTPM(nil); err != nil {
		c.Log.Warn("the TPM could not be closed", "error", err)
	}
}

// assemble checks the header under the data key and takes the keys into the arena.
func assemble(c *Config, s *sight, data []byte, used *slot) (*Vault, error) {
	macKey, err := derive(data, s.newest.installID, internalMAC, 32)
	if err != nil {
		return nil, err
	}
	if err := s.newest.verify(macKey); err != nil {
		return nil, lockedHeader(err)
	}
	v, err := newVault(c, &s.newest.header, data, used)
	if err != nil {
		return nil, err
	}
	v.p, v.committed = s.pages, true
	return v, nil
}

// inner unwraps what the data key encrypts.
func (h *header) inner(data []byte, purpose, what string, wrapped []byte) ([]byte, error) {
	kek, err := derive(data, h.installID, purpose, 32)
	if err != nil {
		return nil, err
	}
	defer clear(kek)
	plain, err := unwrap(kek, wrapped, what, h.installID)
	if err != nil {
		return nil, lockedHeader(err)
	}
	return plain, nil
}

func newVault(c *Config, h *header, data []byte, used *slot) (*Vault, error) {
	volume, err := h.inner(data, internalVolume, "volume key", h.volume[:])
	if err != nil {
		return nil, err
	}
	defer clear(volume)
	base, err := h.inner(data, internalBase, "base secret", h.base[:])
	if err != nil {
		return nil, err
	}
	defer clear(base)
	v := &Vault{c: *c, h: h, used: *used, by: used.kind, installID: h.installID, signer: h.tpm}
	v.c.Passphrase = nil
	if v.public, err = h.checkpointKey(base); err != nil {
		return nil, err
	}
	if v.keys, err = newArena(data, volume, base); err != nil {
		return nil, err
	}
	if !v.keys.locked {
		c.Log.Warn("the keys could not be locked in memory: they may reach swap; give the service CAP_IPC_LOCK or turn swap off")
	}
	return v, nil
}

func (h *header) checkpointKey(base []byte) (*ecdsa.PublicKey, error) {
	if h.mode.sealed() {
		key, err := h.tpm.checkpoint.Key()
		if err != nil {
			return nil, lockedHeader(err)
		}
		return key, nil
	}
	key, err := softKey(base, h.installID, internalCheckpoint)
	if err != nil {
		return nil, err
	}
	return &key.PublicKey, nil
}

// recover ends what a power cut interrupted. It runs at every Open.
func (v *Vault) recover() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.p.mirror(v.c.Meta); err != nil {
		return lockedMeta(err)
	}
	if !v.h.mode.sealed() {
		return nil
	}
	return v.withClaimedAuth(v.settle)
}

func (v *Vault) settleNow() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.withClaimedAuth(v.settle)
}

func (v *Vault) withClaimedAuth(f func(auth []byte) error) error {
	auth, err := v.derive(internalClaimed, 32)
	if err != nil {
		return err
	}
	defer clear(auth)
	return f(auth)
}

func (v *Vault) derive(purpose string, size int) (key []byte, err error) {
	err = v.keys.use(func(_, _, base []byte) error {
		key, err = derive(base, v.installID, purpose, size)
		return err
	})
	return key, err
}

// save writes the next generation of the header. v.mu is held.
func (v *Vault) save() error { return v.write(v.h) }

// write puts h in the place of the header, under the data key that is open.
func (v *Vault) write(h *header) (err error) {
	var macKey []byte
	err = v.keys.use(func(data, _, _ []byte) error {
		macKey, err = derive(data, h.installID, internalMAC, 32)
		return err
	})
	if err != nil {
		return err
	}
	defer clear(macKey)
	return v.writeUnder(h, macKey)
}

func (v *Vault) writeUnder(h *header, macKey []byte) error {
	next := *h
	next.generation = v.h.generation + 1
	raw := next.marshal(macKey)
	at, committed, err := writeHeader(v.c.Meta, v.p, raw)
	if !committed {
		return lockedMeta(err)
	}
	if err != nil {
		v.c.Log.Warn("the next start mends this", "error", err)
	}
	s, err := parseHeader(raw)
	if err != nil {
		return fmt.Errorf("reading back the header that was written: %w", err)
	}
	v.h = &next
	v.p = &pages{newest: s, raw: raw, at: at, current: [copies]bool{true, true}}
	return nil
}
