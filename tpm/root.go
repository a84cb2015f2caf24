package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Root is the storage root key (SRK) as it was when keys were made under it.
// Sessions are salted to this copy and never to what the TPM says now, so that
// somebody between us and the TPM can read nothing and forge nothing.
type Root struct {
	Public []byte // TPMT_PUBLIC
	Name   []byte
}

// persistent is where the TCG's provisioning guidance keeps the SRK.
const persistent tpm2.TPMHandle = 0x81000001

// sender resends a command that the TPM was too busy for. The same bytes: the
// nonces of a session roll only when a command was executed.
type sender struct {
	t     Transport
	until time.Time // when the operation is given up
}

const (
	rcYielded = 0x908
	rcTesting = 0x90A
	rcRetry   = 0x922
	maxRetry  = 40 // about 3.5 s in all: a self-test takes up to two

	// operationTimeout bounds a TPM that answers each command shortly before
	// its time is over. The longest operation has under 30 commands; the
	// slowest chips in the field take some 200 ms for one with a key.
	operationTimeout = time.Minute
)

func (s sender) Send(command []byte) ([]byte, error) {
	pause := time.Millisecond
	for range maxRetry {
		if !time.Now().Before(s.until) {
			return nil, fmt.Errorf("%w: not done after %v", ErrSilent, operationTimeout)
		}
		resp, err := s.t.Send(command)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("%w: %w", ErrSilent, err)
		}
		if err != nil {
			return nil, err
		}
		if err := wellFormed(command, resp); err != nil {
			return nil, err
		}
		switch binary.BigEndian.Uint32(resp[6:]) {
		case rcYielded, rcTesting, rcRetry:
			time.Sleep(pause)
			pause = min(2*pause, 100*time.Millisecond)
		default:
			return resp, nil
		}
	}
	return nil, fmt.Errorf("the TPM stayed busy: asked %d times", maxRetry)
}

// wellFormed checks the head of a response, which the library does not: a
// success has the tag of its command, and an error no sessions (Part 1,
// "Response Header").
func wellFormed(command, resp []byte) error {
	if len(resp) < headerSize || int(binary.BigEndian.Uint32(resp[2:])) != len(resp) {
		return fmt.Errorf("the TPM's response of %d bytes is not well-formed", len(resp))
	}
	want := uint16(tpm2.TPMSTNoSessions)
	if binary.BigEndian.Uint32(resp[6:]) == 0 && len(command) >= 2 {
		want = binary.BigEndian.Uint16(command)
	}
	if tag := binary.BigEndian.Uint16(resp); tag != want {
		return fmt.Errorf("the TPM's response is not well-formed: its tag is %04X, not %04X", tag, want)
	}
	return nil
}

// guard turns a panic of the TPM library into an error. The library parses
// what a TPM sends by reflection; a broken TPM must not end PID 1.
func guard(doing string, err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%s: the TPM's response cannot be parsed: %v", doing, p)
	}
}

