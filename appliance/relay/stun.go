package relay

import (
	"crypto/hmac"
	"crypto/sha1" // MESSAGE-INTEGRITY of RFC 8489; HMAC does not lean on what is broken of it
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// A browser that comes by ICE-TCP sends STUN messages (RFC 8489), each in a
// frame of a length (2, big-endian) and that many bytes (RFC 4571, RFC 6544).
// Its first is a binding request, of which browsers need about 100 bytes.
const (
	frameHead = 2
	stunHead  = 20
	// MaxBinding is the longest first message with its frame.
	MaxBinding = frameHead + 548

	bindingRequest = 0x0001
	magicCookie    = 0x2112A442

	attrUsername  = 0x0006
	attrIntegrity = 0x0008
)

var errNotICE = errors.New("not a framed STUN binding request")

// FirstICE judges what has come of a connection so far: whether it can still
// begin with a browser's first message, and whether that is complete. More may
// follow it: a browser asks again before it has an answer.
func FirstICE(b []byte) (done bool, err error) {
	if len(b) > 0 && b[0] > MaxBinding>>8 {
		return false, errNotICE
	}
	if len(b) < frameHead {
		return false, nil
	}
	size := int(binary.BigEndian.Uint16(b))
	if size < stunHead || frameHead+size > MaxBinding {
		return false, fmt.Errorf("%w: a frame of %d bytes", errNotICE, size)
	}
	m := b[frameHead:min(len(b), frameHead+size)]
	want := append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, bindingRequest), uint16(size-stunHead)), 0x21, 0x12, 0xA4, 0x42)
	if n := min(len(m), len(want)); string(m[:n]) != string(want[:n]) || size%4 != 0 {
		return false, errNotICE
	}
	return len(m) == size, nil
}

// binding is a browser's binding request.
type binding struct {
	ufrag  string // of the end that it is for: the first part of its USERNAME
	signed []byte // what MESSAGE-INTEGRITY is over
	sum    []byte
}

// readBinding reads a first message, which is complete.
func readBinding(b []byte) (binding, error) {
	var r binding
	if done, err := FirstICE(b); err != nil || !done {
		return r, errors.Join(errNotICE, err)
	}
	m := b[frameHead : frameHead+int(binary.BigEndian.Uint16(b))]
	for at := stunHead; at < len(m); {
		if len(m)-at < 4 {
			return r, fmt.Errorf("%w: an attribute is cut", errNotICE)
		}
		kind, size := binary.BigEndian.Uint16(m[at:]), int(binary.BigEndian.Uint16(m[at+2:]))
		padded := (size + 3) &^ 3
		if len(m)-at-4 < padded {
			return r, fmt.Errorf("%w: an attribute is longer than its message", errNotICE)
		}
		value := m[at+4:][:size]
		switch {
		case r.sum != nil: // what follows is not protected by it, and says nothing
		case kind == attrUsername:
			ufrag, _, ok := strings.Cut(string(value), ":")
			if r.ufrag != "" || !ok || !isUfrag(ufrag) {
				return r, fmt.Errorf("%w: its user name is not one", errNotICE)
			}
			r.ufrag = ufrag
		case kind == attrIntegrity:
			if size != sha1.Size || r.ufrag == "" {
				return r, fmt.Errorf("%w: its integrity is not one", errNotICE)
			}
			// The length in the head counts up to this attribute and no further.
			r.signed = append(r.signed, m[:at]...)
			binary.BigEndian.PutUint16(r.signed[2:], uint16(at+4+sha1.Size-stunHead))
			r.sum = value
		}
		at += 4 + padded
	}
	if r.sum == nil {
		return r, fmt.Errorf("%w: it has no integrity", errNotICE)
	}
	return r, nil
}

// by says whether the holder of the password made it.
func (r binding) by(password string) bool {
	h := hmac.New(sha1.New, []byte(password))
	h.Write(r.signed)
	return hmac.Equal(h.Sum(nil), r.sum)
}

// Names of ICE registrations: a ufrag that cannot be guessed, since it alone
// says which of all ends is meant, and a password as RFC 8445 wants it.
const (
	ufragSize   = 32
	minPassword = 22
	maxPassword = 256
)

func isUfrag(s string) bool {
	return len(s) == ufragSize && strings.Trim(s, "0123456789abcdef") == ""
}

func isPassword(s string) bool {
	return len(s) >= minPassword && len(s) <= maxPassword &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == ""
}
