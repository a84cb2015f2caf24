package release

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware"
	"gatehouse/image/keys"
)

// ErrBad: what is in a release is not what it says, and nobody should sign it.
var ErrBad = errors.New("is not whole, and is not signed")

// Wanted says who still has to sign a release before boxes can take it and follow
// it, in words; nothing if it is complete.
func Wanted(dir string, s keys.Signers) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, Note))
	if err != nil {
		return nil, fmt.Errorf("reading a release: %w", err)
	}
	var out []string
	say := func(k firmware.Keys, whose string) {
		if signed, wanted := signedBy(k, b); wanted > 0 {
			out = append(out, fmt.Sprintf("%d more of %s have to sign%s", wanted, names(others(k, signed)), whose))
		}
	}
	say(s.Keys, "")
	if s.Rotating() {
		say(s.Next, ", since they sign the next one")
	}
	return out, nil
}

// Sign adds the signatures of those whose private keys lie at hand to a release
// that was made with these keys. What is signed is verified before.
func Sign(dir string, s keys.Signers) error {
	report, err := Verify(dir, Trust{Keys: &s.Keys, unsigned: true})
	if err != nil {
		return err
	}
	if bad := report.Bad(); len(bad) > 0 {
		return fmt.Errorf("this release %w: %s: %s", ErrBad, bad[0].Name, bad[0].Detail)
	}
	b, err := os.ReadFile(filepath.Join(dir, Note))
	if err != nil {
		return fmt.Errorf("signing a release: %w", err)
	}
	text := textOf(b)
	m, err := firmware.Parse(text)
	if err != nil {
		return fmt.Errorf("signing a release: %w", err)
	}
	if m.Keys.Text() != s.Next.Text() {
		return errors.New("signing a release: it names others to sign the next one than these keys do: was a rotation begun or ended since it was made?")
	}
	sums, err := os.ReadFile(filepath.Join(dir, Sums))
	if err != nil {
		return fmt.Errorf("signing a release: %w", err)
	}
	if err := sign(dir, m, text, sumsText(m.Version, string(sums)), s); err != nil {
		return fmt.Errorf("signing a release: %w", err)
	}
	return nil
}

// sign writes the two notes and, with the manifest before it, each bundle. The
// manifest comes last: cut short, it is done again by another call.
func sign(dir string, m firmware.Manifest, text, sums string, s keys.Signers) error {
	manifest, err := signNote(filepath.Join(dir, Note), text, s)
	if err != nil {
		return err
	}
	sumsNote, err := signNote(filepath.Join(dir, SumsNote), sums, s)
	if err != nil {
		return err
	}
	for _, system := range m.Systems {
		in, err := os.Open(filepath.Join(dir, File(m.Version, system.Arch, System)))
		if err != nil {
			return err
		}
		err = write(filepath.Join(dir, File(m.Version, system.Arch, Bundle)), func(w io.Writer) error {
			return firmware.WriteBundle(w, manifest, system.Content(in))
		})
		in.Close()
		if err != nil {
			return err
		}
	}
	if err := writeBytes(filepath.Join(dir, SumsNote), sumsNote); err != nil {
		return err
	}
	return writeBytes(filepath.Join(dir, Note), manifest)
}

// signNote returns the note of a text with the signatures that its file has, and
// those that can be made, in the order of the keys. While a rotation is under way
// both sets sign: a box that runs the release goes by the next one, and mends its
// other slot with the release that it runs.
func signNote(file, text string, s keys.Signers) ([]byte, error) {
	there, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	n := &note.Note{Text: text}
	for _, key := range both(s) {
		v, err := note.NewVerifier(key)
		if err != nil {
			return nil, err
		}
		if p, ok := s.Private[v.Name()]; ok {
			sig, err := p.Sign([]byte(text))
			if err != nil {
				return nil, err
			}
			raw := append(binary.BigEndian.AppendUint32(nil, p.KeyHash()), sig...)
			n.Sigs = append(n.Sigs, note.Signature{Name: p.Name(), Hash: p.KeyHash(), Base64: base64.StdEncoding.EncodeToString(raw)})
			continue
		}
		if old, err := note.Open(there, note.VerifierList(v)); err == nil && old.Text == text {
			n.Sigs = append(n.Sigs, old.Sigs[0])
		}
	}
	return note.Sign(n)
}

// both are the keys that boxes know and those that sign the next release.
func both(s keys.Signers) []string {
	out := slices.Clone(s.Keys.Keys)
	for _, k := range s.Next.Keys {
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// textOf is the text of a note, signed or not yet.
func textOf(b []byte) string {
	if i := bytes.LastIndex(b, []byte("\n\n")); i >= 0 {
		return string(b[:i+1])
	}
	return string(b)
}

// signedBy says who of a set has signed a note, and how many are still wanted.
func signedBy(k firmware.Keys, b []byte) (names []string, wanted int) {
	_, names, err := k.Open(b)
	if err != nil {
		names = nil // a note without any signature is none
	}
	return names, max(0, k.Threshold-len(names))
}

// others are those of a set who have not signed.
func others(k firmware.Keys, signed []string) []string {
	var out []string
	for _, key := range k.Keys {
		if name := keys.SignerName(key); !slices.Contains(signed, name) {
			out = append(out, name)
		}
	}
	return out
}

// names are as they are said.
func names(list []string) string {
	switch n := len(list); n {
	case 0:
		return "nobody"
	case 1:
		return list[0]
	default:
		return strings.Join(list[:n-1], ", ") + " and " + list[n-1]
	}
}
