package vault

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"gatehouse/tpm"
)

// The allowlists that were last kept, for a start that cannot open the data.
const (
	listsMagic = "GHLISTS1"
	listsAt    = 256 << 10
	listsPlace = 96 << 10
)

func listsPlaces() places { return places{listsMagic, listsAt, listsPlace, "the allowlists"} }

// MaxLists is how much fits, in bytes.
const MaxLists = listsPlace - placeHead - sha256.Size

// ReadLists gives the newest copy that is whole; nil if there is none.
func ReadLists(dev Device) ([]byte, error) {
	content, _, _, err := listsPlaces().newest(dev)
	return content, err
}

// WriteLists keeps a copy.
func WriteLists(dev Device, content []byte) error { return listsPlaces().write(dev, content) }

// Standing is what the TPM says of the copies of network settings and lists in META.
type Standing int

// The standings.
const (
	Unknown Standing = iota // nobody can say: no TPM of this box, or it remembers nothing
	Same                    // they are what was kept last
	Other                   // they are not: somebody wrote the disk, or the power went between two writes
)

// keptDigest is of both copies, and of the installation that they belong to.
func keptDigest(dev Device, installID [16]byte) (digest [32]byte, err error) {
	network, err := ReadNetwork(dev)
	if err != nil {
		return digest, err
	}
	lists, err := ReadLists(dev)
	if err != nil {
		return digest, err
	}
	a, b := sha256.Sum256(network), sha256.Sum256(lists)
	return sha256.Sum256(slices.Concat([]byte("gatehouse/1/kept\x00"), installID[:], a[:], b[:])), nil
}

func keptIndex(auth []byte) tpm.Index {
	return tpm.Index{Handle: nvKept, Size: sha256.Size, Auth: auth, Public: true}
}

// RememberKept has the TPM remember the copies in META as they are now. It
// comes after they were written: a cut in between leaves copies that a locked
// box does not use, and the next start that opens comes here again.
func (v *Vault) RememberKept(ctx context.Context) error {
	return v.alone(ctx, func() error {
		if !v.h.mode.sealed() || v.c.TPM == nil {
			return nil
		}
		digest, err := keptDigest(v.c.Meta, v.h.installID)
		if err != nil {
			return err
		}
		auth, err := v.derive(internalKept, 32)
		if err != nil {
			return err
		}
		defer clear(auth)
		root, x := v.h.tpm.root, keptIndex(auth)
		was, _, err := v.c.TPM.ReadNV(root, x)
		switch {
		case err == nil && slices.Equal(was, digest[:]):
			return nil
		case errors.Is(err, tpm.ErrNoIndex):
			err = v.c.TPM.DefineNV(root, x)
		case errors.Is(err, tpm.ErrUnwritten):
			err = nil
		}
		if err == nil {
			err = v.c.TPM.WriteNV(root, x, digest[:])
		}
		if err != nil {
			return fmt.Errorf("having the TPM remember lists and network of the locked state: %w", err)
		}
		return nil
	})
}

// JudgeKept asks the TPM whether the copies in META are what was kept last, for
// a box that cannot open its data. The session is salted to the root key of the
// header; a header that names another than this TPM's gets no answer.
func JudgeKept(ctx context.Context, c Config) (Standing, error) {
	if err := ctx.Err(); err != nil {
		return Unknown, err
	}
	p, err := readPages(c.Meta)
	if err != nil {
		return Unknown, err
	}
	if p.newest == nil || !p.newest.mode.sealed() || c.TPM == nil {
		return Unknown, nil
	}
	got, _, err := c.TPM.ReadNV(p.newest.tpm.root, keptIndex(nil))
	switch {
	case errors.Is(err, tpm.ErrNoIndex), errors.Is(err, tpm.ErrUnwritten), errors.Is(err, tpm.ErrForeign):
		return Unknown, nil
	case err != nil:
		return Unknown, fmt.Errorf("asking the TPM for lists and network of the locked state: %w", err)
	}
	digest, err := keptDigest(c.Meta, p.newest.installID)
	if err != nil {
		return Unknown, err
	}
	if !slices.Equal(got, digest[:]) {
		return Other, nil
	}
	return Same, nil
}
