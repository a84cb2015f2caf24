package boot

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/firmware/slot"
	"gatehouse/image"
	"gatehouse/image/authenticode"
	"gatehouse/image/efivar"
	"gatehouse/image/keys"
	"gatehouse/image/pkcs7"
	"gatehouse/image/uki"
)

// next is a release that follows the built image: the same kernel and files, and
// another program.
type next struct {
	version firmware.Version
	epoch   uint64            // 0: as the image
	program string            // folder of the program, from the root of the repository
	sick    change            // of its sources, that makes it sick; none: it is well
	closed  bool              // its approvals are of something else: the TPM opens nothing for it
	signers []note.Signer     // none: those of the build
	keys    firmware.Keys     // who signs the release after it; none: as the build
	approve *ecdsa.PrivateKey // nil: the key of the build
	revoked [][32]byte        // what it has firmware refuse, by Authenticode's SHA-256
	before  []slot.Digest     // of releases that were in the slot before this one

	expected []approval.Expected // registers of each way of starting
	bytes    []byte              // of the UKI
	note     []byte
}

// make builds the UKI and signs the manifest, with the keys of the build but for
// those that the release says.
func (n *next) make(t testing.TB) {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if n.epoch == 0 {
		n.epoch = image.Epoch
	}
	if n.approve == nil {
		n.approve = set[keys.Release].Signer.(*ecdsa.PrivateKey)
	}
	public, err := approval.EncodeKey(&n.approve.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	var parts []uki.Section
	for _, s := range sections(t) {
		switch s.Name {
		case ".osrel":
			s.Content = fmt.Appendf(nil, "ID=gatehouse\nNAME=Gatehouse\nPRETTY_NAME=\"Gatehouse %s\"\nVERSION_ID=%q\n", n.version, n.version)
		case ".initrd":
			s.Content = n.initrd(t, s.Content)
		case ".pcrpkey":
			s.Content = public
		case ".cmdline", ".uname", ".linux":
		default:
			continue // of the stub, or made below
		}
		parts = append(parts, s)
	}
	// As the image has them: the kernel last.
	slices.SortStableFunc(parts, func(a, b uki.Section) int { return order(a.Name) - order(b.Name) })
	for _, p := range uki.Paths() {
		v, err := uki.Registers(parts, p)
		if err != nil {
			t.Fatal(err)
		}
		if n.closed {
			v[11] = [32]byte{1}
		}
		n.expected = append(n.expected, approval.Expected{Path: string(p), Registers: v})
	}
	signatures, err := approval.Make(n.approve, n.epoch, n.expected)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := uki.Assemble(stub(t), append([]uki.Section{{Name: ".pcrsig", Content: signatures}}, parts...))
	if err != nil {
		t.Fatal(err)
	}
	if n.bytes, err = authenticode.Sign(whole, set[keys.Programs].Certificate, set[keys.Programs].Signer); err != nil {
		t.Fatal(err)
	}
	n.sign(t)
	t.Logf("version %s: %d bytes", n.version, len(n.bytes))
}

// sign makes the manifest of what was built.
func (n *next) sign(t testing.TB) {
	t.Helper()
	of, err := keys.LoadSigners(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	if len(n.keys.Keys) == 0 {
		n.keys = of.Keys
	}
	if len(n.signers) == 0 {
		n.signers = of.All(of.Keys)
	}
	signatures, err := approval.Make(n.approve, n.epoch, n.expected)
	if err != nil {
		t.Fatal(err)
	}
	public, err := approval.EncodeKey(&n.approve.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	approved, err := approval.Open(signatures, public)
	if err != nil {
		t.Fatal(err)
	}
	starts := approved.Starts
	slices.SortFunc(starts, func(a, b approval.Start) int { return bytes.Compare([]byte(a.Path), []byte(b.Path)) })
	m := firmware.Manifest{
		Product: "gatehouse", Version: n.version, Epoch: n.epoch, Issued: time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC), Keys: n.keys, Approver: &n.approve.PublicKey,
		Systems: []firmware.System{{Arch: "amd64", Size: int64(len(n.bytes)), SHA256: sha256.Sum256(n.bytes), Starts: starts}},
	}
	if n.note, err = m.Sign(n.signers...); err != nil {
		t.Fatal(err)
	}
}

// successors are other people's keys: who signs manifests, and what approves registers,
// once those of the build are given up.
type successors struct {
	keys.Signers
	approver *ecdsa.PrivateKey
}

func newSuccessors(t testing.TB) successors {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	set, err := keys.New(dir, "successors", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	signers, err := keys.NewSigners(dir, []string{"fay", "gil", "hal"}, 2)
	if err != nil {
		t.Fatal(err)
	}
	return successors{signers, set[keys.Release].Signer.(*ecdsa.PrivateKey)}
}

// rotation makes a release the one that hands over to the successors, and shuts out all
// before it: both sides sign it.
func (s successors) rotation(t testing.TB, n *next) {
	t.Helper()
	now, err := keys.LoadSigners(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	s.release(n)
	n.signers = append(now.All(now.Keys), n.signers...)
}

// release makes a release one of theirs.
func (s successors) release(n *next) {
	n.epoch, n.keys, n.approve, n.signers = image.Epoch+1, s.Keys, s.approver, s.All(s.Keys)
}

func order(name string) int {
	return slices.Index([]string{".osrel", ".cmdline", ".uname", ".pcrpkey", ".initrd", ".linux"}, name)
}

// change makes a program another one, by replacing a text in one of its sources.
type change struct{ file, old, new string }

// write has the compiler see the change, by its overlay; "" where there is none.
func (c change) write(t testing.TB) string {
	t.Helper()
	if c.file == "" {
		return ""
	}
	path, err := filepath.Abs(filepath.Join("../..", c.file))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(c.old)) {
		t.Fatalf("%s has no %q (%v)", c.file, c.old, err)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, filepath.Base(path))
	text, err := json.Marshal(map[string]map[string]string{"Replace": {path: changed}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	for name, content := range map[string][]byte{changed: bytes.Replace(b, []byte(c.old), []byte(c.new), 1), list: text} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return list
}

// bundle is the release in one file.
func (n *next) bundle(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := firmware.WriteBundle(&b, n.note, bytes.NewReader(n.bytes)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// stub is the first part of the built UKI, from its package.
func stub(t testing.TB) []byte {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(output, "cache/unpacked/systemd-boot-efi-*/usr/lib/systemd/boot/efi/linuxx64.efi.stub"))
	if err != nil || len(found) == 0 {
		t.Fatalf("there is no stub in the cache of the build (%v): build the image first (make image)", err)
	}
	b, err := os.ReadFile(found[len(found)-1])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// revocation is the change of dbx as an image build signs it.
func (n *next) revocation(t testing.TB) []byte {
	t.Helper()
	set, err := keys.Load(built(t, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := efivar.Sign("dbx", efivar.HashList(n.revoked), time.Now(), pkcs7.Signer{Certificate: set[keys.Exchange].Certificate, Key: set[keys.Exchange].Signer})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// initrd is the built archive with another program in the place of the box's, and with
// what firmware is to refuse. It is as large as a real one: firmware reads, hashes and
// measures it before it starts, which is most of the time that a trial is away.
func (n *next) initrd(t testing.TB, built []byte) []byte {
	t.Helper()
	const program, revocation = "bin/gatehoused", "etc/gatehouse/secureboot/dbx.auth"
	unpacked, err := zstd.NewReader(bytes.NewReader(built))
	if err != nil {
		t.Fatal(err)
	}
	defer unpacked.Close()
	whole, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(whole)))
	if err != nil {
		t.Fatal(err)
	}
	files := []cpio.Record{cpio.StaticRecord(n.compile(t), cpio.Info{Name: program, Mode: cpio.S_IFREG | 0o755})}
	if len(n.revoked) > 0 {
		files = append(files, cpio.StaticRecord(n.revocation(t), cpio.Info{Name: revocation, Mode: cpio.S_IFREG | 0o644}))
	}
	had := len(records)
	records = slices.DeleteFunc(records, func(r cpio.Record) bool { return r.Name == program || r.Name == revocation })
	if len(records) == had {
		t.Fatalf("the built archive has no %s", program)
	}
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.Newc.Writer(z)
	if err := errors.Join(cpio.WriteRecords(w, append(records, files...)), cpio.WriteTrailer(w), z.Close()); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// compile builds the program.
func (n *next) compile(t testing.TB) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-overlay", n.sick.write(t), "-o", file,
		"-ldflags", "-s -w -buildid= -X main.version="+n.version.String()+" -X main.built=2026-11-29T00:00:00Z", "./"+n.program)
	cmd.Dir, cmd.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building %s: %v: %s", n.program, err, out)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}
