package release

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gatehouse/firmware"
	"gatehouse/firmware/slot"
	"gatehouse/image/authenticode"
	"gatehouse/image/debian"
	"gatehouse/image/disk"
	"gatehouse/image/sbom"
	"gatehouse/image/target"
)

// Trust is what somebody verifies by.
type Trust struct {
	Keys     *firmware.Keys    // nil: those that the release itself names, which proves nothing
	Programs *x509.Certificate // db of Secure Boot; nil: not verified
	Running  *firmware.Version // a box that runs it; nil: one that may take the release
	Epoch    uint64            // that the box has reached

	unsigned bool // signatures are still to be made
}

// The states of a Check.
const (
	Good      = "good"
	Bad       = "bad"
	Unchecked = "not checked"
)

// A Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`
}

// A Report is what was found.
type Report struct {
	What    string   `json:"what"` // release, manifest, update, system, disk
	Version string   `json:"version,omitempty"`
	Epoch   uint64   `json:"epoch,omitempty"`
	Minimum string   `json:"minimum,omitempty"`
	Issued  string   `json:"issued,omitempty"`
	Arches  []string `json:"architectures,omitempty"`
	Checks  []Check  `json:"checks"`
}

// Bad are the checks that failed.
func (r Report) Bad() []Check {
	var out []Check
	for _, c := range r.Checks {
		if c.State == Bad {
			out = append(out, c)
		}
	}
	return out
}

// ErrUnknown: the file is none that can be verified here.
var ErrUnknown = errors.New("is neither the folder of a release nor a manifest, an update (.update), a system (.efi) or a disk (.img, .img.gz)")

// Verify looks at a release folder or one file of it as a box would, and
// further. An error says that it could not look; what it found wrong is in the
// report.
func Verify(path string, t Trust) (Report, error) {
	v := &verifier{trust: t}
	info, err := os.Stat(path)
	if err != nil {
		return v.report, fmt.Errorf("verifying: %w", err)
	}
	if info.IsDir() {
		err := v.folder(path)
		return v.report, err
	}
	f, err := os.Open(path)
	if err != nil {
		return v.report, fmt.Errorf("verifying: %w", err)
	}
	defer f.Close()
	start := make([]byte, 1024)
	n, err := f.ReadAt(start, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return v.report, fmt.Errorf("verifying: %w", err)
	}
	switch start = start[:n]; {
	case bytes.HasPrefix(start, []byte("gatehouse update ")):
		v.report.What = "update"
		v.bundle(f)
	case bytes.HasPrefix(start, []byte("gatehouse release ")):
		v.report.What = "manifest"
		b, err := io.ReadAll(io.LimitReader(f, firmware.MaxManifest+1))
		if err != nil {
			return v.report, fmt.Errorf("verifying: %w", err)
		}
		v.manifest(b)
		v.skip("systems", "the manifest alone was given")
	case bytes.HasPrefix(start, []byte("MZ")):
		v.report.What = "system"
		whole, err := io.ReadAll(io.LimitReader(f, firmware.MaxSystem+1))
		if err != nil {
			return v.report, fmt.Errorf("verifying: %w", err)
		}
		v.system("", whole, nil)
	case bytes.HasPrefix(start, []byte("\x1f\x8b")), len(start) > 520 && string(start[512:520]) == "EFI PART":
		v.report.What = "disk"
		v.disk("", f, nil)
	default:
		return v.report, fmt.Errorf("%s %w", path, ErrUnknown)
	}
	return v.report, nil
}

type verifier struct {
	trust  Trust
	report Report
}

// judge notes a check: good in these words, or bad in those of the error.
func (v *verifier) judge(name string, err error, good string, args ...any) bool {
	c := Check{name, Good, fmt.Sprintf(good, args...)}
	if err != nil {
		c.State, c.Detail = Bad, err.Error()
	}
	v.report.Checks = append(v.report.Checks, c)
	return err == nil
}

func (v *verifier) skip(name, why string) {
	v.report.Checks = append(v.report.Checks, Check{name, Unchecked, why})
}

// named adds the architecture to a check's name, where there is one.
func named(name, arch string) string { return strings.TrimSpace(name + " " + arch) }

