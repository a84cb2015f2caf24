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

const wrapDataKey = "data key"

// kek makes the key that wraps the data key from an identifier.
func (s *hostSlot) kek(src hostid.Source) ([]byte, error) {
	digest := src.Digest()
	defer clear(digest[:])
	return hkdf.Key(sha256.New, digest[:], s.salt[:], "gatehouse/1/host-id", dataKeySize)
}

func (s *passphraseSlot) kek(passphrase []byte) []byte {
	return argon2.IDKey(passphrase, s.salt[:], s.time, s.memory, s.lanes, dataKeySize)
}

// openHost tries the identifiers of the recorded source, never those of another.
func (h *header) openHost(c *Config) ([]byte, error) {
	var ids hostid.ID
	err := error(hostid.ErrNone)
	if c.HostID != nil {
		ids, err = c.HostID()
	}
	if err != nil && !errors.Is(err, hostid.ErrNone) {
		return nil, fmt.Errorf("reading the machine's identifiers: %w", err)
	}
	for _, src := range ids {
		if src.Name != h.host.source {
			continue
		}
		kek, err := h.host.kek(src)
		if err != nil {
			return nil, err
		}
		data, err := unwrap(kek, h.wrapped[:], wrapDataKey+" "+h.mode.String(), h.installID)
		clear(kek)
		if err == nil {
			return data, nil
		}
	}
	return nil, &Locked{
		Rung:   "host-id",
		Cause:  fmt.Sprintf("This machine does not have the identifier (%s) that the data is bound to.", h.host.source),
		Advice: "Put the data back into its machine, or give the machine its old identifier. " + adviceErase,
	}
}

func (h *header) openPassphrase(c *Config) ([]byte, error) {
	if len(c.Passphrase) == 0 {
		return nil, &Locked{
			Rung:   "passphrase",
			Cause:  "The data is protected by a passphrase, and none was given.",
			Advice: c.givePassphrase(),
		}
	}
	kek := h.passphrase.kek(c.Passphrase)
	defer clear(kek)
	data, err := unwrap(kek, h.wrapped[:], wrapDataKey+" "+h.mode.String(), h.installID)
	if err != nil {
		return nil, &Locked{
			Rung:   "passphrase",
			Cause:  "The passphrase is not the one that the data is protected by.",
			Advice: c.givePassphrase(),
		}
	}
	return data, nil
}

func (c *Config) givePassphrase() string {
	if c.Form == Box {
		return "Type it at the console."
	}
	return fmt.Sprintf("Set %s to it and start again.", c.variable())
}

func (c *Config) variable() string {
	if c.Variable == "" {
		return "GATEHOUSE_KEY"
	}
	return c.Variable
}

// choose decides what guards a new data key where there is no TPM. A
// passphrase that somebody gave goes before an identifier: it was given to be
// used, and an identifier is obfuscation. In a container no identifier is the
// machine's own, so there the passphrase is required.
func (c *Config) choose(h *header) (kek []byte, err error) {
	if len(c.Passphrase) > 0 {
		if len(c.Passphrase) < MinPassphrase {
			return nil, &Locked{
				Rung:   "passphrase",
				Cause:  fmt.Sprintf("The passphrase has %d characters; the data would be as weak as that.", len(c.Passphrase)),
				Advice: fmt.Sprintf("Choose one of at least %d. %s", MinPassphrase, c.givePassphrase()),
			}
		}
		h.mode = modePassphrase
		h.passphrase = &passphraseSlot{time: passTime, memory: passMemory, lanes: passLanes}
		if err := c.fill(h.passphrase.salt[:]); err != nil {
			return nil, err
		}
		return h.passphrase.kek(c.Passphrase), nil
	}
	if c.Form == Container {
		return nil, &Locked{
			Rung:   "passphrase",
			Cause:  fmt.Sprintf("In a container the data key needs a passphrase, and %s is not set.", c.variable()),
			Advice: fmt.Sprintf("Set %s to a secret of at least %d characters that outlives the container, and start again.", c.variable(), MinPassphrase),
		}
	}
	var ids hostid.ID
	err = hostid.ErrNone
	if c.HostID != nil {
		ids, err = c.HostID()
	}
	if err != nil || len(ids) == 0 {
		return nil, &Locked{
			Rung:   "passphrase",
			Cause:  "There is neither a TPM nor a usable identifier of this machine, so a passphrase must protect the data.",
			Advice: c.givePassphrase(), Err: err,
		}
	}
	h.mode = modeHostID
	h.host = &hostSlot{source: ids[0].Name}
	if err := c.fill(h.host.salt[:]); err != nil {
		return nil, err
	}
	return h.host.kek(ids[0])
}
