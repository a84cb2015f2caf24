// Package firmware says which system a box may take: by a manifest that enough release keys have signed, never an older one, and only the bytes that it names.
//
// A manifest is a signed note (golang.org/x/mod/sumdb/note: a text, a blank line,
// and Ed25519 signatures by name) of one release. The keys that sign the next one
// are in it, so that keys change by the word of those before them.
// docs/firmware.md has the shape. The package does no I/O.
package firmware

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware/approval"
	"gatehouse/tpm/pcr"
)

// Why a manifest is refused. Errors of this package wrap one of these.
var (
	ErrMalformed  = errors.New("the manifest is malformed")
	ErrSignatures = errors.New("too few of the release keys have signed the manifest")
	ErrOther      = errors.New("the release is not for this box")
	ErrOlder      = errors.New("the release is older than what the box has had")
	ErrTooNew     = errors.New("the release cannot follow what the box runs")
	ErrContent    = errors.New("the system is not the one that the manifest names")
)

// Product is the one that a box's releases are of.
const Product = "gatehouse"

// Limits of a manifest.
const (
	MaxManifest = 64 << 10 // bytes
	MaxSystem   = 64 << 20 // bytes: a slot (image/disk)
	maxKeys     = 16
	maxSystems  = 8
	maxPaths    = 8
	title       = "gatehouse release 1"
	day         = "2006-01-02"
)

// Manifest is one release.
type Manifest struct {
	Product string // gatehouse; another product's release is none of ours
	Version Version
	Epoch   uint64  // goes up when older systems shall open nothing any more
	Minimum Version // the oldest version that may be updated from
	Issued  time.Time
	Keys    Keys // that sign the next release
	// Approver is the key behind the approvals of Systems, P-256; nil where there
	// are none. A box seals to it before the system starts for the first time, so
	// that this key, too, changes by the word of those before.
	Approver *ecdsa.PublicKey
	Systems  []System
}

// System is the UKI for one architecture.
type System struct {
	Arch   string // amd64, arm64
	Size   int64
	SHA256 [32]byte
	// Starts has an approval for each way in which firmware may start it.
	Starts []approval.Start
}

// Version is three numbers, as in 1.12.0.
type Version struct{ Major, Minor, Patch uint32 }

// ParseVersion reads one; there is one way to write each.
func ParseVersion(s string) (Version, error) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Version{}, fmt.Errorf("%w: %.40q is not a version such as 1.12.0", ErrMalformed, s)
	}
	var n [3]uint32
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 32)
		if err != nil || strconv.FormatUint(v, 10) != p {
			return Version{}, fmt.Errorf("%w: %.40q is not a version such as 1.12.0", ErrMalformed, s)
		}
		n[i] = uint32(v)
	}
	return Version{n[0], n[1], n[2]}, nil
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// MarshalText and UnmarshalText let a version be one in JSON, too.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText is the other direction.
func (v *Version) UnmarshalText(b []byte) (err error) {
	*v, err = ParseVersion(string(b))
	return err
}

// Compare is -1, 0 or 1.
func (v Version) Compare(w Version) int {
	return slices.Compare([]uint32{v.Major, v.Minor, v.Patch}, []uint32{w.Major, w.Minor, w.Patch})
}

// System returns the one for an architecture.
func (m Manifest) System(arch string) (System, error) {
	i := slices.IndexFunc(m.Systems, func(s System) bool { return s.Arch == arch })
	if i < 0 {
		return System{}, fmt.Errorf("%w: version %s has no system for %s", ErrOther, m.Version, arch)
	}
	return m.Systems[i], nil
}

// Text is the manifest as it is signed: lines of words, in one order and form.
func (m Manifest) Text() (string, error) {
	if err := m.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nproduct %s\nversion %s\nepoch %d\nminimum %s\nissued %s\n%s",
		title, m.Product, m.Version, m.Epoch, m.Minimum, m.Issued.UTC().Format(day), m.Keys.Text())
	if m.Approver != nil {
		der, err := x509.MarshalPKIXPublicKey(m.Approver)
		if err != nil {
			return "", fmt.Errorf("%w: the approver: %w", ErrMalformed, err)
		}
		fmt.Fprintf(&b, "approver %s\n", base64.StdEncoding.EncodeToString(der))
	}
	for _, s := range m.Systems {
		fmt.Fprintf(&b, "system %s %d %x\n", s.Arch, s.Size, s.SHA256)
		for _, p := range s.Starts {
			fmt.Fprintf(&b, "start %s %s %x %s\n", s.Arch, p.Path, p.Approval.Policy, base64.StdEncoding.EncodeToString(p.Approval.Signature))
		}
	}
	return b.String(), nil
}

