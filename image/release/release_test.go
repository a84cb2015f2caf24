package release

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/firmware/slot"
	"gatehouse/image/authenticode"
	"gatehouse/image/debian"
	"gatehouse/image/disk"
	"gatehouse/image/initramfs"
	"gatehouse/image/keys"
	"gatehouse/image/sbom"
	"gatehouse/image/target"
	"gatehouse/image/uki"
)

// stub is the smallest EFI program that sections can be added to and a signature.
func stub(x target.Target) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x600)
	copy(b, "MZ")
	le.PutUint32(b[0x3c:], 0x80)
	p := b[0x80:]
	copy(p, "PE\x00\x00")
	le.PutUint16(p[4:], map[string]uint16{"amd64": 0x8664, "arm64": 0xaa64}[x.Arch])
	le.PutUint16(p[6:], 1)
	le.PutUint16(p[20:], 240)
	o := p[24:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[32:], 512)
	le.PutUint32(o[36:], 512)
	le.PutUint32(o[56:], 0x2000)
	le.PutUint32(o[60:], 0x400)
	le.PutUint32(o[108:], 16)
	s := o[240:]
	copy(s, ".text")
	le.PutUint32(s[8:], 0x123)
	le.PutUint32(s[12:], 0x1000)
	le.PutUint32(s[16:], 0x200)
	le.PutUint32(s[20:], 0x400)
	return b
}

// maker makes releases with a small program in them.
type maker struct {
	dir     string // of the keys
	set     keys.Set
	signers keys.Signers
	lock    string
	program string
	target  target.Target
	disks   bool // that are built, too: each takes a second
	// archive is kept while the keys in it stay, since it takes a compiler.
	archive []byte
	inside  string
}

func newMaker(t *testing.T, threshold int, names ...string) *maker {
	t.Helper()
	m := &maker{dir: filepath.Join(t.TempDir(), "keys"), target: target.AMD64}
	var err error
	if m.set, err = keys.New(m.dir, "Test", time.Now()); err != nil {
		t.Fatal(err)
	}
	if m.signers, err = keys.NewSigners(m.dir, names, threshold); err != nil {
		t.Fatal(err)
	}
	m.lock = m.writeLock(t)
	if m.program, err = filepath.Abs("../initramfs/testdata/init"); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *maker) writeLock(t *testing.T) string {
	t.Helper()
	text, err := debian.Lock{{Name: "libc6", Version: "2.36", File: "libc6_2.36_" + m.target.Arch + ".deb", SHA256: [32]byte{1}}}.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "packages.lock")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// forARM makes the same for the other processor, by the same people. The program
// in it stays: that of arm64 would take a compiler half a minute.
func (m *maker) forARM(t *testing.T) *maker {
	t.Helper()
	n := *m
	n.target = target.ARM64
	n.lock = n.writeLock(t)
	return &n
}

// build makes a system and a disk of a version.
func (m *maker) build(t *testing.T, version string, epoch uint64, tweak func([]uki.Section) []uki.Section) Build {
	t.Helper()
	if next := m.signers.Next.Text(); m.inside != next {
		var b bytes.Buffer
		a := initramfs.Archive{Arch: "amd64", Program: m.program, Temp: t.TempDir(), Files: []initramfs.File{{Path: firmware.KeysFile, Content: []byte(next), Mode: 0o644}}}
		if err := a.Write(&b); err != nil {
			t.Fatal(err)
		}
		m.archive, m.inside = b.Bytes(), next
	}
	key := m.set[keys.Release].Signer.(*ecdsa.PrivateKey)
	public, err := approval.EncodeKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sections := []uki.Section{
		{Name: ".osrel", Content: []byte("ID=gatehouse\nVERSION_ID=\"" + version + "\"\n")}, {Name: ".cmdline", Content: []byte("quiet")},
		{Name: ".pcrpkey", Content: public}, {Name: ".initrd", Content: m.archive}, {Name: ".linux", Content: []byte("kernel " + version)},
	}
	var starts []approval.Expected
	for _, p := range uki.Paths() {
		values, err := uki.Registers(sections, p)
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, approval.Expected{Path: string(p), Registers: values})
	}
	signatures, err := approval.Make(key, epoch, starts)
	if err != nil {
		t.Fatal(err)
	}
	if tweak != nil {
		sections = tweak(sections)
	}
	whole, err := uki.Assemble(stub(m.target), append([]uki.Section{{Name: ".pcrsig", Content: signatures}}, sections...))
	if err != nil {
		t.Fatal(err)
	}
	return m.hand(t, m.sign(t, whole), m.sign(t, stub(m.target)))
}

