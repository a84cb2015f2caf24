package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"gatehouse/appliance/control"
	"gatehouse/tpm"
)

// newTPMKeys makes the box's keys in a TPM.
func (c *Config) newTPMKeys(root tpm.Root, base []byte, installID [16]byte) (*tpmKeys, error) {
	k := &tpmKeys{root: root}
	err := withAuth(base, installID, internalCheckpoint, func(auth []byte) (err error) {
		k.checkpoint, err = c.TPM.NewKey(root, auth)
		return err
	})
	if err != nil {
		return nil, lockedTPM("The TPM cannot make the checkpoint key.", err)
	}
	if err := c.addKeys(k, base, installID); err != nil {
		return nil, err
	}
	return k, nil
}

// addKeys makes what a header of version 2 does not have.
func (c *Config) addKeys(k *tpmKeys, base []byte, installID [16]byte) error {
	err := withAuth(base, installID, internalTunnel, func(auth []byte) (err error) {
		k.tunnel, err = c.TPM.NewKey(k.root, auth)
		return err
	})
	if err != nil {
		return lockedTPM("The TPM cannot make the tunnel key.", err)
	}
	err = withAuth(base, installID, internalAttest, func(auth []byte) (err error) {
		k.ak, err = c.TPM.NewAttestationKey(k.root, auth)
		return err
	})
	if err != nil {
		return lockedTPM("The TPM cannot make the attestation key.", err)
	}
	return nil
}

func withAuth(base []byte, installID [16]byte, purpose string, f func(auth []byte) error) error {
	auth, err := derive(base, installID, purpose, 32)
	if err != nil {
		return err
	}
	defer clear(auth)
	return f(auth)
}

// completeKeys makes the keys that are missing in a header of version 2. The
// checkpoint key stays what it was: logs that it signed are checked by it.
func (v *Vault) completeKeys(ctx context.Context) error {
	v.mu.Lock()
	missing := !v.h.tpm.whole()
	v.mu.Unlock()
	if !missing {
		return nil
	}
	return v.alone(ctx, func() error {
		h := v.h.clone()
		k := *h.tpm
		err := v.keys.use(func(_, _, base []byte) error { return v.c.addKeys(&k, base, v.installID) })
		if err != nil {
			return err
		}
		h.tpm = &k
		return v.write(h)
	})
}

// TunnelKey is the P-256 key by which a site shows its hub that it is this box:
// in the TPM, authorised from the base secret, or without one derived from it.
type TunnelKey struct {
	Public *ecdsa.PublicKey
	v      *Vault
	tpm    *tpmKeys // nil: derived
}

// Tunnel is the tunnel key. It is another one once the box is sealed to another TPM.
func (v *Vault) Tunnel() (*TunnelKey, error) {
	v.mu.Lock()
	k := &TunnelKey{v: v, tpm: v.h.tpm}
	if !v.h.mode.sealed() {
		k.tpm = nil
	}
	v.mu.Unlock()
	var err error
	switch {
	case k.tpm == nil:
		err = v.keys.use(func(_, _, base []byte) error {
			key, err := softKey(base, v.installID, internalTunnel)
			if err == nil {
				k.Public = &key.PublicKey
			}
			return err
		})
	case !k.tpm.whole():
		err = errors.New("this box has no tunnel key yet: it is made once a start has proved itself")
	default:
		k.Public, err = k.tpm.tunnel.Key()
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Sign signs a SHA-256 digest; the signature is ASN.1.
func (k *TunnelKey) Sign(ctx context.Context, digest [32]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if k.tpm == nil {
		return k.v.signSoft(internalTunnel, digest)
	}
	return k.v.signTPM(k.tpm.root, k.tpm.tunnel, internalTunnel, digest)
}

func (v *Vault) signTPM(root tpm.Root, key tpm.Blob, purpose string, digest [32]byte) ([]byte, error) {
	auth, err := v.derive(purpose, 32)
	if err != nil {
		return nil, err
	}
	defer clear(auth)
	// One answer that came late must not end the signatures of this run.
	if err := v.c.reopenTPM(); err != nil {
		return nil, err
	}
	return v.c.TPM.Sign(root, key, auth, digest)
}

func (v *Vault) signSoft(purpose string, digest [32]byte) (signature []byte, err error) {
	err = v.keys.use(func(_, _, base []byte) error {
		key, err := softKey(base, v.installID, purpose)
		if err != nil {
			return err
		}
		signature, err = ecdsa.SignASN1(rand.Reader, key, digest[:])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("signing with a key of the box: %w", err)
	}
	return signature, nil
}

// vouched is what the TPM signed for in this run.
type vouched struct {
	of   *tpmKeys
	ak   string
	keys []control.BoxKey
}

// vouch has the attestation key say of the others that they are in the TPM and
// stay there, once in a run of the machine: a TPM takes a second for it. Who
// wants to know it from afar asks with a question of his own.
func (v *Vault) vouch() (ak string, keys []control.BoxKey, err error) {
	v.vouching.Lock()
	defer v.vouching.Unlock()
	v.mu.Lock()
	k, sealed := v.h.tpm, v.h.mode.sealed()
	v.mu.Unlock()
	if !sealed || !k.whole() {
		return "", nil, nil
	}
	if v.vouched.of == k {
		return v.vouched.ak, v.vouched.keys, nil
	}
	ak, err = fingerprint(k.ak)
	if err != nil {
		return "", nil, err
	}
	akAuth, err := v.derive(internalAttest, 32)
	if err != nil {
		return "", nil, err
	}
	defer clear(akAuth)
	var question [tpm.MaxQualifying]byte
	if err := v.c.fill(question[:]); err != nil {
		return "", nil, err
	}
	for _, x := range []struct {
		name, purpose string
		blob          tpm.Blob
	}{{"checkpoint", internalCheckpoint, k.checkpoint}, {"tunnel", internalTunnel, k.tunnel}} {
		auth, err := v.derive(x.purpose, 32)
		if err != nil {
			return "", nil, err
		}
		_, err = v.c.TPM.Certify(k.root, k.ak, akAuth, x.blob, auth, question[:])
		clear(auth)
		if err != nil {
			return "", nil, fmt.Errorf("the %s key: %w", x.name, err)
		}
		f, err := fingerprint(x.blob)
		if err != nil {
			return "", nil, err
		}
		keys = append(keys, control.BoxKey{Name: x.name, Fingerprint: f})
	}
	v.vouched = vouched{k, ak, keys}
	return ak, keys, nil
}

// fingerprint is the SHA-256 of a public half as X.509 writes it.
func fingerprint(b tpm.Blob) (string, error) {
	key, err := b.Key()
	if err != nil {
		return "", err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("writing a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}