// Parse reads the text of a manifest that somebody else has verified, or that
// somebody is about to sign. A box reads by Trust.Open alone.
func Parse(text string) (Manifest, error) { return parse(text) }

// Unverified is what a signed note says, whoever has signed it: for who has to decide only
// whether it is worth handing on to a box.
func Unverified(note []byte) (Manifest, error) {
	text, _, _ := bytes.Cut(note, []byte("\n\n"))
	return parse(string(text) + "\n")
}

// Sign writes the signed note.
func (m Manifest) Sign(signers ...note.Signer) ([]byte, error) {
	text, err := m.Text()
	if err != nil {
		return nil, fmt.Errorf("signing a release: %w", err)
	}
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err == nil && len(b) > MaxManifest {
		err = fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), MaxManifest)
	}
	return b, err
}

// parse reads a text in its one form.
func parse(text string) (Manifest, error) {
	p := parser{lines: strings.Split(strings.TrimSuffix(text, "\n"), "\n")}
	var m Manifest
	if l := p.next(); l != title {
		return m, fmt.Errorf("%w: it begins with %.40q, and not with %q", ErrMalformed, l, title)
	}
	m.Product = p.word("product")
	m.Version = p.version("version")
	m.Epoch = p.number("epoch")
	m.Minimum = p.version("minimum")
	m.Issued = p.day("issued")
	m.Keys = p.keys()
	if p.at("approver") {
		m.Approver = p.p256("approver")
	}
	for p.at("system") && len(m.Systems) <= maxSystems {
		m.Systems = append(m.Systems, p.system())
	}
	if p.err == nil && len(p.lines) > 0 {
		p.fail("there is a line too many: %.60q", p.lines[0])
	}
	if p.err != nil {
		return Manifest{}, p.err
	}
	again, err := m.Text()
	if err == nil && again != text {
		err = fmt.Errorf("%w: it is not in its one form", ErrMalformed)
	}
	return m, err
}

func (m Manifest) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	switch {
	case !plain(m.Product):
		return bad("%.40q is not the name of a product", m.Product)
	case m.Epoch == 0:
		return bad("epochs begin with 1")
	case m.Minimum.Compare(m.Version) > 0:
		return bad("version %s asks for a newer one, %s", m.Version, m.Minimum)
	case m.Issued.Year() < 2026 || m.Issued.Year() > 2125 || !m.Issued.Equal(m.Issued.UTC().Truncate(24*time.Hour)):
		return bad("the day of issue %s", m.Issued)
	case len(m.Systems) == 0 || len(m.Systems) > maxSystems:
		return bad("%d systems, want 1 to %d", len(m.Systems), maxSystems)
	}
	if _, err := m.Keys.verifiers(); err != nil {
		return err
	}
	starts := 0
	for i, s := range m.Systems {
		if err := s.check(); err != nil {
			return err
		}
		starts += len(s.Starts)
		for _, p := range s.Starts {
			if m.Approver == nil {
				return bad("the start %s of the system for %s has an approval, and the manifest names no approver", p.Path, s.Arch)
			}
			if err := p.Approval.Check(m.Approver, approval.Reference(m.Epoch)); err != nil {
				return bad("the start %s of the system for %s: %v", p.Path, s.Arch, err)
			}
		}
		if i > 0 && m.Systems[i-1].Arch >= s.Arch {
			return bad("systems stand in order, each architecture once")
		}
	}
	if m.Approver != nil && (starts == 0 || m.Approver.Curve != elliptic.P256()) {
		return bad("an approver is a P-256 key, and is there where there are approvals")
	}
	return nil
}