func (m *maker) sign(t *testing.T, program []byte) []byte {
	t.Helper()
	db := m.set[keys.Programs]
	signed, err := authenticode.Sign(program, db.Certificate, db.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// hand writes what a build of the image leaves.
func (m *maker) hand(t *testing.T, system, loader []byte) Build {
	t.Helper()
	dir := t.TempDir()
	b := Build{Arch: m.target.Arch, Files: map[string]string{System: filepath.Join(dir, "a.efi"), Lock: m.lock}}
	if err := os.WriteFile(b.Files[System], system, 0o600); err != nil {
		t.Fatal(err)
	}
	if !m.disks {
		return b
	}
	f, err := os.Create(filepath.Join(dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = disk.Write(f, []disk.File{
		{Path: m.target.LoaderPath(), Content: loader}, {Path: slot.A.Path(), Content: system, Reserve: disk.SlotSize},
		{Path: slot.B.Path(), Reserve: disk.SlotSize}, {Path: slot.ConfigPath, Content: slot.Config(slot.A)},
	}, []byte("test"))
	if err != nil {
		t.Fatal(err)
	}
	b.Files[Disk] = filepath.Join(dir, "a.img.gz")
	pack(t, f.Name(), b.Files[Disk])
	return b
}

func withoutDisk(b Build) Build {
	b.Files = maps.Clone(b.Files)
	delete(b.Files, Disk)
	return b
}

func pack(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.Close(), out.Close()); err != nil {
		t.Fatal(err)
	}
}

// release makes a folder of builds.
func (m *maker) release(t *testing.T, version string, builds ...Build) string {
	t.Helper()
	v, err := firmware.ParseVersion(version)
	if err != nil {
		t.Fatal(err)
	}
	var all []sbom.Part
	for _, b := range builds {
		system, err := os.ReadFile(b.Files[System])
		if err != nil {
			t.Fatal(err)
		}
		in, err := look(system)
		if err != nil {
			t.Fatal(err)
		}
		modules, err := sbom.Modules(in.program, nil)
		if err != nil {
			t.Fatal(err)
		}
		var lock debian.Lock
		text, err := os.ReadFile(b.Files[Lock])
		if err != nil {
			t.Fatal(err)
		}
		if err := lock.UnmarshalText(text); err != nil {
			t.Fatal(err)
		}
		all = append(append(all, modules...), sbom.Packages(lock, nil)...)
	}
	parts, err := sbom.Document{Name: "test", Parts: all}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "release")
	r := Release{Version: v, Issued: time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC), Signers: m.signers, Parts: parts, Systems: builds}
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (m *maker) trust() Trust {
	known := m.signers.Keys
	return Trust{Keys: &known, Programs: m.set[keys.Programs].Certificate}
}

// verify returns the checks that failed, and all that were not made.
func verify(t *testing.T, path string, trust Trust) (bad []Check, skipped []string) {
	t.Helper()
	r, err := Verify(path, trust)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Checks) == 0 {
		t.Fatalf("nothing was verified of %s", path)
	}
	for _, c := range r.Checks {
		if c.State == Unchecked {
			skipped = append(skipped, c.Name)
		}
		if c.Detail == "" {
			t.Errorf("%s: no words", c.Name)
		}
	}
	return r.Bad(), skipped
}

func good(t *testing.T, path string, trust Trust) {
	t.Helper()
	if bad, skipped := verify(t, path, trust); len(bad) > 0 || len(skipped) > 0 {
		t.Errorf("%s: bad %+v, not checked %v", filepath.Base(path), bad, skipped)
	}
}

// A release that was spoiled in any place is found out, by the check that is for it.
func TestBOX3_SpoiledReleasesAreFound(t *testing.T) {
	m := newMaker(t, 1, "ada")
	m.disks = true
	fine := m.build(t, "1.5.0", 3, nil)
	good(t, m.release(t, "1.5.0", fine), m.trust())
	whole := m.release(t, "1.5.0", withoutDisk(fine)) // a disk takes a second each time
	good(t, whole, m.trust())
	stranger := newMaker(t, 1, "ada")
	v := firmware.Version{Major: 1, Minor: 5}
	name := func(end string) string { return File(v, "amd64", end) }
	flip := func(end int) func([]byte) []byte {
		return func(b []byte) []byte { b[(len(b)+end)%len(b)] ^= 1; return b }
	}
	change := func(file string, f func([]byte) []byte) func(string) error {
		return func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, file))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, file), f(b), 0o600))
		}
	}
	for what, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"a manifest changed":         {change(Note, func(b []byte) []byte { return bytes.Replace(b, []byte("epoch 3"), []byte("epoch 4"), 1) }), "manifest"},
		"a day changed":              {change(Note, func(b []byte) []byte { return bytes.Replace(b, []byte("-28"), []byte("-27"), 1) }), "manifest"},
		"signatures cut off":         {change(Note, func(b []byte) []byte { return []byte(textOf(b) + "\n") }), "manifest"},
		"an empty manifest":          {change(Note, func([]byte) []byte { return nil }), "manifest"},
		"a system changed":           {change(name(System), flip(100)), "content amd64"},
		"a system cut":               {change(name(System), func(b []byte) []byte { return b[:len(b)-8] }), "content amd64"},
		"no system":                  {func(dir string) error { return os.Remove(filepath.Join(dir, name(System))) }, "content amd64"},
		"an update changed":          {change(name(Bundle), flip(-100)), "update amd64"},
		"an update cut":              {change(name(Bundle), func(b []byte) []byte { return b[:len(b)/2] }), "update amd64"},
		"an update with more":        {change(name(Bundle), func(b []byte) []byte { return append(b, 0) }), "update amd64"},
		"an update of another note":  {change(name(Bundle), func(b []byte) []byte { return bytes.Replace(b, []byte("-28"), []byte("-27"), 1) }), "update amd64"},
		"no update":                  {func(dir string) error { return os.Remove(filepath.Join(dir, name(Bundle))) }, "update amd64"},
		"a disk that is none":        {func(dir string) error { return os.WriteFile(filepath.Join(dir, name(Disk)), []byte("x"), 0o600) }, "disk amd64"},
		"a lock changed":             {change(name(Lock), func(b []byte) []byte { return bytes.Replace(b, []byte("2.36"), []byte("2.37"), 1) }), "parts amd64"},
		"parts left out":             {change(Parts(v), func(b []byte) []byte { return bytes.Replace(b, []byte("pkg:deb"), []byte("pkg:rpm"), 1) }), "parts amd64"},
		"no parts":                   {func(dir string) error { return os.Remove(filepath.Join(dir, Parts(v))) }, "parts amd64"},
		"a file that is not listed":  {func(dir string) error { return os.WriteFile(filepath.Join(dir, "x"), nil, 0o600) }, "sums"},
		"a line of the sums is gone": {change(Sums, func(b []byte) []byte { return b[bytes.IndexByte(b, '\n')+1:] }), "sums"},
		"no sums":                    {func(dir string) error { return os.Remove(filepath.Join(dir, Sums)) }, "sums"},
		"sums signed by a stranger": {func(dir string) error {
			list, err := os.ReadFile(filepath.Join(dir, Sums))
			if err != nil {
				return err
			}
			b, err := signNote(filepath.Join(dir, "none"), sumsText(v, string(list)), stranger.signers)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, SumsNote), b, 0o600))
		}, "sums signed"},
		"sums of another version signed": {func(dir string) error {
			list, err := os.ReadFile(filepath.Join(dir, Sums))
			if err != nil {
				return err
			}
			b, err := signNote(filepath.Join(dir, "none"), sumsText(firmware.Version{Major: 9}, string(list)), m.signers)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, SumsNote), b, 0o600))
		}, "sums signed"},
	} {
		dir := filepath.Join(t.TempDir(), "release")
		if err := errors.Join(os.CopyFS(dir, os.DirFS(whole)), c.spoil(dir)); err != nil {
			t.Fatal(err)
		}
		bad, _ := verify(t, dir, m.trust())
		if !slices.ContainsFunc(bad, func(b Check) bool { return b.Name == c.want }) {
			t.Errorf("%s: %+v, want %s to fail", what, bad, c.want)
		}
		if err := Sign(dir, m.signers); err == nil && c.want != "manifest" && c.want != "sums signed" && c.want != "update amd64" {
			t.Errorf("%s: signed again", what)
		}
	}
	if bad, _ := verify(t, whole, stranger.trust()); len(bad) < 3 {
		t.Errorf("by a stranger's keys: %+v", bad)
	}
	for running, want := range map[firmware.Version]string{{Major: 1, Minor: 4}: "", {Major: 1, Minor: 5, Patch: 1}: "older"} {
		trust := m.trust()
		trust.Running = &running
		bad, _ := verify(t, whole, trust)
		if got := len(bad) == 0; got != (want == "") || !got && !strings.Contains(bad[0].Detail, want) {
			t.Errorf("a box that runs %s: %+v", running, bad)
		}
	}
	trust := m.trust()
	trust.Epoch = 4
	if bad, _ := verify(t, whole, trust); len(bad) != 1 || !strings.Contains(bad[0].Detail, "epoch 3") {
		t.Errorf("a box that has reached epoch 4: %+v", bad)
	}
}

