package session

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Kind is what speaks at a target.
type Kind string

// The kinds of target.
const (
	Box   Kind = "box" // the site's box itself: its maintenance console
	SSH   Kind = "ssh"
	RDP   Kind = "rdp"
	VNC   Kind = "vnc"
	HTTP  Kind = "http"
	HTTPS Kind = "https"
	TCP   Kind = "tcp" // anything else that is one connection
)

var kindNames = []Kind{Box, SSH, RDP, VNC, HTTP, HTTPS, TCP}

// usualPorts is 0 where there is none that goes without saying.
var usualPorts = map[Kind]uint16{SSH: 22, RDP: 3389, VNC: 5900, HTTP: 80, HTTPS: 443}

// UsualPort is the port of a kind when none is given; 0 if there is none.
func (k Kind) UsualPort() uint16 { return usualPorts[k] }

// Target is what a session reaches: the site's box, or a port of a host in its network.
type Target struct {
	Name string `json:"name"` // what people call it
	Kind Kind   `json:"kind"`
	Host string `json:"host"` // an address, or a name as the site's resolvers know it; "" for the box
	Port uint16 `json:"port"` // 0 for the box
}

// Check says what is wrong with a target.
func (t Target) Check() error {
	if err := checkName("the name of a target", t.Name); err != nil {
		return err
	}
	if !slices.Contains(kindNames, t.Kind) {
		return fmt.Errorf("%w: %.20q is not a kind of target: box, ssh, rdp, vnc, http, https or tcp", ErrMalformed, t.Kind)
	}
	if t.Kind == Box {
		if t.Host != "" || t.Port != 0 {
			return fmt.Errorf("%w: the box itself has neither host nor port", ErrMalformed)
		}
		return nil
	}
	if t.Port == 0 {
		return fmt.Errorf("%w: the target %s has no port", ErrMalformed, t.Name)
	}
	return checkHost(t.Host)
}

// checkHost refuses what would lead the agent to itself: the box's own services
// are reached by kind box, or not at all. The agent judges again what a name
// resolves to.
func checkHost(host string) error {
	if a, err := netip.ParseAddr(host); err == nil {
		if a.String() != host || !Reachable(a) {
			return fmt.Errorf("%w: %s is not the address of a host in a network, written in its short form", ErrMalformed, host)
		}
		return nil
	}
	if host == "" || len(host) > 253 || host != strings.ToLower(host) {
		return fmt.Errorf("%w: a host is an address, or a name in lower case of at most 253 characters", ErrMalformed)
	}
	digits := true
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%w: %.64q is not the name of a host", ErrMalformed, host)
		}
		digits = strings.Trim(label, "0123456789") == ""
	}
	if digits || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return fmt.Errorf("%w: %.64q does not name a host in a network", ErrMalformed, host)
	}
	return nil
}

// Reachable says whether an address can be that of a host in the site's
// network: not the box's loopback, not a group, nothing that means "here".
func Reachable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() && !a.IsLoopback() &&
		!a.IsMulticast() && !a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
		!(a.Is4() && a.As4()[0] == 0)
}

// checkName takes what people may be shown: printable, short, not empty.
func checkName(what, s string) error {
	if s == "" || len(s) > maxName || !utf8.ValidString(s) || strings.TrimSpace(s) != s {
		return fmt.Errorf("%w: %s has 1 to %d bytes of UTF-8, no space at its ends", ErrMalformed, what, maxName)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		r, _ := utf8.DecodeRuneInString(s[i:])
		return fmt.Errorf("%w: %s has the character %U", ErrMalformed, what, r)
	}
	return nil
}
