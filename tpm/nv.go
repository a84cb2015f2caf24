package tpm

import (
	"fmt"

	"gatehouse/tpm/pcr"

	"github.com/google/go-tpm/tpm2"
)

// Index is one NV index. With Auth nil everybody may read it and only the
// owner may write it; with Auth set both need Auth. Once locked, nobody can
// write it before it is undefined, which the owner may do.
//
// A Public index everybody may read and only who has Auth may write, again and
// again. Read with Auth it proves that it was defined with that Auth; read
// without, only that it is in this TPM, whose owner may have put another there.
type Index struct {
	Handle uint32 // 0x01800000 to 0x01BFFFFF, the range that the TCG leaves to owners
	Size   int
	Auth   []byte // at most 32 bytes
	Public bool
}

// publicPolicy lets an index be read and no more. A policy, and not the owner's
// authorisation: with an owner password set, reading must go on working.
func publicPolicy() pcr.Digest { return pcr.Digest{}.Command(uint32(tpm2.TPMCCNVRead)) }

func (x Index) attributes() tpm2.TPMANV {
	if x.Public {
		return tpm2.TPMANV{AuthRead: true, AuthWrite: true, PolicyRead: true, NoDA: true, NT: tpm2.TPMNTOrdinary}
	}
	a := tpm2.TPMANV{AuthRead: true, NoDA: true, WriteDefine: true, NT: tpm2.TPMNTOrdinary}
	if x.Auth == nil {
		a.OwnerWrite = true
	} else {
		a.AuthWrite = true
	}
	return a
}

func (x Index) public() tpm2.TPMSNVPublic {
	p := tpm2.TPMSNVPublic{
		NVIndex: tpm2.TPMHandle(x.Handle), NameAlg: tpm2.TPMAlgSHA256,
		Attributes: x.attributes(), DataSize: uint16(x.Size),
	}
	if x.Public {
		policy := publicPolicy()
		p.AuthPolicy = tpm2.TPM2BDigest{Buffer: policy[:]}
	}
	return p
}

// writable refuses a Public index without an authorisation: everybody could write it.
func (x Index) writable(doing string) error {
	if x.Public && len(x.Auth) == 0 {
		return fmt.Errorf("%s: %w: it has none", doing, ErrAuth)
	}
	return nil
}

func (x Index) String() string { return fmt.Sprintf("NV index 0x%08X", x.Handle) }

// DefineNV makes the index; one that is there already is an error.
func (t *TPM) DefineNV(root Root, x Index) error {
	doing := "defining " + x.String()
	if err := x.writable(doing); err != nil {
		return err
	}
	return t.under(root, doing, func(s *scope) error {
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.session(encrypt(in))},
			Auth:       tpm2.TPM2BAuth{Buffer: password(x.Auth)},
			PublicInfo: tpm2.New2B(x.public()),
		}.Execute(s)
		return explain(doing, err)
	})
}

// UndefineNV removes the index; one that is not there is no error.
func (t *TPM) UndefineNV(root Root, handle uint32) error {
	doing := "removing " + Index{Handle: handle}.String()
	return t.under(root, doing, func(s *scope) error {
		there, err := s.present(handle)
		if err != nil || !there {
			return explain(doing, err)
		}
		_, name, err := s.readPublic(handle)
		if err != nil {
			return explain(doing, err)
		}
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.session()},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(handle), Name: name},
		}.Execute(s)
		return explain(doing, err)
	})
}

// WriteNV writes the whole index.
func (t *TPM) WriteNV(root Root, x Index, data []byte) error {
	doing := "writing " + x.String()
	if err := x.writable(doing); err != nil {
		return err
	}
	return t.under(root, doing, func(s *scope) error {
		by, index, err := s.writer(x, encrypt(in))
		if err != nil {
			return explain(doing, err)
		}
		_, err = tpm2.NVWrite{AuthHandle: by, NVIndex: index, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data}}.Execute(s)
		return explain(doing, err)
	})
}

// LockNV makes the index unwritable until it is undefined.
func (t *TPM) LockNV(root Root, x Index) error {
	doing := "locking " + x.String()
	return t.under(root, doing, func(s *scope) error {
		by, index, err := s.writer(x)
		if err != nil {
			return explain(doing, err)
		}
		_, err = tpm2.NVWriteLock{AuthHandle: by, NVIndex: index}.Execute(s)
		return explain(doing, err)
	})
}