// What is wrong inside a system that was signed all the same: whoever signs finds it.
func TestBOX3_SystemsThatAreNotWhatTheySay(t *testing.T) {
	m := newMaker(t, 1, "ada")
	replace := func(name string, content []byte) func([]uki.Section) []uki.Section {
		return func(s []uki.Section) []uki.Section {
			s = slices.Clone(s)
			s[slices.IndexFunc(s, func(s uki.Section) bool { return s.Name == name })].Content = content
			return s
		}
	}
	for what, c := range map[string]struct {
		build Build
		want  string
	}{
		"another kernel than approved":       {m.build(t, "1.5.0", 1, replace(".linux", []byte("another"))), "registers amd64"},
		"another command line than approved": {m.build(t, "1.5.0", 1, replace(".cmdline", []byte("init=/bin/sh"))), "registers amd64"},
		"a section that nobody approved":     {m.build(t, "1.5.0", 1, func(s []uki.Section) []uki.Section { return append(s, uki.Section{Name: ".dtb", Content: []byte("x")}) }), "registers amd64"},
		"another version inside":             {m.build(t, "1.4.0", 1, nil), "next amd64"},
	} {
		dir := m.release(t, "1.5.0", c.build)
		bad, _ := verify(t, dir, m.trust())
		if len(bad) != 1 || bad[0].Name != c.want {
			t.Errorf("%s: %+v, want %s alone", what, bad, c.want)
		}
		if err := Sign(dir, m.signers); !errors.Is(err, ErrBad) {
			t.Errorf("%s: signed: %v", what, err)
		}
	}

	m.disks = true
	fine := m.build(t, "1.5.0", 1, nil)
	system, err := os.ReadFile(fine.Files[System])
	if err != nil {
		t.Fatal(err)
	}
	bad, _ := verify(t, m.release(t, "1.5.0", m.hand(t, system, stub(m.target))), m.trust())
	if len(bad) != 1 || bad[0].Name != "loader amd64" {
		t.Errorf("a loader that nobody signed: %+v", bad)
	}
	other := m.build(t, "1.5.0", 1, replace(".osrel", []byte("VERSION_ID=1.5.0\n")))
	mixed := Build{Arch: "amd64", Files: map[string]string{System: fine.Files[System], Disk: other.Files[Disk], Lock: m.lock}}
	if bad, _ := verify(t, m.release(t, "1.5.0", mixed), m.trust()); len(bad) != 1 || bad[0].Name != "disk amd64" {
		t.Errorf("a disk with another system: %+v", bad)
	}
	stranger := newMaker(t, 1, "eve").forARM(t)
	stranger.signers, stranger.archive, stranger.inside = m.signers, m.archive, m.inside
	if _, err := (Release{Version: firmware.Version{Major: 1, Minor: 5}, Signers: m.signers, Issued: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Systems: []Build{fine, stranger.build(t, "1.5.0", 1, nil)}}).manifest(); err == nil || !strings.Contains(err.Error(), "another approver") {
		t.Errorf("two architectures by two approvers are one release: %v", err)
	}
}

