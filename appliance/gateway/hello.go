package gateway

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"

	"gatehouse/appliance/handover"
	"gatehouse/appliance/relay"
)

// TLS alerts (RFC 8446, 6.2; RFC 7301, 3.2).
const (
	alertIllegalParameter      = 47
	alertNoApplicationProtocol = 120
)

const (
	recordHandshake  = 22
	recordHead       = 5
	maxRecord        = 1 << 14
	clientHello      = 1
	extensionALPN    = 16
	maxHelloBytes    = handover.MaxPeeked
	maxHelloFirstPut = 2 << 10 // most ClientHellos, post-quantum key share included
)

var errHello = errors.New("not a TLS ClientHello")

// hello collects the records of a ClientHello as they arrive. Every byte is
// looked at once, however small the pieces.
type hello struct {
	raw []byte // all that was read; handed over with the connection
	off int    // start of the first record in raw that is not complete
	msg []byte // handshake bytes of the complete records
}

// feed says whether the ClientHello is complete now.
func (h *hello) feed() (bool, error) {
	for {
		r := h.raw[h.off:]
		if len(r) > 0 && r[0] != recordHandshake || len(r) > 1 && r[1] != 3 {
			return false, errHello
		}
		if len(r) < recordHead {
			return false, nil
		}
		size := int(r[3])<<8 | int(r[4])
		if size == 0 || size > maxRecord {
			return false, fmt.Errorf("%w: a record of %d bytes", errHello, size)
		}
		if len(r) < recordHead+size {
			// A wrong message type is seen in the first bytes, not after 16 KiB.
			if len(h.msg) == 0 && len(r) > recordHead && r[recordHead] != clientHello {
				return false, fmt.Errorf("%w: handshake message %d", errHello, r[recordHead])
			}
			return false, nil
		}
		h.msg = append(h.msg, r[recordHead:recordHead+size]...)
		h.off += recordHead + size
		if h.msg[0] != clientHello {
			return false, fmt.Errorf("%w: handshake message %d", errHello, h.msg[0])
		}
		if len(h.msg) < 4 {
			continue
		}
		switch want := 4 + (int(h.msg[1])<<16 | int(h.msg[2])<<8 | int(h.msg[3])); {
		case want > maxHelloBytes:
			return false, fmt.Errorf("%w: it announces %d bytes", errHello, want)
		case len(h.msg) > want:
			return false, fmt.Errorf("%w: %d bytes follow it in its record", errHello, len(h.msg)-want)
		case len(h.msg) == want:
			return true, nil
		}
	}
}

// protocols reads the ALPN list of a complete ClientHello (RFC 8446, 4.1.2 and
// RFC 7301, 3.1), without GREASE (RFC 8701). All else in it is the console's to
// judge; its frame must be right all the same.
func (h *hello) protocols() ([]string, error) {
	var random, session, suites, compression, extensions cryptobyte.String
	var version uint16
	s := cryptobyte.String(h.msg[4:])
	if !s.ReadUint16(&version) || !s.ReadBytes((*[]byte)(&random), 32) ||
		!s.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!s.ReadUint8LengthPrefixed(&compression) || len(compression) == 0 {
		return nil, fmt.Errorf("%w: its fixed part is malformed", errHello)
	}
	if s.Empty() {
		return nil, nil
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return nil, fmt.Errorf("%w: its extensions are malformed", errHello)
	}
	var found []string
	seen := false
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return nil, fmt.Errorf("%w: its extensions are malformed", errHello)
		}
		if kind != extensionALPN {
			continue
		}
		var list cryptobyte.String
		if seen || !data.ReadUint16LengthPrefixed(&list) || list.Empty() || !data.Empty() {
			return nil, fmt.Errorf("%w: its ALPN is malformed", errHello)
		}
		seen = true
		for !list.Empty() {
			var p cryptobyte.String
			if !list.ReadUint8LengthPrefixed(&p) || p.Empty() {
				return nil, fmt.Errorf("%w: its ALPN is malformed", errHello)
			}
			if !grease(p) {
				found = append(found, string(p))
			}
		}
	}
	return found, nil
}

func grease(p []byte) bool { return len(p) == 2 && p[0] == p[1] && p[0]&0xF == 0xA }

// meeting is the kind that stays in this process: the end of a session.
const meeting handover.Kind = "meeting"

// dispatch says where a connection with these protocols goes: a kind, or the
// alert that refuses it. Protocols of our own never go together with others: a
// page in a browser must not be able to speak them, nor one certificate serve
// both (ALPACA, CVE-2021-3618).
func dispatch(protocols []string) (handover.Kind, byte) {
	own := func(p string) bool { return strings.HasPrefix(p, "gatehouse-") }
	switch {
	case len(protocols) == 0:
		return handover.Web, 0
	case slices.ContainsFunc(protocols, own):
		switch {
		case len(protocols) > 1:
			return "", alertIllegalParameter
		case protocols[0] == relay.Protocol:
			return meeting, 0
		}
		return "", alertNoApplicationProtocol
	case len(protocols) == 1 && protocols[0] == "acme-tls/1":
		return handover.ACME, 0
	case slices.Contains(protocols, "h2"), slices.Contains(protocols, "http/1.1"):
		return handover.Web, 0
	}
	return "", alertNoApplicationProtocol
}

// alert is a fatal one, as a whole record.
func alert(code byte) []byte { return []byte{21, 3, 3, 0, 2, 2, code} }
