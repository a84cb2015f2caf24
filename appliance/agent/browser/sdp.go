package browser

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"gatehouse/appliance/session"
)

// Limits of an offer.
const (
	maxOffer      = 16 << 10
	maxCandidates = 8
	maxWord       = 256 // a name or password of ICE
)

var errOffer = errors.New("the browser's offer cannot be used")

// offer is what a browser says of its end: one section of data channels, no
// sound and no picture.
type offer struct {
	ufrag, password string
	mid             string
	ports           []uint16 // UDP, at the browser's own addresses, which it hides
}

// readOffer reads an offer (RFC 8866, 8839, 8841) and insists that the only
// certificate in it is the one that the grant names.
func readOffer(sdp string, key session.Key) (offer, error) {
	var o offer
	if len(sdp) > maxOffer {
		return o, fmt.Errorf("%w: %d bytes, the limit is %d", errOffer, len(sdp), maxOffer)
	}
	sections, prints, setup := 0, 0, ""
	for line := range strings.Lines(sdp) {
		line = strings.TrimRight(line, "\r\n")
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "a="), ":")
		switch {
		case strings.HasPrefix(line, "m="):
			sections++
			if f := strings.Fields(line); len(f) != 4 || f[0] != "m=application" || f[2] != "UDP/DTLS/SCTP" || f[3] != "webrtc-datachannel" {
				return o, fmt.Errorf("%w: it has %.60q, and a session has data channels alone", errOffer, line)
			}
		case !strings.HasPrefix(line, "a="):
		case name == "fingerprint":
			prints++
			if err := checkFingerprint(value, key); err != nil {
				return o, err
			}
		case name == "ice-ufrag" && (o.ufrag == "" || o.ufrag == value):
			o.ufrag = value
		case name == "ice-pwd" && (o.password == "" || o.password == value):
			o.password = value
		case name == "ice-ufrag", name == "ice-pwd":
			return o, fmt.Errorf("%w: it has two names for one end", errOffer)
		case name == "setup":
			setup = value
		case name == "mid":
			o.mid = value
		case name == "candidate" && len(o.ports) < maxCandidates:
			if port := udpPort(value); port != 0 {
				o.ports = append(o.ports, port)
			}
		}
	}
	switch {
	case sections != 1:
		return o, fmt.Errorf("%w: it has %d sections, want one", errOffer, sections)
	case prints == 0:
		return o, fmt.Errorf("%w: it names no certificate", errOffer)
	case setup != "actpass" && setup != "passive":
		return o, fmt.Errorf("%w: it lets the agent not begin (setup:%.20s)", errOffer, setup)
	}
	for _, w := range []string{o.ufrag, o.password, o.mid} {
		if w == "" || len(w) > maxWord || strings.IndexFunc(w, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
			return o, fmt.Errorf("%w: %.40q is not a name", errOffer, w)
		}
	}
	return o, nil
}

// checkFingerprint takes RFC 8122's text of the key and no other.
func checkFingerprint(value string, key session.Key) error {
	algorithm, digits, _ := strings.Cut(value, " ")
	b, err := hex.DecodeString(strings.ReplaceAll(digits, ":", ""))
	if err != nil || !strings.EqualFold(algorithm, "sha-256") || len(b) != len(key) || session.Key(b) != key {
		return fmt.Errorf("%w: its certificate is not the one that this session was granted to", session.ErrOther)
	}
	return nil
}

// udpPort is the port of a candidate that the browser listens on by UDP; 0: it
// is another kind. The address is not looked at: browsers put a name in its
// place that only their own network can resolve.
func udpPort(candidate string) uint16 {
	f := strings.Fields(candidate)
	if len(f) < 8 || f[1] != "1" || !strings.EqualFold(f[2], "udp") || f[6] != "typ" || f[7] != "host" {
		return 0
	}
	n, err := strconv.ParseUint(f[5], 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}

// face is an address at which the browser can reach the agent.
type face struct {
	tcp  bool // the gateway's: it listens there, and the agent behind it
	addr netip.AddrPort
}

// priority is RFC 8445's, 5.1.2, of a host's address; by TCP RFC 6544's, 4.2.
// What is direct comes before what goes through the gateway.
func (f face) priority(i int) uint32 {
	kind, local := uint32(126), uint32(65535-i)
	if f.tcp {
		kind, local = 90, uint32(4<<13|8191-i)
	}
	return kind<<24 | local<<8 | 255
}

// writeAnswer says how the browser reaches the agent. The certificate in it is
// the one of the grant, and the page checks that.
func writeAnswer(o offer, ufrag, password string, agent session.Key, faces []face) string {
	digits := strings.ToUpper(agent.String())
	var print strings.Builder
	for i := 0; i < len(digits); i += 2 {
		if i > 0 {
			print.WriteByte(':')
		}
		print.WriteString(digits[i : i+2])
	}
	lines := []string{
		"v=0", "o=- 1 1 IN IP4 127.0.0.1", "s=-", "t=0 0", "a=group:BUNDLE " + o.mid,
		"m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0",
		"a=mid:" + o.mid, "a=ice-ufrag:" + ufrag, "a=ice-pwd:" + password,
		"a=fingerprint:sha-256 " + print.String(), "a=setup:active",
		"a=sctp-port:5000", "a=max-message-size:" + strconv.Itoa(maxMessage),
	}
	for i, f := range faces {
		line := fmt.Sprintf("a=candidate:%d 1 udp %d %s %d typ host", i+1, f.priority(i), f.addr.Addr(), f.addr.Port())
		if f.tcp {
			line = fmt.Sprintf("a=candidate:%d 1 tcp %d %s %d typ host tcptype passive", i+1, f.priority(i), f.addr.Addr(), f.addr.Port())
		}
		lines = append(lines, line)
	}
	return strings.Join(append(lines, "a=end-of-candidates"), "\r\n") + "\r\n"
}