// A release for two processors: each system, each disk, each file alone. What is
// named for a processor whose firmware would not start it is refused when it is
// made, and found when it is verified.
func TestBOX1_ReleaseForTwoProcessors(t *testing.T) {
	m := newMaker(t, 1, "ada")
	m.disks = true
	pc := m.build(t, "1.5.0", 1, nil)
	n := m.forARM(t)
	arm := n.build(t, "1.5.0", 1, nil)
	v := firmware.Version{Major: 1, Minor: 5}
	for _, wrong := range []Build{{Arch: "arm64", Files: pc.Files}, {Arch: "amd64", Files: arm.Files}, {Arch: "riscv64", Files: pc.Files}} {
		dir := filepath.Join(t.TempDir(), "release")
		err := Release{Version: v, Signers: m.signers, Issued: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Systems: []Build{wrong}}.Write(dir)
		if err == nil || !strings.Contains(err.Error(), wrong.Arch) {
			t.Errorf("a system named for %s that is for another: %v", wrong.Arch, err)
		}
		whole, err := os.ReadFile(wrong.Files[System])
		if err != nil {
			t.Fatal(err)
		}
		found := &verifier{}
		if _, ok := found.system(wrong.Arch, whole, nil); ok {
			t.Errorf("verified as a system for %s: %+v", wrong.Arch, found.report)
		}
	}
	system, err := os.ReadFile(arm.Files[System])
	if err != nil {
		t.Fatal(err)
	}
	swapped := n.hand(t, system, m.sign(t, stub(target.AMD64)))
	if bad, _ := verify(t, m.release(t, "1.5.0", withoutDisk(pc), swapped), m.trust()); len(bad) != 1 || bad[0].Name != "disk arm64" || !strings.Contains(bad[0].Detail, "for amd64") {
		t.Errorf("a disk for arm64 with the loader of amd64: %+v", bad)
	}
	pcDisk := Build{Arch: "arm64", Files: map[string]string{System: arm.Files[System], Disk: pc.Files[Disk], Lock: n.lock}}
	if bad, _ := verify(t, m.release(t, "1.5.0", withoutDisk(pc), pcDisk), m.trust()); len(bad) != 1 || bad[0].Name != "disk arm64" {
		t.Errorf("the disk of amd64 for arm64: %+v", bad)
	}

	dir := m.release(t, "1.5.0", arm, pc)
	good(t, dir, m.trust())
	for _, arch := range []string{"amd64", "arm64"} {
		for _, end := range []string{System, Bundle, Disk} {
			file := filepath.Join(dir, File(v, arch, end))
			good(t, file, m.trust())
			if r, err := Verify(file, m.trust()); err != nil || !slices.Contains(r.Arches, arch) {
				t.Errorf("%s is for %v: %v", filepath.Base(file), r.Arches, err)
			}
		}
	}
	note, err := os.ReadFile(filepath.Join(dir, Note))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := firmware.Parse(textOf(note))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []Build{pc, arm} {
		whole, err := os.ReadFile(b.Files[System])
		if err != nil {
			t.Fatal(err)
		}
		if s, err := manifest.System(b.Arch); err != nil || s.SHA256 != sha256.Sum256(whole) {
			t.Errorf("a box of %s finds another system than its own: %v", b.Arch, err)
		}
	}
}