// manifest verifies a note as a box does. Without anybody's keys it is read by
// those it names, so that the rest can be looked at.
func (v *verifier) manifest(b []byte) (firmware.Manifest, bool) {
	read, err := firmware.Parse(textOf(b))
	if err != nil {
		return read, v.judge("manifest", err, "")
	}
	v.report.Version, v.report.Epoch, v.report.Minimum, v.report.Issued = read.Version.String(), read.Epoch, read.Minimum.String(), read.Issued.Format("2006-01-02")
	v.report.Arches = nil
	for _, s := range read.Systems {
		v.report.Arches = append(v.report.Arches, s.Arch)
	}
	known := read.Keys
	if v.trust.Keys != nil {
		known = *v.trust.Keys
	}
	signed, wanted := signedBy(known, b)
	if v.trust.unsigned {
		return read, true
	}
	trust := firmware.Trust{Product: firmware.Product, Keys: known, Version: read.Version, Epoch: v.trust.Epoch}
	if v.trust.Running != nil {
		trust.Version, trust.Newest = *v.trust.Running, *v.trust.Running
	}
	m, err := trust.Open(b)
	if errors.Is(err, firmware.ErrSignatures) || wanted > 0 {
		err = fmt.Errorf("%w: signed by %s; %d more of %s have to sign (gatehouse image sign)", firmware.ErrSignatures, names(signed), wanted, names(others(known, signed)))
	}
	ok := v.judge("manifest", err, "signed by %s, %d of %d have to", names(signed), known.Threshold, len(known.Keys))
	if v.trust.Keys == nil {
		v.skip("trust", "these are the keys that the release names itself: --trust says whose signatures count")
	}
	if read.Keys.Text() != known.Text() {
		signed, wanted := signedBy(read.Keys, b)
		err := error(nil)
		if wanted > 0 {
			err = fmt.Errorf("from this release on %d of %s have to sign, and only %s have signed it: nobody could follow it", read.Keys.Threshold, names(others(read.Keys, nil)), names(signed))
		}
		v.judge("rotation", err, "from this release on %d of %s have to sign, and %s have signed it", read.Keys.Threshold, names(others(read.Keys, nil)), names(signed))
	}
	if ok && v.trust.Running != nil {
		v.judge("box", nil, "one that runs %s and has reached epoch %d may take it", v.trust.Running, v.trust.Epoch)
	}
	return m, ok
}

// bundle verifies one that came alone.
func (v *verifier) bundle(r io.Reader) {
	b, content, err := firmware.ReadBundle(r)
	if err != nil {
		v.judge("update", err, "")
		return
	}
	m, ok := v.manifest(b)
	if !ok {
		return
	}
	// Which architecture it is for, the file does not say: that of the system in it.
	whole, err := io.ReadAll(io.LimitReader(content, firmware.MaxSystem+1))
	if err != nil {
		v.judge("update", err, "")
		return
	}
	var s firmware.System
	for _, s = range m.Systems {
		if _, err = io.Copy(io.Discard, s.Content(bytes.NewReader(whole))); err == nil {
			break
		}
	}
	if v.judge(named("content", s.Arch), err, contentIsGood, s.Size, s.SHA256) {
		v.system(s.Arch, whole, &m)
	}
}

// contentIsGood is said of the bytes of a system.
const contentIsGood = "%d bytes, SHA-256 %x, as the manifest says"

// carries says whether a file is the bundle of a system and this manifest.
func carries(file string, s firmware.System, note []byte) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, content, err := firmware.ReadBundle(f)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, note) {
		return errors.New("the manifest in it is another than the file " + Note + ": sign the release again (gatehouse image sign)")
	}
	_, err = io.Copy(io.Discard, s.Content(content))
	return err
}

// system verifies a UKI; with a manifest that it is the one named there.
func (v *verifier) system(arch string, whole []byte, m *firmware.Manifest) (inside, bool) {
	in, err := look(whole)
	if err == nil && arch != "" {
		err = startsOn(arch, whole)
	}
	if !v.judge(named("system", arch), err, "version %s, %d bytes, linked from %d modules by %s", in.version, len(whole), len(moduleURLs(in)), goVersion(in)) {
		return in, false
	}
	if m == nil {
		v.report.Version, v.report.Epoch = in.version, in.approvals.Epoch
		if t, err := target.OfProgram(whole); err == nil {
			v.report.Arches = []string{t.Arch}
		}
	}
	v.judge(named("registers", arch), in.registers(), "PCR 11, 12 and 13, computed from the sections, are those approved for %d ways of starting", len(in.approvals.Starts))
	if m != nil {
		s, err := m.System(arch)
		if err == nil {
			err = in.same(*m, s)
		}
		v.judge(named("approvals", arch), err, "those of the manifest, of epoch %d", m.Epoch)
		err = nil
		if numbers(in.version) != m.Version.String() {
			err = fmt.Errorf("the system says that it is version %s", in.version)
		} else if in.next.Text() != m.Keys.Text() {
			err = errors.New("the system goes by other keys than the manifest names: a box started from the image could not follow what an updated one does")
		}
		v.judge(named("next", arch), err, "as the manifest says, %d of %s have to sign the release after it", in.next.Threshold, names(others(in.next, nil)))
	}
	v.secureBoot(named("secure boot", arch), "the system", whole)
	return in, true
}