func (s *scope) writer(x Index, opts ...tpm2.AuthOption) (tpm2.AuthHandle, tpm2.NamedHandle, error) {
	public, name, err := s.readPublic(x.Handle)
	if err != nil {
		return tpm2.AuthHandle{}, tpm2.NamedHandle{}, err
	}
	if err := x.same(public); err != nil {
		return tpm2.AuthHandle{}, tpm2.NamedHandle{}, err
	}
	index := tpm2.NamedHandle{Handle: tpm2.TPMHandle(x.Handle), Name: name}
	if x.Auth == nil {
		return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s.session(opts...)}, index, nil
	}
	by := tpm2.AuthHandle{Handle: index.Handle, Name: name, Auth: s.session(append(opts, tpm2.Auth(password(x.Auth)))...)}
	return by, index, nil
}

// ReadNV reads the whole index; locked says that it can no longer be written.
// A Public one is read with Auth where x has it, and without where x has none.
// ErrNoIndex, ErrUnwritten and ErrAuth are told apart. That an index is absent
// is believed only from an authenticated list of what there is.
func (t *TPM) ReadNV(root Root, x Index) (data []byte, locked bool, err error) {
	doing := "reading " + x.String()
	err = t.under(root, doing, func(s *scope) error {
		public, name, err := s.readPublic(x.Handle)
		if err != nil {
			there, listErr := s.present(x.Handle)
			if listErr == nil && !there {
				return fmt.Errorf("%s: %w", doing, ErrNoIndex)
			}
			return explain(doing, err)
		}
		if err := x.same(public); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		session, done, err := s.reader(x)
		if err != nil {
			return explain(doing, err)
		}
		defer done()
		handle := tpm2.TPMHandle(x.Handle)
		resp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: handle, Name: name, Auth: session},
			NVIndex:    tpm2.NamedHandle{Handle: handle, Name: name},
			Size:       uint16(x.Size),
		}.Execute(s)
		if err != nil {
			return explain(doing, err)
		}
		if len(resp.Data.Buffer) != x.Size {
			return fmt.Errorf("%s: %d instead of %d bytes came", doing, len(resp.Data.Buffer), x.Size)
		}
		data, locked = resp.Data.Buffer, public.Attributes.WriteLocked
		return nil
	})
	return data, locked, err
}

// reader is a session that may read the index; salted like any other, so that
// the answer is authenticated whichever it is. By policy it comes in the clear:
// the key of the encryption would have the authorisation in it, which the
// reader has not (Part 1, "Session-Based Encryption", sessionValue).
func (s *scope) reader(x Index) (tpm2.Session, func(), error) {
	if !x.Public || len(x.Auth) > 0 {
		return s.session(encrypt(out), tpm2.Auth(password(x.Auth))), func() {}, nil
	}
	session, done, err := s.policySession()
	if err != nil {
		return nil, nil, err
	}
	_, err = tpm2.PolicyCommandCode{PolicySession: session.Handle(), Code: tpm2.TPMCCNVRead}.Execute(s)
	if err != nil {
		done()
		return nil, nil, err
	}
	return session, done, nil
}

// same refuses an index that somebody else defined in this place. The public
// area itself is believed because the name computed from it goes into what the
// session authenticates.
func (x Index) same(public *tpm2.TPMSNVPublic) error {
	p := *public
	p.Attributes.Written, p.Attributes.WriteLocked = false, false
	if string(tpm2.Marshal(p)) != string(tpm2.Marshal(x.public())) {
		return fmt.Errorf("%w: the index was defined by somebody else", ErrForeign)
	}
	return nil
}

func (s *scope) readPublic(handle uint32) (*tpm2.TPMSNVPublic, tpm2.TPM2BName, error) {
	resp, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(handle)}.Execute(s)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	public, err := resp.NVPublic.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	name, err := tpm2.NVName(public)
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	return public, *name, nil
}

// present asks for the list of NV handles from this one on, authenticated.
func (s *scope) present(handle uint32) (bool, error) {
	resp, err := tpm2.GetCapability{
		Capability: tpm2.TPMCapHandles, Property: handle, PropertyCount: 1,
	}.Execute(s, s.session(tpm2.Audit()))
	if err != nil {
		return false, err
	}
	list, err := resp.CapabilityData.Data.Handles()
	if err != nil {
		return false, err
	}
	return len(list.Handle) > 0 && uint32(list.Handle[0]) == handle, nil
}
