package firmware

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Keys are public release keys, each as a note's verifier key (name+hash+key),
// and how many of them have to sign.
type Keys struct {
	Threshold int      `json:"threshold"`
	Keys      []string `json:"keys"`
}

// KeysFile is where an image carries who signs the release after it, as
// Keys.Text, below the root of the initramfs.
const KeysFile = "etc/gatehouse/release-keys"

// Text is the set as lines: of a manifest, and of a file of its own.
func (k Keys) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "threshold %d\n", k.Threshold)
	for _, s := range k.Keys {
		fmt.Fprintf(&b, "key %s\n", s)
	}
	return b.String()
}

// ParseKeys reads those lines, and nothing besides.
func ParseKeys(text string) (Keys, error) {
	p := parser{lines: strings.Split(strings.TrimSuffix(text, "\n"), "\n")}
	k := p.keys()
	if p.err == nil && len(p.lines) > 0 {
		p.fail("there is a line too many: %.60q", p.lines[0])
	}
	if p.err != nil {
		return Keys{}, p.err
	}
	if k.Text() != text {
		return Keys{}, fmt.Errorf("%w: the keys are not in their one form", ErrMalformed)
	}
	_, err := k.verifiers()
	return k, err
}

// Check says whether the set can be gone by.
func (k Keys) Check() error {
	_, err := k.verifiers()
	return err
}

// verifiers checks the set: every key can verify, and no key counts twice under
// two names.
func (k Keys) verifiers() ([]note.Verifier, error) {
	bad := func(format string, args ...any) ([]note.Verifier, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
	}
	if len(k.Keys) == 0 || len(k.Keys) > maxKeys || k.Threshold < 1 || k.Threshold > len(k.Keys) {
		return bad("%d of %d release keys have to sign: want at least 1, of at most %d", k.Threshold, len(k.Keys), maxKeys)
	}
	var out []note.Verifier
	var names, bodies []string
	for _, s := range k.Keys {
		v, err := note.NewVerifier(s)
		if err != nil {
			return bad("%.60q is not a release key: %v", s, err)
		}
		parts := strings.SplitN(s, "+", 3) // name, hash, and the key, in which there may be more of them
		body := parts[len(parts)-1]
		if slices.Contains(names, v.Name()) || slices.Contains(bodies, body) {
			return bad("the release key %s is there twice", v.Name())
		}
		names, bodies = append(names, v.Name()), append(bodies, body)
		out = append(out, v)
	}
	return out, nil
}

// Trust is what a box goes by. It moves forward alone: Next gives the one after
// a release was taken for good.
type Trust struct {
	Product string  `json:"product"`
	Keys    Keys    `json:"keys"`
	Version Version `json:"version"` // that runs
	Newest  Version `json:"newest"`  // that was ever taken for good
	Epoch   uint64  `json:"epoch"`
}

// Open reads a manifest and says whether this box may take its release. What it
// returns is what was verified; nothing of b is to be looked at besides.
func (t Trust) Open(b []byte) (Manifest, error) {
	m, err := t.verify(b)
	if err != nil {
		return Manifest{}, fmt.Errorf("reading a release: %w", err)
	}
	switch {
	case m.Product != t.Product:
		err = fmt.Errorf("%w: it is a release of %s, and this is %s", ErrOther, m.Product, t.Product)
	case m.Epoch < t.Epoch:
		err = fmt.Errorf("%w: it is of epoch %d, and the box has reached %d", ErrOlder, m.Epoch, t.Epoch)
	case m.Version.Compare(t.Newest) < 0:
		err = fmt.Errorf("%w: it is version %s, and the box has had %s", ErrOlder, m.Version, t.Newest)
	case t.Version.Compare(m.Minimum) < 0:
		err = fmt.Errorf("%w: version %s asks for %s or newer, and the box runs %s: take that one first", ErrTooNew, m.Version, m.Minimum, t.Version)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("reading a release: %w", err)
	}
	return m, nil
}

func (t Trust) verify(b []byte) (Manifest, error) {
	if err := clean(b); err != nil {
		return Manifest{}, err
	}
	text, signed, err := t.Keys.Open(b)
	if err != nil {
		return Manifest{}, err
	}
	if len(signed) < t.Keys.Threshold {
		return Manifest{}, fmt.Errorf("%w: %d of the %d that this box knows, want %d", ErrSignatures, len(signed), len(t.Keys.Keys), t.Keys.Threshold)
	}
	return parse(text)
}

// Open reads a signed note and says which of the keys have signed it: each
// counts once, and those that are not of the set count for nothing. Whether
// they are enough is for who asks.
func (k Keys) Open(b []byte) (text string, signed []string, err error) {
	verifiers, err := k.verifiers()
	if err != nil {
		return "", nil, fmt.Errorf("the release keys of this box: %w", err)
	}
	n, err := note.Open(b, note.VerifierList(verifiers...))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		n, err = unverified.Note, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	// Two spellings of one signature would be two notes with one meaning.
	for _, s := range slices.Concat(n.Sigs, n.UnverifiedSigs) {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return "", nil, fmt.Errorf("%w: the signature of %.40q is not in its one form", ErrMalformed, s.Name)
		}
	}
	for _, s := range n.Sigs {
		if !slices.Contains(signed, s.Name) { // names are unique among ours
			signed = append(signed, s.Name)
		}
	}
	return n.Text, signed, nil
}

// Next is the trust of a box that has taken m for good.
func (t Trust) Next(m Manifest) Trust {
	t.Keys, t.Version, t.Epoch = m.Keys, m.Version, max(t.Epoch, m.Epoch)
	if m.Version.Compare(t.Newest) > 0 {
		t.Newest = m.Version
	}
	return t
}

// Content is the bytes of a system as they come, and whether they are the right
// ones. Reading ends with ErrContent in the place of io.EOF if they are not, so
// that who reads to the end without an error has read what was signed.
type Content struct {
	r    io.Reader
	want System
	sum  hash.Hash
	read int64
}

// Content checks what is read of r.
func (s System) Content(r io.Reader) *Content {
	return &Content{r: r, want: s, sum: sha256.New()}
}

func (c *Content) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.sum.Write(b[:n])
	if c.read += int64(n); c.read > c.want.Size {
		return 0, fmt.Errorf("%w: it is longer than %d bytes", ErrContent, c.want.Size)
	}
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	if c.read < c.want.Size {
		return n, fmt.Errorf("%w: it ends after %d of %d bytes", ErrContent, c.read, c.want.Size)
	}
	if sum := c.sum.Sum(nil); subtle.ConstantTimeCompare(sum, c.want.SHA256[:]) != 1 {
		return n, fmt.Errorf("%w: its SHA-256 is %x, and not %x", ErrContent, sum, c.want.SHA256)
	}
	return n, io.EOF
}