func (v *verifier) secureBoot(name, what string, program []byte) {
	if v.trust.Programs == nil {
		v.skip(name, "signature of "+what+": --trust names a folder with the certificate db.crt")
		return
	}
	v.judge(name, authenticode.Verify(program, v.trust.Programs), "%s is signed by %s", what, v.trust.Programs.Subject.CommonName)
}

// startsOn says whether a system is for the processor that it is named for.
func startsOn(arch string, program []byte) error {
	t, err := target.ForArch(arch)
	if err != nil {
		return err
	}
	return t.Starts(program)
}

// disk verifies an image, packed or not; with a manifest that it starts with the
// system named there.
func (v *verifier) disk(arch string, f *os.File, want []byte) {
	raw, err := unpacked(f)
	if err != nil {
		v.judge(named("disk", arch), err, "")
		return
	}
	defer os.Remove(raw.Name())
	defer raw.Close()
	loader, files, err := startsWith(arch, raw)
	if err != nil {
		v.judge(named("disk", arch), err, "")
		return
	}
	chosen, err := slot.Default(files[slot.ConfigPath])
	blank, blankErr := disk.Blank(raw)
	switch {
	case err != nil || blankErr != nil:
		err = errors.Join(err, blankErr)
	case chosen != slot.A:
		err = errors.New("it starts slot B first, where a fresh image has nothing")
	case !blank:
		err = errors.New("META is not empty: a box was started from it, or something was set on it")
	case want != nil && !bytes.Equal(files[slot.A.Path()], want):
		err = errors.New("slot A holds another system than the release")
	}
	v.judge(named("disk", arch), err, "starts slot A, and nothing was set on it yet")
	v.secureBoot(named("loader", arch), "the boot loader", files[loader])
	if want == nil {
		v.system(arch, files[slot.A.Path()], nil)
	}
}

// startsWith reads what a disk starts with: the loader of its architecture, the
// systems, and what chooses between them. An image that came alone does not say
// which architecture it is for: that of the loader on it.
func startsWith(arch string, raw *os.File) (loader string, files map[string][]byte, err error) {
	var errs []error
	for _, t := range target.All() {
		if arch != "" && t.Arch != arch {
			continue
		}
		loader = t.LoaderPath()
		if files, err = disk.Files(raw, loader, slot.A.Path(), slot.ConfigPath); err == nil {
			if err = t.Starts(files[loader]); err != nil {
				err = fmt.Errorf("its loader: %w", err)
			}
			return loader, files, err
		}
		errs = append(errs, err)
	}
	if errs == nil {
		return "", nil, fmt.Errorf("%w: %s", target.ErrUnknown, arch)
	}
	return "", nil, errs[0]
}

// unpacked copies a disk into a file of its own, sparse.
func unpacked(f *os.File) (*os.File, error) {
	var from io.Reader = io.NewSectionReader(f, 0, 1<<40)
	if z, err := gzip.NewReader(io.NewSectionReader(f, 0, 1<<40)); err == nil {
		from = z
	}
	out, err := os.CreateTemp("", "gatehouse-disk-")
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 1<<20)
	var at int64
	for err == nil && at <= disk.Size {
		var n int
		n, err = io.ReadFull(from, buffer)
		if len(bytes.Trim(buffer[:n], "\x00")) > 0 {
			if _, err := out.WriteAt(buffer[:n], at); err != nil {
				return nil, errors.Join(err, out.Close(), os.Remove(out.Name()))
			}
		}
		at += int64(n)
	}
	switch {
	case err == nil:
		err = fmt.Errorf("it is larger than %d bytes: it was customized, or it is no image of a box", disk.Size)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = out.Truncate(at)
	}
	if err != nil {
		return nil, errors.Join(err, out.Close(), os.Remove(out.Name()))
	}
	return out, nil
}

