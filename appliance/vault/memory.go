package vault

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"gatehouse/tpm"
)

// What the TPM remembers of how far the data had come: the newest signed entry of the
// audit log, and the generation of the header. Neither stops anybody who puts an
// older copy of the disk back, but it is shown that somebody did. A box without
// a TPM remembers nothing.
type memory struct {
	audit      uint64
	generation uint64
}

const memorySize = 16

func (m memory) bytes() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, m.audit), m.generation)
}

// withMemory hands f the index with its authorisation. v.mu is held.
func (v *Vault) withMemory(f func(tpm.Index) error) error {
	auth, err := v.derive(internalMemory, 32)
	if err != nil {
		return err
	}
	defer clear(auth)
	return f(tpm.Index{Handle: nvMemory, Size: memorySize, Auth: auth, Public: true})
}

func (v *Vault) readMemory(x tpm.Index) (memory, error) {
	b, _, err := v.c.TPM.ReadNV(v.h.tpm.root, x)
	if err != nil {
		return memory{}, err
	}
	return memory{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}, nil
}

// Remember has the TPM remember the newest signed entry of the audit log. It
// never remembers less than before: what was seen to be older stays so.
func (v *Vault) Remember(ctx context.Context, audit uint64) error {
	return v.alone(ctx, func() error {
		if !v.h.mode.sealed() || v.c.TPM == nil {
			return nil
		}
		return v.withMemory(func(x tpm.Index) error {
			was, err := v.readMemory(x)
			if errors.Is(err, tpm.ErrNoIndex) {
				err = v.c.TPM.DefineNV(v.h.tpm.root, x)
			} else if errors.Is(err, tpm.ErrUnwritten) {
				err = nil
			}
			next := memory{max(was.audit, audit), max(was.generation, v.h.generation)}
			if err == nil && next != was {
				err = v.c.TPM.WriteNV(v.h.tpm.root, x, next.bytes())
			}
			if err != nil {
				return fmt.Errorf("having the TPM remember how far the data have come: %w", err)
			}
			return nil
		})
	})
}

// Compare holds the data against what the TPM remembers: the newest entry of the
// audit log, and the newest that was signed (0: none was). What it finds, Behind
// tells.
func (v *Vault) Compare(ctx context.Context, newest, signed uint64) error {
	return v.alone(ctx, func() error {
		if !v.h.mode.sealed() || v.c.TPM == nil {
			return nil
		}
		return v.withMemory(func(x tpm.Index) error {
			m, err := v.readMemory(x)
			switch {
			case errors.Is(err, tpm.ErrNoIndex), errors.Is(err, tpm.ErrUnwritten):
				if signed > 0 {
					v.behind = "What the TPM remembered of them is gone: another system on this machine removed it."
				}
			case errors.Is(err, tpm.ErrForeign), errors.Is(err, tpm.ErrAuth):
				v.behind = "What the TPM remembers is not from this box: another system on this machine put it there."
			case err != nil:
				return fmt.Errorf("asking the TPM how far the data had come: %w", err)
			case newest < m.audit:
				v.behind = fmt.Sprintf("The audit log ends at entry %d, and the TPM remembers entry %d: an older copy of the data was put back.", newest, m.audit)
			case v.h.generation < m.generation:
				v.behind = fmt.Sprintf("The keys' header is of generation %d, and the TPM remembers %d: an older copy of it was put back.", v.h.generation, m.generation)
			}
			return nil
		})
	})
}

// Behind says in words that the data are older than the TPM remembers; "" if
// they are not, or nothing remembers.
func (v *Vault) Behind() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.behind
}