// Each file alone, and without anybody's keys.
func TestBOX3_EachFileIsVerifiedAlone(t *testing.T) {
	m := newMaker(t, 1, "ada")
	v := firmware.Version{Major: 1, Minor: 5}
	m.disks = true
	dir := m.release(t, "1.5.0", m.build(t, "1.5.0", 1, nil))
	for _, end := range []string{System, Bundle, Disk} {
		good(t, filepath.Join(dir, File(v, "amd64", end)), m.trust())
	}
	if bad, skipped := verify(t, filepath.Join(dir, Note), m.trust()); len(bad) > 0 || !slices.Equal(skipped, []string{"systems"}) {
		t.Errorf("the manifest: %+v, %v", bad, skipped)
	}
	if bad, skipped := verify(t, dir, Trust{}); len(bad) > 0 || !slices.Equal(skipped, []string{"trust", "secure boot amd64", "loader amd64"}) {
		t.Errorf("without anybody's keys: %+v, %v", bad, skipped)
	}
	for name, content := range map[string]string{"text": "hello\n", "empty": "", "half": "gatehouse"} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Verify(file, m.trust()); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Verify(t.TempDir(), m.trust()); !errors.Is(err, ErrUnknown) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Verify(filepath.Join(dir, "nothing"), m.trust()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	if err := (Release{Version: v, Signers: m.signers}).Write(dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over another: %v", err)
	}
}

// Private keys lie apart, each with its person; the order in which they sign does
// not matter, nor how often.
func TestBOX4_SignedByOneAfterAnother(t *testing.T) {
	m := newMaker(t, 2, "ada", "bob", "eve")
	build := m.build(t, "1.5.0", 1, nil)
	apart := make(map[string]keys.Signers)
	for _, name := range []string{"ada", "bob", "eve"} {
		s := m.signers
		s.Private = map[string]note.Signer{name: m.signers.Private[name]}
		apart[name] = s
	}
	all := m.signers
	var first []byte
	for i, order := range [][]string{{"ada", "bob"}, {"bob", "ada"}, {"ada", "ada", "bob", "bob", "ada"}} {
		m.signers.Private = nil
		dir := m.release(t, "1.5.0", build)
		if bad, _ := verify(t, dir, m.trust()); len(bad) != 2 || bad[0].Name != "manifest" || bad[1].Name != "sums signed" {
			t.Errorf("signed by nobody: %+v", bad)
		}
		if w, err := Wanted(dir, all); err != nil || len(w) != 1 || !strings.Contains(w[0], "2 more of ada, bob and eve") {
			t.Errorf("wanted are %v, %v", w, err)
		}
		for n, name := range order {
			if err := Sign(dir, apart[name]); err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				if bad, _ := verify(t, dir, m.trust()); len(bad) != 2 || !strings.Contains(bad[0].Detail, "1 more") {
					t.Errorf("signed by %s: %+v", name, bad)
				}
			}
		}
		good(t, dir, m.trust())
		if w, err := Wanted(dir, all); err != nil || len(w) != 0 {
			t.Errorf("wanted are still %v, %v", w, err)
		}
		b, err := os.ReadFile(filepath.Join(dir, File(firmware.Version{Major: 1, Minor: 5}, "amd64", Bundle)))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = b
		} else if !bytes.Equal(b, first) {
			t.Errorf("signed in the order %v it is another update", order)
		}
		if err := Sign(dir, newMaker(t, 1, "mallory").signers); err == nil {
			t.Error("signed by one whom the release does not know")
		}
	}
}