// folder verifies a release as a whole.
func (v *verifier) folder(dir string) error {
	v.report.What = "release"
	note, err := os.ReadFile(filepath.Join(dir, Note))
	if err != nil {
		return fmt.Errorf("%s %w: %w", dir, ErrUnknown, err)
	}
	m, ok := v.manifest(note)
	if !ok {
		if m, err = firmware.Parse(textOf(note)); err != nil {
			return nil
		}
	}
	for _, s := range m.Systems {
		v.arch(dir, m, s, note)
	}
	v.sums(dir, m)
	return nil
}

// arch verifies what a release has for one architecture.
func (v *verifier) arch(dir string, m firmware.Manifest, s firmware.System, note []byte) {
	path := func(end string) string { return filepath.Join(dir, File(m.Version, s.Arch, end)) }
	whole, err := os.ReadFile(path(System))
	if err == nil {
		_, err = io.Copy(io.Discard, s.Content(bytes.NewReader(whole)))
	}
	if !v.judge(named("content", s.Arch), err, contentIsGood, s.Size, s.SHA256) {
		return
	}
	in, ok := v.system(s.Arch, whole, &m)
	v.judge(named("update", s.Arch), carries(path(Bundle), s, note), "has the manifest and the system of the release")
	// One that is missing is missing from the sums, too.
	if d, err := os.Open(path(Disk)); err == nil {
		v.disk(s.Arch, d, whole)
		d.Close()
	}
	if ok {
		v.judge(named("parts", s.Arch), parts(dir, m, s.Arch, in), "%s names every Go module of the program and every package of the lock", Parts(m.Version))
	}
}

// parts says whether the document names all that is in a system.
func parts(dir string, m firmware.Manifest, arch string, in inside) error {
	b, err := os.ReadFile(filepath.Join(dir, Parts(m.Version)))
	if err != nil {
		return err
	}
	have, err := sbom.Named(b)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, File(m.Version, arch, Lock)))
	if err != nil {
		return err
	}
	var lock debian.Lock
	if err := lock.UnmarshalText(text); err != nil {
		return err
	}
	for _, url := range slices.Concat(moduleURLs(in), sbom.URLs(sbom.Packages(lock, nil))) {
		if !slices.Contains(have, url) {
			return fmt.Errorf("%s does not name %s", Parts(m.Version), url)
		}
	}
	return nil
}

func moduleURLs(in inside) []string {
	if in.program == nil {
		return nil
	}
	modules, err := sbom.Modules(in.program, nil)
	if err != nil {
		return nil
	}
	return sbom.URLs(modules)
}

func goVersion(in inside) string {
	if in.program == nil {
		return ""
	}
	return in.program.GoVersion
}

// sums verifies the list of files, that no file is missing from it, and its note.
func (v *verifier) sums(dir string, m firmware.Manifest) {
	list, err := os.ReadFile(filepath.Join(dir, Sums))
	if err != nil {
		v.judge("sums", err, "")
		return
	}
	again, err := sumsOf(dir)
	if err == nil && again != string(list) {
		err = difference(string(list), again)
	}
	v.judge("sums", err, "%s names all files that carry no signature, and they are as it says", Sums)
	if v.trust.unsigned {
		return
	}
	note, err := os.ReadFile(filepath.Join(dir, SumsNote))
	if err != nil {
		v.judge("sums signed", err, "")
		return
	}
	known := m.Keys
	if v.trust.Keys != nil {
		known = *v.trust.Keys
	}
	signed, wanted := signedBy(known, note)
	switch {
	case textOf(note) != sumsText(m.Version, string(list)):
		err = fmt.Errorf("%s is of another list than %s", SumsNote, Sums)
	case wanted > 0:
		err = fmt.Errorf("signed by %s; %d more of %s have to", names(signed), wanted, names(others(known, signed)))
	}
	v.judge("sums signed", err, "by %s", names(signed))
}

// difference names the first line that two lists of sums do not share.
func difference(list, found string) error {
	has := func(lines, name string) bool {
		return slices.ContainsFunc(strings.Split(lines, "\n"), func(l string) bool { return strings.HasSuffix(l, "  "+name) })
	}
	name := func(line string) string {
		_, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		return name
	}
	for line := range strings.Lines(found) {
		switch {
		case strings.Contains(list, line):
		case has(list, name(line)):
			return fmt.Errorf("%s is not as %s says", name(line), Sums)
		default:
			return fmt.Errorf("%s is in the folder and not in %s", name(line), Sums)
		}
	}
	for line := range strings.Lines(list) {
		if !strings.Contains(found, line) {
			return fmt.Errorf("%s is in %s and not in the folder", name(line), Sums)
		}
	}
	return fmt.Errorf("%s is not in its one form", Sums)
}
