package vault

import (
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"

	"gatehouse/tpm/hostid"

	"golang.org/x/crypto/argon2"
)

// Cost of a passphrase: argon2id, 64 MiB would not fit beside the rest on the
// smallest machine (256 MB); OWASP's least is 19 MiB and two passes.
const (
	passTime   = 4
	passMemory = 32 << 10 // KiB
	passLanes  = 1
)

// MinPassphrase is the shortest passphrase taken, in bytes.
const MinPassphrase = 12

// seed is what the slot's key is made of, from an identifier.
func (s *hostSlot) seed(src hostid.Source) ([]byte, error) {
	digest := src.Digest()
	defer clear(digest[:])
	return erasing(dataKeySize, func() ([]byte, error) {
		return hkdf.Key(sha256.New, digest[:], s.salt[:], "gatehouse/1/host-id", dataKeySize)
	})
}

func (s *passphraseSlot) seed(passphrase []byte) []byte {
	key, _ := erasing(dataKeySize, func() ([]byte, error) { // it has no way to fail
		return argon2.IDKey(passphrase, s.salt[:], s.time, s.memory, s.lanes, dataKeySize), nil
	})
	return key
}

// openHost tries the identifiers of the recorded source, never those of another.
func (h *header) openHost(c *Config) ([]byte, *slot, error) {
	var ids hostid.ID
	err := error(hostid.ErrNone)
	if c.HostID != nil {
		ids, err = c.HostID()
	}
	if err != nil && !errors.Is(err, hostid.ErrNone) {
		return nil, nil, fmt.Errorf("reading the machine's identifiers: %w", err)
	}
	own := h.first(kindHostID)
	for _, src := range ids {
		if src.Name != own.host.source {
			continue
		}
		seed, err := own.host.seed(src)
		if err != nil {
			return nil, nil, err
		}
		data, err := h.take(own, seed)
		clear(seed)
		if err == nil {
			return data, own, nil
		}
	}
	return nil, nil, &Locked{
		Rung:   "host-id",
		Cause:  fmt.Sprintf("This machine does not have the identifier (%s) that the data is bound to.", own.host.source),
		Advice: "Put the data back into its machine, or give the machine its old identifier. " + h.adviceRecovery(),
	}
}

func (h *header) openPassphrase(c *Config) ([]byte, *slot, error) {
	own := h.first(kindPassphrase)
	w := &waiting{used: own, lock: own.passphrase, public: own.public, inner: own.sealed, what: own.kind.String()}
	data, err := w.ask(c, h)
	return data, own, err
}

func missingPassphrase(c *Config) *Locked {
	return &Locked{
		Rung:   "passphrase",
		Cause:  "The data is protected by a passphrase, and none was given.",
		Advice: c.givePassphrase(),
	}
}

func wrongPassphrase(c *Config) *Locked {
	return &Locked{
		Rung:   "passphrase",
		Cause:  "The passphrase is not the one that the data is protected by.",
		Advice: c.givePassphrase(),
	}
}

func (c *Config) givePassphrase() string {
	if c.Form == Box {
		return "Type it at the console, or use gatehouse unlock."
	}
	return fmt.Sprintf("Set %s to it and start again.", c.variable())
}

func (c *Config) variable() string {
	if c.Variable == "" {
		return "GATEHOUSE_KEY"
	}
	return c.Variable
}

// newPassphrase makes what a passphrase needs to become a key.
func (c *Config) newPassphrase(passphrase []byte) (*passphraseSlot, []byte, error) {
	if len(passphrase) < MinPassphrase {
		return nil, nil, &Locked{
			Rung:   "passphrase",
			Cause:  fmt.Sprintf("The passphrase has %d characters; the data would be as weak as that.", len(passphrase)),
			Advice: fmt.Sprintf("Choose one of at least %d. %s", MinPassphrase, c.givePassphrase()),
		}
	}
	p := &passphraseSlot{time: passTime, memory: passMemory, lanes: passLanes}
	if err := c.fill(p.salt[:]); err != nil {
		return nil, nil, err
	}
	return p, p.seed(passphrase), nil
}

// newHost makes a slot from the first usable identifier of the machine.
func (c *Config) newHost() (s slot, seed []byte, err error) {
	var ids hostid.ID
	err = hostid.ErrNone
	if c.HostID != nil {
		ids, err = c.HostID()
	}
	if err != nil || len(ids) == 0 {
		return s, nil, &Locked{
			Rung:   "passphrase",
			Cause:  "There is neither a TPM nor a usable identifier of this machine, so a passphrase must protect the data.",
			Advice: c.givePassphrase(), Err: err,
		}
	}
	s = slot{kind: kindHostID, made: c.Now().Unix(), host: &hostSlot{source: ids[0].Name}}
	if err := c.fill(s.host.salt[:]); err != nil {
		return s, nil, err
	}
	seed, err = s.host.seed(ids[0])
	return s, seed, err
}

// choose decides what guards a new data key where there is no TPM. A
// passphrase that somebody gave goes before an identifier: it was given to be
// used, and an identifier is obfuscation. In a container no identifier is the
// machine's own, so there the passphrase is required.
func (c *Config) choose() (m mode, s slot, err error) {
	var seed []byte
	defer func() { clear(seed) }()
	switch {
	case len(c.Passphrase) > 0:
		m, s = modePassphrase, slot{kind: kindPassphrase, made: c.Now().Unix()}
		s.passphrase, seed, err = c.newPassphrase(c.Passphrase)
	case c.Form == Container:
		return m, s, &Locked{
			Rung:   "passphrase",
			Cause:  fmt.Sprintf("In a container the data key needs a passphrase, and %s is not set.", c.variable()),
			Advice: fmt.Sprintf("Set %s to a secret of at least %d characters that outlives the container, and start again.", c.variable(), MinPassphrase),
		}
	default:
		m = modeHostID
		s, seed, err = c.newHost()
	}
	if err != nil {
		return m, s, err
	}
	s.public, err = publicOf(seed)
	return m, s, err
}