// A rotation over two releases, from the folder of the keys to what a box follows.
func TestKEY10_ReleasesCarryARotation(t *testing.T) {
	m := newMaker(t, 1, "ada")
	before := m.trust()
	box := firmware.Trust{Product: firmware.Product, Keys: m.signers.Keys, Version: firmware.Version{Major: 1}, Newest: firmware.Version{Major: 1}, Epoch: 1}
	var err error
	if m.signers, err = keys.Rotate(m.dir, []string{"fay"}, []string{"ada"}, 0); err != nil {
		t.Fatal(err)
	}
	// The old set alone: nobody could follow it.
	whole := m.signers
	m.signers.Private = map[string]note.Signer{"ada": whole.Private["ada"]}
	build := m.build(t, "2.0.0", 1, nil)
	dir := m.release(t, "2.0.0", build)
	if bad, _ := verify(t, dir, before); len(bad) != 1 || bad[0].Name != "rotation" {
		t.Errorf("by the old set alone: %+v", bad)
	}
	if w, err := Wanted(dir, whole); err != nil || len(w) != 1 || !strings.Contains(w[0], "fay") {
		t.Errorf("wanted are %v, %v", w, err)
	}
	if err := Sign(dir, whole); err != nil {
		t.Fatal(err)
	}
	good(t, dir, before)
	manifest := func(dir string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, Note))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, err := box.Open(manifest(dir))
	if err != nil {
		t.Fatal(err)
	}
	after := box.Next(first)
	if _, err := after.Open(manifest(dir)); err != nil {
		t.Errorf("the release that it runs, to mend its other slot: %v", err)
	}
	if m.signers, err = keys.Rotated(m.dir); err != nil {
		t.Fatal(err)
	}
	if err := Sign(dir, m.signers); err != nil {
		t.Errorf("signed once more afterwards: %v", err)
	}
	second := m.release(t, "2.1.0", m.build(t, "2.1.0", 1, nil))
	good(t, second, m.trust())
	if _, err := after.Open(manifest(second)); err != nil {
		t.Errorf("a box that followed: %v", err)
	}
	if _, err := box.Open(manifest(second)); !errors.Is(err, firmware.ErrSignatures) {
		t.Errorf("a box that did not: %v", err)
	}

	// The image goes by other keys than its manifest names.
	m.inside, m.signers.Next = before.Keys.Text(), *before.Keys
	third := m.release(t, "2.2.0", m.build(t, "2.2.0", 1, nil))
	if bad, _ := verify(t, third, m.trust()); !slices.ContainsFunc(bad, func(c Check) bool { return c.Name == "next amd64" }) {
		t.Errorf("an image with other keys: %+v", bad)
	}
}

// Made again of the same it is the same bytes, whoever asks.
func TestBOX15_ReleaseSameBytes(t *testing.T) {
	m := newMaker(t, 2, "ada", "bob", "eve")
	m.disks = true
	build := m.build(t, "1.5.0", 1, nil)
	one, two := m.release(t, "1.5.0", build), m.release(t, "1.5.0", build)
	entries, err := os.ReadDir(one)
	if err != nil || len(entries) != 8 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		a, errA := os.ReadFile(filepath.Join(one, e.Name()))
		b, errB := os.ReadFile(filepath.Join(two, e.Name()))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %v %v", e.Name(), errA, errB)
		}
	}
}
