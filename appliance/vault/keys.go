package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"sync"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/secret"
)

var errWiped = errors.New("the keys were wiped from memory")

const (
	dataKeySize   = 32
	volumeKeySize = 64
	baseSize      = 32
)

// arena keeps the keys in memory of their own: outside the Go heap, so that
// the runtime never copies them; locked, so that they never reach swap; left
// out of core dumps; and without any access but while a key is used, so that a
// stray read elsewhere in the process faults instead of reading them.
//
// What is derived passes through the Go heap and the stack of the standard
// library's HMAC and AES; package secret erases it there, in programs that were
// built for that.
type arena struct {
	mu     sync.Mutex
	page   []byte
	wiped  bool
	locked bool // against swap
}

func newArena(data, volume, base []byte) (*arena, error) {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("making memory for the keys: %w", err)
	}
	a := &arena{page: page}
	// A service without CAP_IPC_LOCK may lock nothing; its keys are then in
	// swap if the machine has any. Said in the log, not fatal.
	a.locked = unix.Mlock(page) == nil
	if err := unix.Madvise(page, unix.MADV_DONTDUMP); err != nil {
		a.wipe()
		return nil, fmt.Errorf("keeping the keys out of dumps: %w", err)
	}
	copy(page, data)
	copy(page[dataKeySize:], volume)
	copy(page[dataKeySize+volumeKeySize:], base)
	if err := unix.Mprotect(page, unix.PROT_NONE); err != nil {
		a.wipe()
		return nil, fmt.Errorf("closing the memory of the keys: %w", err)
	}
	return a, nil
}

// use opens the keys while f runs. f must not keep them.
func (a *arena) use(f func(data, volume, base []byte) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.wiped {
		return errWiped
	}
	if err := unix.Mprotect(a.page, unix.PROT_READ); err != nil {
		return fmt.Errorf("opening the memory of the keys: %w", err)
	}
	const v, b = dataKeySize, dataKeySize + volumeKeySize
	err := f(a.page[:v:v], a.page[v:b:b], a.page[b:b+baseSize])
	return errors.Join(err, unix.Mprotect(a.page, unix.PROT_NONE))
}

// replace puts another data key in the place of the one that is kept.
func (a *arena) replace(data []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.wiped {
		return errWiped
	}
	if err := unix.Mprotect(a.page, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return fmt.Errorf("opening the memory of the keys: %w", err)
	}
	copy(a.page, data)
	return unix.Mprotect(a.page, unix.PROT_NONE)
}

func (a *arena) closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wiped
}

func (a *arena) wipe() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.wiped {
		return
	}
	a.wiped = true
	if unix.Mprotect(a.page, unix.PROT_READ|unix.PROT_WRITE) == nil {
		clear(a.page)
	}
	_ = unix.Munmap(a.page) // what cannot be unmapped is zeroed
}

// derive is HKDF-SHA-256 with the install id as salt. internal keeps what the
// vault uses for itself apart from what a role may ever be given by name.
func derive(from []byte, installID [16]byte, purpose string, size int) (key []byte, err error) {
	key, err = erasing(size, func() ([]byte, error) {
		return hkdf.Key(sha256.New, from, installID[:], "gatehouse/1/"+purpose, size)
	})
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	return key, nil
}

// erasing makes a key of size bytes by f, and leaves no other copy of it.
func erasing(size int, f func() ([]byte, error)) (key []byte, err error) {
	key = make([]byte, size)
	secret.Do(func() {
		var k []byte
		if k, err = f(); err == nil && copy(key, k) != len(k) {
			err = fmt.Errorf("it has %d bytes, not %d", len(k), size)
		}
		clear(k)
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// What the vault derives for itself. No purpose of a role begins like these.
const (
	internalMAC        = "vault:header" // of the data key; what follows the volume's is of the base secret
	internalVolume     = "vault:volume"
	internalBase       = "vault:base"
	internalClaimed    = "vault:nv-claimed"
	internalCheckpoint = "vault:checkpoint"
	internalMemory     = "vault:nv-memory"
	internalAttest     = "vault:attestation"
	internalTunnel     = "vault:tunnel"
	internalKept       = "vault:nv-kept"
	rolePrefix         = "role:"
)

// wrap encrypts a key under another, bound to what it is and to the install.
func wrap(key, plain []byte, what string, installID [16]byte) (sealed []byte, err error) {
	sealed = make([]byte, 0, len(plain)+wrapOverhead)
	secret.Do(func() {
		var aead cipher.AEAD
		if aead, err = newAEAD(key); err == nil {
			sealed = aead.Seal(sealed, nil, plain, wrapData(what, installID))
		}
	})
	return sealed, err
}

func unwrap(key, sealed []byte, what string, installID [16]byte) (plain []byte, err error) {
	plain = make([]byte, 0, max(0, len(sealed)-wrapOverhead))
	secret.Do(func() {
		var aead cipher.AEAD
		if aead, err = newAEAD(key); err == nil {
			plain, err = aead.Open(plain, nil, sealed, wrapData(what, installID))
		}
	})
	return plain, err
}

// wrapOverhead is what AES-GCM adds: nonce and tag.
const wrapOverhead = 12 + 16

func wrapData(what string, installID [16]byte) []byte {
	return append([]byte(what+"\x00"), installID[:]...)
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("wrapping a key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("wrapping a key: %w", err)
	}
	return aead, nil
}

// softKey is a key of the box where there is no TPM: P-256, from 48 derived
// bytes reduced to [1, n-1] (FIPS 186-5, A.2.1: the bias is below 2⁻¹²⁸).
func softKey(base []byte, installID [16]byte, purpose string) (*ecdsa.PrivateKey, error) {
	seed, err := derive(base, installID, purpose, 48)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	order := new(big.Int).Sub(elliptic.P256().Params().N, big.NewInt(1))
	d := new(big.Int).SetBytes(seed)
	d.Add(d.Mod(d, order), big.NewInt(1))
	raw := d.FillBytes(make([]byte, 32))
	defer clear(raw)
	defer clear(d.Bits())
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw)
	if err != nil {
		return nil, fmt.Errorf("making a key of the box: %w", err)
	}
	return key, nil
}
