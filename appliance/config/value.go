package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// Listen is an address to listen on, or all, and a port.
type Listen struct {
	addr netip.Addr // invalid: all addresses
	port uint16
}

// String is what net.Listen takes.
func (l Listen) String() string {
	if !l.addr.IsValid() {
		return fmt.Sprintf(":%d", l.port)
	}
	return netip.AddrPortFrom(l.addr, l.port).String()
}

// Port is never 0.
func (l Listen) Port() uint16 { return l.port }

// Addr is the one address to listen on; the zero Addr means all of them.
func (l Listen) Addr() netip.Addr {
	if l.everywhere() {
		return netip.Addr{}
	}
	return l.addr.Unmap().WithZone("")
}

func (l Listen) everywhere() bool { return !l.addr.IsValid() || l.addr.IsUnspecified() }

// UnmarshalText takes ":8443", "192.0.2.1:8443" and "[2001:db8::1]:8443".
func (l *Listen) UnmarshalText(b []byte) error {
	s := string(b)
	if port, ok := strings.CutPrefix(s, ":"); ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return fmt.Errorf("%q is not a port: use one from 1 to 65535, as in \":8443\"", s)
		}
		*l = Listen{port: uint16(n)}
		return nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return fmt.Errorf("%q is not an address and a port: write \":8443\", \"192.0.2.1:8443\" or \"[2001:db8::1]:8443\"", s)
	}
	*l = Listen{addr: ap.Addr(), port: ap.Port()}
	return nil
}

// hostLabel is a host name without a dot (RFC 1123, 2.1), lower case.
type hostLabel text

// text is a struct because the library would set a plain string without
// asking UnmarshalText.
type text struct{ s string }

func (h *hostLabel) UnmarshalText(b []byte) error {
	if !isLabel(string(b)) {
		return fmt.Errorf("%q is not a name: use up to 63 letters a-z, digits and hyphens, no hyphen first or last", b)
	}
	h.s = string(b)
	return nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// hostName is one or more labels, lower case, without the last dot.
type hostName text

func (h *hostName) UnmarshalText(b []byte) error {
	s := strings.TrimSuffix(strings.ToLower(string(b)), ".")
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("%q is an address: only names are listed, addresses are accepted anyway", b)
	}
	ok := len(s) <= 253
	for label := range strings.SplitSeq(s, ".") {
		ok = ok && isLabel(label)
	}
	if !ok {
		return fmt.Errorf("%q is not a host name: write it as in \"nas.example.net\", without scheme or port", b)
	}
	h.s = s
	return nil
}

// absolute is a clean absolute path, and not the root.
type absolute text

func (a *absolute) UnmarshalText(b []byte) error {
	s := filepath.Clean(string(b))
	if !filepath.IsAbs(s) || s == "/" || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
		return fmt.Errorf("%q is not an absolute path of a folder", b)
	}
	a.s = s
	return nil
}

// level is one of four words; slog would take "INFO+3" as well.
type level slog.Level

func (l *level) UnmarshalText(b []byte) error {
	switch string(b) {
	case "debug":
		*l = level(slog.LevelDebug)
	case "info":
		*l = level(slog.LevelInfo)
	case "warn":
		*l = level(slog.LevelWarn)
	case "error":
		*l = level(slog.LevelError)
	default:
		return fmt.Errorf("%q is not a log level: use debug, info, warn or error", b)
	}
	return nil
}

// variableName is the name of an environment variable.
type variableName text

func (v *variableName) UnmarshalText(b []byte) error {
	for i, c := range b {
		if c != '_' && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return fmt.Errorf("%q is not the name of a variable: use A-Z, digits and _", b)
		}
	}
	if len(b) == 0 || len(b) > 64 {
		return fmt.Errorf("%q is not the name of a variable: use 1 to 64 characters", b)
	}
	v.s = string(b)
	return nil
}