func (s System) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	if !plain(s.Arch) || s.Size <= 0 || s.Size > MaxSystem || s.SHA256 == [32]byte{} {
		return bad("the system for %.20q of %d bytes: the limit is %d", s.Arch, s.Size, MaxSystem)
	}
	if len(s.Starts) > maxPaths {
		return bad("%d ways of starting, the limit is %d", len(s.Starts), maxPaths)
	}
	for i, p := range s.Starts {
		if !plain(p.Path) || len(p.Approval.Signature) == 0 || len(p.Approval.Signature) > 128 {
			return bad("the start %.20q of the system for %s", p.Path, s.Arch)
		}
		if i > 0 && s.Starts[i-1].Path >= p.Path {
			return bad("ways of starting stand in order, each once")
		}
	}
	return nil
}

// plain is a word of lower-case letters, digits and hyphens.
func plain(s string) bool {
	return s != "" && len(s) <= 32 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// parser takes line by line and keeps the first thing that is wrong.
type parser struct {
	lines []string
	err   error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
}

func (p *parser) next() string {
	if len(p.lines) == 0 {
		p.fail("it ends too early")
		return ""
	}
	l := p.lines[0]
	p.lines = p.lines[1:]
	return l
}

func (p *parser) at(name string) bool {
	return p.err == nil && len(p.lines) > 0 && strings.HasPrefix(p.lines[0], name+" ")
}

func (p *parser) words(name string, n int) []string {
	l := p.next()
	w := strings.Split(l, " ")
	if p.err == nil && (len(w) != n+1 || w[0] != name) {
		p.fail("%.60q, want %s and %d words", l, name, n)
	}
	if p.err != nil {
		return make([]string, n)
	}
	return w[1:]
}

func (p *parser) word(name string) string { return p.words(name, 1)[0] }

func (p *parser) number(name string) uint64 {
	w := p.word(name)
	n, err := strconv.ParseUint(w, 10, 63)
	if err != nil {
		p.fail("%s %.40q is not a number", name, w)
	}
	return n
}

func (p *parser) version(name string) Version {
	v, err := ParseVersion(p.word(name))
	if err != nil {
		p.fail("%s: %v", name, err)
	}
	return v
}

func (p *parser) day(name string) time.Time {
	w := p.word(name)
	t, err := time.Parse(day, w)
	if err != nil {
		p.fail("%s %.40q is not a day such as 2026-11-28", name, w)
	}
	return t
}

func (p *parser) keys() Keys {
	k := Keys{Threshold: int(min(p.number("threshold"), maxKeys+1))}
	for p.at("key") && len(k.Keys) <= maxKeys {
		k.Keys = append(k.Keys, p.word("key"))
	}
	return k
}

func (p *parser) p256(name string) *ecdsa.PublicKey {
	w := p.word(name)
	der, err := base64.StdEncoding.Strict().DecodeString(w)
	if err != nil {
		p.fail("%.80q is not base64", w)
		return nil
	}
	key, err := x509.ParsePKIXPublicKey(der)
	k, ok := key.(*ecdsa.PublicKey)
	if err != nil || !ok {
		p.fail("%s %.160q is not a public key", name, w)
		return nil
	}
	return k
}

func (p *parser) hex32(w string) (out [32]byte) {
	b, err := hex.DecodeString(w)
	if err != nil || len(b) != len(out) {
		p.fail("%.80q is not 64 hex digits", w)
		return out
	}
	return [32]byte(b)
}

func (p *parser) system() System {
	w := p.words("system", 3)
	s := System{Arch: w[0], SHA256: p.hex32(w[2])}
	n, err := strconv.ParseInt(w[1], 10, 63)
	if err != nil {
		p.fail("%.40q is not a size", w[1])
	}
	s.Size = n
	for p.at("start") && len(s.Starts) <= maxPaths {
		w := p.words("start", 4)
		if w[0] != s.Arch {
			p.fail("a start for %.20q among those for %s", w[0], s.Arch)
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(w[3])
		if err != nil {
			p.fail("%.80q is not base64", w[3])
		}
		s.Starts = append(s.Starts, approval.Start{Path: w[1], Approval: pcr.Approval{Policy: p.hex32(w[2]), Signature: sig}})
	}
	return s
}

// clean says whether b can be a note: the library takes longer ones.
func clean(b []byte) error {
	if len(b) > MaxManifest {
		return fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), MaxManifest)
	}
	if !bytes.HasPrefix(b, []byte(title+"\n")) {
		return fmt.Errorf("%w: it does not begin with %q", ErrMalformed, title)
	}
	return nil
}
