// Package portable is the file that the configuration of a box travels in: a tar archive inside an age file, with known names only.
//
// The outer form is age (C2SP age-encryption.org/v1), to one passphrase or to
// keys that a person keeps elsewhere, so that the file can be opened with the
// age tool when there is no box. The inner one is POSIX tar: about.json first,
// then the parts, each once. age authenticates every chunk and the end, so what
// was read whole was written whole by somebody who had the secret; nothing that
// was read before the end may be acted on.
package portable

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"filippo.io/age"

	"gatehouse/netfilter/allowlist"
)

// Format is the number of the form that this program writes and reads.
const Format = 1

// The parts. Lists are a folder of their own: ListsFolder + "/NAME.list".
const (
	aboutName    = "about.json"
	People       = "people.json"
	Place        = "place.json"
	Targets      = "targets.json"
	Certificates = "certificates.json"
	Network      = "network.json"
	Updates      = "updates.json"
	ListsFolder  = "lists"
	ListsIndex   = ListsFolder + "/" + allowlist.Index
)

// What a file may hold. A targets part is a thousand targets with a key each.
const (
	MaxFile  = allowlist.MaxBytes + 32<<20
	MaxPart  = 24 << 20 // of JSON
	MaxAbout = 4 << 10
)

// About is what a file says of itself.
type About struct {
	Format  int       `json:"format"`
	Box     string    `json:"box"`     // the name of the box it is of
	Version string    `json:"version"` // of its program
	Made    time.Time `json:"made"`
}

// Refusal is why a file is not taken, as a sentence for a person.
type Refusal struct{ Text string }

func (r *Refusal) Error() string { return r.Text }

func refuse(format string, a ...any) error { return &Refusal{fmt.Sprintf(format, a...)} }

// largest is how many bytes a part may have; 0: there is no such part.
func largest(name string) int64 {
	switch name {
	case People, Place, Targets, Certificates, Network, Updates:
		return MaxPart
	}
	if folder, file := path.Split(name); folder == ListsFolder+"/" {
		list, ok := strings.CutSuffix(file, allowlist.Suffix)
		if file == allowlist.Index || ok && allowlist.CheckName(list) == "" {
			return allowlist.MaxBytes
		}
	}
	return 0
}

// Writer writes a file.
type Writer struct {
	out  io.WriteCloser
	tar  *tar.Writer
	made time.Time
}

// NewWriter begins a file for whoever may open it.
func NewWriter(w io.Writer, to []age.Recipient, a About) (*Writer, error) {
	out, err := age.Encrypt(w, to...)
	if err != nil {
		return nil, fmt.Errorf("encrypting the export: %w", err)
	}
	a.Format = Format
	wr := &Writer{out, tar.NewWriter(out), a.Made}
	b, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	return wr, wr.put(aboutName, int64(len(b)), bytes.NewReader(b))
}

// Add writes a part of size bytes.
func (w *Writer) Add(name string, size int64, r io.Reader) error {
	if most := largest(name); most == 0 || size > most {
		return fmt.Errorf("writing the export: %q of %d bytes is no part of one", name, size)
	}
	return w.put(name, size, r)
}

// AddJSON writes a part as a document.
func (w *Writer) AddJSON(name string, document any) error {
	b, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("writing %s of the export: %w", name, err)
	}
	defer clear(b)
	return w.Add(name, int64(len(b)), bytes.NewReader(b))
}

func (w *Writer) put(name string, size int64, r io.Reader) error {
	err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: w.made.Truncate(time.Second), Format: tar.FormatUSTAR})
	if err == nil {
		_, err = io.CopyN(w.tar, r, size)
	}
	if err != nil {
		return fmt.Errorf("writing %s of the export: %w", name, err)
	}
	return nil
}

// Close ends the file. Without it a reader sees a truncated one.
func (w *Writer) Close() error {
	if err := errors.Join(w.tar.Close(), w.out.Close()); err != nil {
		return fmt.Errorf("ending the export: %w", err)
	}
	return nil
}

// Read opens a file and hands on its parts one after the other, to its
// authenticated end. What each may not do before Read returned nil is have an effect:
// until then the file may be half of one.
func Read(r io.Reader, key age.Identity, each func(name string, size int64, r io.Reader) error) (About, error) {
	plain, err := age.Decrypt(r, key)
	if err != nil {
		return About{}, opening(err)
	}
	t := tar.NewReader(plain)
	a, err := readAbout(t)
	if err != nil {
		return a, err
	}
	var seen []string
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a, damaged(err)
		}
		if err := judge(h, seen); err != nil {
			return a, err
		}
		seen = append(seen, h.Name)
		if err := each(h.Name, h.Size, t); err != nil {
			return a, damaged(err)
		}
	}
	// The archive ends with two empty blocks, and the file with it. Only the end
	// of the age file says that nothing was cut off.
	rest, err := io.Copy(io.Discard, io.LimitReader(plain, 1<<10))
	switch {
	case err != nil:
		return a, damaged(err)
	case rest != 0:
		return a, refuse("There is more in the file after its end: it was not written by a Gatehouse.")
	}
	return a, nil
}

func readAbout(t *tar.Reader) (a About, err error) {
	h, err := t.Next()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, tar.ErrHeader):
		return a, refuse("The file opens, and what is in it is not a configuration of a Gatehouse.")
	case err != nil:
		return a, damaged(err)
	case h.Name != aboutName || plainFile(h) != nil || h.Size > MaxAbout:
		return a, refuse("The file opens, and what is in it is not a configuration of a Gatehouse: it does not begin with %s.", aboutName)
	}
	b, err := io.ReadAll(t)
	if err != nil {
		return a, damaged(err)
	}
	var form struct {
		Format int `json:"format"`
	}
	if json.Unmarshal(b, &form) == nil && form.Format > Format {
		return a, refuse("The file is of form %d, and this version reads form %d: it was written by a newer one. Update this box first.", form.Format, Format)
	}
	if err := Decode(b, &a); err != nil || a.Format != Format {
		return a, refuse("What the file says of itself cannot be read.")
	}
	return a, nil
}

func judge(h *tar.Header, seen []string) error {
	if err := plainFile(h); err != nil {
		return err
	}
	most := largest(h.Name)
	switch {
	case most == 0:
		return refuse("The file has a part %.60q, which this version does not know: it was written by a newer one, or not by a Gatehouse.", h.Name)
	case slices.Contains(seen, h.Name):
		return refuse("The file has the part %s twice: it was not written by a Gatehouse.", h.Name)
	case h.Size > most:
		return refuse("The part %s has %d bytes, and %d is the most.", h.Name, h.Size, most)
	case len(seen) > allowlist.MaxLists+16:
		return refuse("The file has more parts than a configuration has.")
	}
	return nil
}

// plainFile takes what put writes and nothing else: no links, folders, devices,
// sparse files or extended headers, whatever their name.
func plainFile(h *tar.Header) error {
	if h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR || h.Linkname != "" || h.Size < 0 {
		return refuse("The part %.60q of the file is not a plain one: it was not written by a Gatehouse.", h.Name)
	}
	return nil
}

// Decode reads a part strictly: one document with known fields.
func Decode(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more after the document")
	}
	return nil
}

// damaged puts what age and tar say of broken bytes into words. A refusal, and
// what the caller of Read returned, stay as they are.
func damaged(err error) error {
	var r *Refusal
	if errors.As(err, &r) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "decrypt and authenticate") || errors.Is(err, tar.ErrHeader) {
		return refuse("The file is not whole: it was cut off or changed on its way. Copy it again.")
	}
	return err
}
