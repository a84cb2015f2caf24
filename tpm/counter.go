package tpm

import (
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Counter is an NV index that only goes up. Everybody may read it, the owner
// counts; removed and defined anew it goes on above what the TPM has ever
// counted (TPM 2.0 Library, Part 1, "NV Counters").
type Counter struct {
	Handle uint32 // 0x01800000 to 0x01BFFFFF
}

const counterSize = 8

func (c Counter) String() string { return Index{Handle: c.Handle}.String() }

func (c Counter) public() tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(c.Handle), NameAlg: tpm2.TPMAlgSHA256, DataSize: counterSize,
		Attributes: tpm2.TPMANV{AuthRead: true, NoDA: true, OwnerWrite: true, NT: tpm2.TPMNTCounter},
	}
}

// DefineCounter makes the counter and counts once: before that it has no value,
// and a name that would change.
func (t *TPM) DefineCounter(root Root, c Counter) error {
	doing := "defining the counter " + c.String()
	return t.under(root, doing, func(s *scope) error {
		// A power cut between the two steps leaves one that never counted.
		if _, err := s.nameOfCounter(c, false); err == nil {
			return explain(doing, s.count(c, false))
		}
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.session()},
			PublicInfo: tpm2.New2B(c.public()),
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		return explain(doing, s.count(c, false))
	})
}

// Count adds one. What is sealed for at most the value before does not open any more.
func (t *TPM) Count(root Root, c Counter) error {
	doing := "counting up " + c.String()
	return t.under(root, doing, func(s *scope) error { return explain(doing, s.count(c, true)) })
}

func (s *scope) count(c Counter, written bool) error {
	name, err := s.nameOfCounter(c, written)
	if err != nil {
		return err
	}
	_, err = tpm2.NVIncrement{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.session()},
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(c.Handle), Name: name},
	}.Execute(s)
	return err
}

// ReadCounter reads it, authenticated.
func (t *TPM) ReadCounter(root Root, c Counter) (n uint64, err error) {
	doing := "reading the counter " + c.String()
	err = t.under(root, doing, func(s *scope) error {
		name, err := s.counterName(c)
		if err != nil {
			if there, listErr := s.present(c.Handle); listErr == nil && !there {
				return fmt.Errorf("%s: %w", doing, ErrNoIndex)
			}
			return explain(doing, err)
		}
		handle := tpm2.TPMHandle(c.Handle)
		resp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: handle, Name: name, Auth: s.session(encrypt(out))},
			NVIndex:    tpm2.NamedHandle{Handle: handle, Name: name}, Size: counterSize,
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		if len(resp.Data.Buffer) != counterSize {
			return fmt.Errorf("%s: %d instead of %d bytes came", doing, len(resp.Data.Buffer), counterSize)
		}
		n = binary.BigEndian.Uint64(resp.Data.Buffer)
		return nil
	})
	return n, err
}

// counterName is the name that the counter has once it was counted: computed by
// us, so that an index of another kind in its place is refused by the TPM itself.
func (s *scope) counterName(c Counter) (tpm2.TPM2BName, error) { return s.nameOfCounter(c, true) }

func (s *scope) nameOfCounter(c Counter, written bool) (tpm2.TPM2BName, error) {
	public, name, err := s.readPublic(c.Handle)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	want := c.public()
	want.Attributes.Written = written
	if string(tpm2.Marshal(*public)) != string(tpm2.Marshal(want)) {
		want.Attributes.Written = false
		if string(tpm2.Marshal(*public)) == string(tpm2.Marshal(want)) {
			return tpm2.TPM2BName{}, fmt.Errorf("%s: %w", c, ErrUnwritten)
		}
		return tpm2.TPM2BName{}, fmt.Errorf("%w: %s was defined by somebody else", ErrForeign, c)
	}
	return name, nil
}

// counterAtMost adds to a policy session that the counter is at most n.
func (s *scope) counterAtMost(session tpm2.Session, c Counter, n uint64) error {
	name, err := s.counterName(c)
	if err != nil {
		return err
	}
	handle := tpm2.TPMHandle(c.Handle)
	_, err = tpm2.PolicyNV{
		AuthHandle: tpm2.AuthHandle{Handle: handle, Name: name, Auth: s.session()},
		NVIndex:    tpm2.NamedHandle{Handle: handle, Name: name}, PolicySession: session.Handle(),
		OperandB: tpm2.TPM2BOperand{Buffer: binary.BigEndian.AppendUint64(nil, n)}, Operation: tpm2.TPMEOUnsignedLE,
	}.Execute(s)
	return err
}
