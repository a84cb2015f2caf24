package vault

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"slices"

	"gatehouse/appliance/control"
	"gatehouse/tpm"
)

// InstallID is the random name of this installation.
func (v *Vault) InstallID() [16]byte { return v.installID }

// Subkey derives the key for a purpose (control.Purpose…).
func (v *Vault) Subkey(purpose string) (key [32]byte, err error) {
	if purpose == "" {
		return key, errors.New("deriving a key: it needs a purpose")
	}
	k, err := v.derive(rolePrefix+purpose, len(key))
	if err != nil {
		return key, fmt.Errorf("deriving the key for %s: %w", purpose, err)
	}
	defer clear(k)
	copy(key[:], k)
	return key, nil
}

// VolumeKey returns the 64 bytes of the data volume's aes-xts-plain64 key. The caller clears them.
func (v *Vault) VolumeKey() (key []byte, err error) {
	err = v.keys.use(func(_, volume, _ []byte) error {
		key = slices.Clone(volume)
		return nil
	})
	return key, err
}

// Trust is what guards the data key and what it is worth, whatever opened it at
// this start: the recovery key makes a sealed box no weaker one.
func (v *Vault) Trust() control.Trust {
	v.mu.Lock()
	defer v.mu.Unlock()
	return trustOf(v.h.mode, v.c.SecureBoot, v.h.measured())
}

// Claimed says whether the box has an owner: the TPM's bit, or without a TPM
// the header's. An error is no answer: the box is then locked.
func (v *Vault) Claimed(ctx context.Context) (claimed bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys.closed() {
		return false, errWiped
	}
	if !v.h.mode.sealed() {
		return v.h.flags&flagClaimed != 0, nil
	}
	if v.by == kindRecovery {
		// The TPM that knows may be gone, silent or another installation's. Only a box
		// that has an owner gets a recovery key.
		return true, nil
	}
	err = v.withClaimedAuth(func(auth []byte) error {
		claimed, _, err = v.readClaimed(auth)
		return err
	})
	if err != nil {
		return false, claimError(err)
	}
	return claimed, nil
}

func claimError(err error) error {
	if errors.Is(err, tpm.ErrNoIndex) || errors.Is(err, tpm.ErrAuth) || errors.Is(err, tpm.ErrForeign) || errors.Is(err, tpm.ErrUnwritten) {
		return lockedClaim(err)
	}
	return lockedTPM("The TPM does not say whether this box has an owner.", err)
}

// ErrClaimed means that the box has an owner already.
var ErrClaimed = errors.New("this box has an owner already")

// SetClaimed is the commit point of a claim: exactly one call succeeds, and
// only Erase undoes it. In the TPM the bit is written, then its index locked;
// a power cut between the two leaves it written, and the next Open locks it.
func (v *Vault) SetClaimed(ctx context.Context) error {
	return v.alone(ctx, v.setClaimed)
}

func (v *Vault) setClaimed() error {
	if !v.h.mode.sealed() {
		return v.claimHeader()
	}
	return v.withClaimedAuth(func(auth []byte) error {
		claimed, _, err := v.readClaimed(auth)
		if err != nil {
			return claimError(err)
		}
		if claimed {
			return ErrClaimed
		}
		root, index := v.h.tpm.root, claimedIndex(auth)
		if err := v.c.TPM.WriteNV(root, index, claimedData(v.h.installID, true)); err != nil {
			// An answer that was lost is no refusal: what counts is the bit.
			if claimed, _, readErr := v.readClaimed(auth); readErr != nil || !claimed {
				return lockedTPM("The TPM cannot record that the box has an owner.", err)
			}
		}
		if err := v.c.TPM.LockNV(root, index); err != nil {
			v.c.Log.Warn("the claimed bit is set and not locked; the next start locks it", "error", err)
		}
		return nil
	})
}

func (v *Vault) claimHeader() error {
	if v.keys.closed() {
		return errWiped
	}
	if v.h.flags&flagClaimed != 0 {
		return ErrClaimed
	}
	v.h.flags |= flagClaimed
	if err := v.save(); err != nil {
		v.h.flags &^= flagClaimed
		return err
	}
	return nil
}

// Sign signs a SHA-256 digest with the checkpoint key; the signature is ASN.1.
// The key is in the TPM and needs the data key to be used; without a TPM it is
// derived from the base secret.
func (v *Vault) Sign(ctx context.Context, digest [32]byte) (signature []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if v.signer != nil {
		return v.signTPM(v.signer.root, v.signer.checkpoint, internalCheckpoint, digest)
	}
	return v.signSoft(internalCheckpoint, digest)
}

// Public is the checkpoint key's public half.
func (v *Vault) Public() *ecdsa.PublicKey { return v.public }

// LockoutCounter is the TPM's count of failed authorisations; 0 without a TPM.
func (v *Vault) LockoutCounter(ctx context.Context) (uint32, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if !v.mode().sealed() {
		return 0, nil
	}
	return v.c.TPM.Lockout(v.tpmRoot())
}

// Wipe zeroes the keys; every later use of one is an error.
func (v *Vault) Wipe() { v.keys.wipe() }