// locked runs f with the TPM to itself.
func (t *TPM) locked(doing string, f func(sender) error) (err error) {
	if t == nil {
		return fmt.Errorf("%s: %w", doing, ErrAbsent)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	defer guard(doing, &err)
	return f(sender{t.t, time.Now().Add(operationTimeout)})
}

// scope is one operation under a root key that is loaded for it.
type scope struct {
	sender
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

// under finds the root key in this TPM and runs f with it.
func (t *TPM) under(root Root, doing string, f func(*scope) error) error {
	return t.locked(doing, func(s sender) error {
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](root.Public)
		if err != nil {
			return fmt.Errorf("%s: the stored root key cannot be read: %w", doing, err)
		}
		name, err := tpm2.ObjectName(public)
		if err != nil || !bytes.Equal(name.Buffer, root.Name) {
			return fmt.Errorf("%s: the stored root key and its name disagree", doing)
		}
		handle, flush, err := s.find(root.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		defer flush()
		return f(&scope{s, handle, *name, *public})
	})
}

// find looks where the key was kept, then makes it again: the same template in
// the same owner hierarchy gives the same key. Persistence matters where
// somebody set an owner password: then making it is refused and loading works.
func (s sender) find(name []byte) (tpm2.TPMHandle, func(), error) {
	none := func() {}
	if resp, err := (tpm2.ReadPublic{ObjectHandle: persistent}).Execute(s); err == nil {
		if bytes.Equal(resp.Name.Buffer, name) {
			return persistent, none, nil
		}
	} else if !errors.Is(err, tpm2.TPMRCHandle) {
		return 0, none, explain("reading the root key", err)
	}
	handle, _, made, err := s.primary()
	if err != nil {
		return 0, none, err
	}
	if !bytes.Equal(made.Buffer, name) {
		s.flush(handle)
		return 0, none, fmt.Errorf("looking for the root key: %w", ErrForeign)
	}
	return handle, func() { s.flush(handle) }, nil
}

// flush ignores its error: what cannot be flushed is either gone or the TPM is
// broken, and the next command says so.
func (s sender) flush(h tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(s)
}

func (s sender) primary() (tpm2.TPMHandle, tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	resp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(s)
	if err != nil {
		return 0, tpm2.TPMTPublic{}, tpm2.TPM2BName{}, explain("making the root key", err)
	}
	public, err := resp.OutPublic.Contents()
	if err != nil {
		s.flush(resp.ObjectHandle)
		return 0, tpm2.TPMTPublic{}, tpm2.TPM2BName{}, fmt.Errorf("making the root key: %w", err)
	}
	return resp.ObjectHandle, *public, resp.Name, nil
}

// Root finds the storage root key, or makes it. It is kept at its customary
// handle if that is free; a key of somebody else there is left alone.
func (t *TPM) Root() (root Root, err error) {
	err = t.locked("finding the root key", func(s sender) error {
		handle, public, name, err := s.primary()
		if err != nil {
			// With an owner password set, what is already there must do.
			if kept, ok := s.kept(); ok {
				root = kept
				return nil
			}
			return err
		}
		defer s.flush(handle)
		want, err := tpm2.ObjectName(&public)
		if err != nil || !bytes.Equal(want.Buffer, name.Buffer) {
			return errors.New("making the root key: the TPM gives a name that does not fit the key")
		}
		if !isRoot(&public) {
			return errors.New("making the root key: the TPM made another key than was asked for")
		}
		root = Root{Public: tpm2.Marshal(public), Name: name.Buffer}
		_, err = tpm2.ReadPublic{ObjectHandle: persistent}.Execute(s)
		if err == nil || !errors.Is(err, tpm2.TPMRCHandle) {
			return explain("reading the root key", err)
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     tpm2.NamedHandle{Handle: handle, Name: name},
			PersistentHandle: persistent,
		}.Execute(s)
		return explain("keeping the root key", err)
	})
	return root, err
}

// kept returns the key at the customary handle if it is one of our template.
func (s sender) kept() (Root, bool) {
	resp, err := tpm2.ReadPublic{ObjectHandle: persistent}.Execute(s)
	if err != nil {
		return Root{}, false
	}
	public, err := resp.OutPublic.Contents()
	if err != nil || !isRoot(public) {
		return Root{}, false
	}
	name, err := tpm2.ObjectName(public)
	if err != nil || !bytes.Equal(name.Buffer, resp.Name.Buffer) {
		return Root{}, false
	}
	return Root{Public: tpm2.Marshal(*public), Name: name.Buffer}, true
}

// isRoot compares everything but the point with the template: attributes such
// as noDA decide whether power cuts can lock the key away.
func isRoot(public *tpm2.TPMTPublic) bool {
	p := *public
	p.Unique = tpm2.ECCSRKTemplate.Unique
	return bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(tpm2.ECCSRKTemplate))
}

const nonceSize = 32

// session is salted to the stored root key, used once and flushed by its use.
func (s *scope) session(opts ...tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, append(opts, tpm2.Salted(s.handle, s.public))...)
}

// policySession is salted too. It lasts until done is called, and three of them
// fill a TPM.
func (s *scope) policySession(opts ...tpm2.AuthOption) (session tpm2.Session, done func(), err error) {
	session, flush, err := tpm2.PolicySession(s, tpm2.TPMAlgSHA256, nonceSize, append(opts, tpm2.Salted(s.handle, s.public))...)
	if err != nil {
		return nil, nil, err
	}
	return session, func() { _ = flush() }, nil
}

// self authorises use of the root key, whose password is empty.
func (s *scope) self(opts ...tpm2.AuthOption) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: s.handle, Name: s.name, Auth: s.session(opts...)}
}

// password makes an authorisation free of zero bytes, at a cost of a fifth of a
// bit. A TPM drops those at the end (Part 1, "Authorization Session Formats");
// go-tpm 0.9.8 drops everything from the first one on, wherever it is, and
// then one random password in nine is refused.
func password(auth []byte) []byte {
	return bytes.ReplaceAll(auth, []byte{0}, []byte{1})
}

func encrypt(dir int) tpm2.AuthOption {
	switch dir {
	case in:
		return tpm2.AESEncryption(128, tpm2.EncryptIn)
	case out:
		return tpm2.AESEncryption(128, tpm2.EncryptOut)
	}
	return tpm2.AESEncryption(128, tpm2.EncryptInOut)
}

// Which first parameter of a command travels encrypted.
const (
	in = iota
	out
	both
)
