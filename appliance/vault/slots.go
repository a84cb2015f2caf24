package vault

import (
	"crypto/hpke"
	"errors"
	"fmt"
	"slices"

	"gatehouse/appliance/secret"
)

// A slot holds the data key encrypted to a public key (HPKE, RFC 9180, with the
// hybrid of ML-KEM-768 and X25519, so that a disk that is copied today is not
// read by the computers of tomorrow). Its private half is derived from what
// the slot is made of. So a new data key can be given to every slot while
// nobody is there to type a passphrase or the recovery key, and a data key
// that leaked opens no slot.
func kem() hpke.KEM { return hpke.MLKEM768X25519() }

func hpkeInfo(what string, installID [16]byte) []byte {
	return append([]byte("gatehouse/2/"+what+"\x00"), installID[:]...)
}

// publicOf is the public half that belongs to a seed of 32 bytes.
func publicOf(seed []byte) (public []byte, err error) {
	secret.Do(func() {
		var key hpke.PrivateKey
		if key, err = kem().DeriveKeyPair(seed); err == nil {
			public = slices.Clone(key.PublicKey().Bytes())
		}
	})
	if err != nil {
		return nil, fmt.Errorf("making the key of a slot: %w", err)
	}
	return public, nil
}

func sealTo(public, plain []byte, what string, installID [16]byte) (sealed []byte, err error) {
	secret.Do(func() {
		var key hpke.PublicKey
		if key, err = kem().NewPublicKey(public); err == nil {
			sealed, err = hpke.Seal(key, hpke.HKDFSHA256(), hpke.AES256GCM(), hpkeInfo(what, installID), plain)
			sealed = slices.Clone(sealed)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("writing a slot: %w", err)
	}
	return sealed, nil
}

func openWith(seed, sealed []byte, what string, installID [16]byte) (plain []byte, err error) {
	plain = make([]byte, 0, len(sealed))
	secret.Do(func() {
		var key hpke.PrivateKey
		if key, err = kem().DeriveKeyPair(seed); err != nil {
			return
		}
		var p []byte
		p, err = hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), hpkeInfo(what, installID), sealed)
		plain = append(plain, p...)
		clear(p)
	})
	return plain, err
}

const guardInfo = "guard"

// give writes the data key into a slot. With a guard the passphrase's key is
// the inner of two.
func (h *header) give(s *slot, data []byte) (err error) {
	plain := data
	if s.kind == kindTPM && h.guard != nil {
		if plain, err = sealTo(h.guard.public, data, guardInfo, h.installID); err != nil {
			return err
		}
	}
	s.sealed, err = sealTo(s.public, plain, s.kind.String(), h.installID)
	return err
}

// take reads the data key out of a slot that no guard is behind.
func (h *header) take(s *slot, seed []byte) ([]byte, error) {
	return checkSize(openWith(seed, s.sealed, s.kind.String(), h.installID))
}

func checkSize(data []byte, err error) ([]byte, error) {
	if err == nil && len(data) != dataKeySize {
		err = errors.New("what a slot holds is no data key")
	}
	if err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

// measured says that a release that we approve is in the policy.
func (h *header) measured() bool {
	s := h.first(kindTPM)
	return s != nil && s.tpm.approver != nil
}

// first is the first slot of a kind; nil if there is none.
func (h *header) first(k kind) *slot {
	for i := range h.slots {
		if h.slots[i].kind == k {
			return &h.slots[i]
		}
	}
	return nil
}

// clone is a copy whose slots can be changed without changing h's: a change
// that is not written did not happen.
func (h *header) clone() *header {
	c := *h
	c.slots = slices.Clone(h.slots)
	return &c
}

// lead puts a slot first, in the place of those of the kinds.
func (h *header) lead(s slot, data []byte, instead ...kind) error {
	for _, k := range instead {
		h.without(k, nil)
	}
	if err := h.give(&s, data); err != nil {
		return err
	}
	h.slots = append([]slot{s}, h.slots...)
	return nil
}

// without drops the slots of a kind, but for some.
func (h *header) without(k kind, but func(*slot) bool) {
	h.slots = slices.DeleteFunc(h.slots, func(s slot) bool { return s.kind == k && (but == nil || !but(&s)) })
}
