package firmware

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"gatehouse/firmware/approval"
	"gatehouse/tpm/pcr"
)

// person is one who signs releases.
type person struct {
	note.Signer
	public, secret string
}

func newPerson(t testing.TB, name string) person {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	return person{s, public, secret}
}

// house is a box and those who sign for it: two of three.
type house struct {
	people  []person
	trust   Trust
	content []byte
	release Manifest

	approver *ecdsa.PrivateKey
}

// approve has the approver's word for each way of starting.
func (h house) approve(t testing.TB, epoch uint64) []approval.Start {
	t.Helper()
	var starts []approval.Start
	for i, path := range []string{"direct", "loader", "loader-secure"} {
		a, err := pcr.Approve(h.approver, approval.Reference(epoch), pcr.Values{11: {1}, 12: {byte(i)}, 13: {}})
		if err != nil {
			t.Fatal(err)
		}
		starts = append(starts, approval.Start{Path: path, Approval: a})
	}
	return starts
}

func newHouse(t testing.TB) house {
	t.Helper()
	h := house{content: bytes.Repeat([]byte("the system "), 5000)}
	var keys []string
	for _, n := range []string{"ada", "bob", "eve"} {
		p := newPerson(t, n)
		h.people, keys = append(h.people, p), append(keys, p.public)
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h.approver = k
	h.trust = Trust{Product: "gatehouse", Keys: Keys{2, keys}, Version: Version{1, 4, 0}, Newest: Version{1, 4, 0}, Epoch: 3}
	h.release = Manifest{
		Product: "gatehouse", Version: Version{1, 5, 0}, Epoch: 3, Minimum: Version{1, 2, 0}, Issued: time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC),
		Keys: h.trust.Keys, Approver: &k.PublicKey,
		Systems: []System{
			{"amd64", int64(len(h.content)), sha256.Sum256(h.content), h.approve(t, 3)},
			{"arm64", 5, sha256.Sum256([]byte("other")), nil},
		},
	}
	return h
}

func (h house) sign(t testing.TB, m Manifest, who ...int) []byte {
	t.Helper()
	var s []note.Signer
	for _, i := range who {
		s = append(s, h.people[i])
	}
	b, err := m.Sign(s...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBOX4_ReleaseIsReadAsItWasSigned(t *testing.T) {
	h := newHouse(t)
	b := h.sign(t, h.release, 0, 2)
	m, err := h.trust.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := h.release.Text()
	if got, err := m.Text(); err != nil || got != want {
		t.Errorf("%v\n%s\nwant\n%s", err, got, want)
	}
	s, err := m.System("amd64")
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(h.content), "byte by byte": iotest.OneByteReader(bytes.NewReader(h.content)),
		"end with the last byte": iotest.DataErrReader(bytes.NewReader(h.content)),
	} {
		if got, err := io.ReadAll(s.Content(r)); err != nil || !bytes.Equal(got, h.content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	next := h.trust.Next(m)
	if next.Version != m.Version || next.Newest != m.Version || next.Epoch != 3 {
		t.Errorf("%+v", next)
	}
	if _, err := next.Open(b); err != nil {
		t.Errorf("the same release once more, to mend a slot: %v", err)
	}
}

// A corpus of bad bundles: what The Update Framework names (theupdateframework.io,
// "Attacks and weaknesses"), each kind of bad signature, and damage everywhere.
// None is accepted, each has its reason, and none needs more memory than a manifest.
func TestBOX4_BadBundles(t *testing.T) {
	h := newHouse(t)
	stranger := newPerson(t, "ada") // the name of one of ours, another key
	good := h.sign(t, h.release, 0, 1)
	text, err := h.release.Text()
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	refuse := func(name string, b []byte, want ...error) {
		t.Helper()
		tried++
		_, err := h.trust.Open(b)
		if err == nil {
			t.Fatalf("%s: accepted:\n%s", name, b)
		}
		if len(err.Error()) < 20 || len(err.Error()) > 500 {
			t.Errorf("%s: the reason is %q", name, err)
		}
		for _, w := range want {
			if !errors.Is(err, w) {
				t.Errorf("%s: %v, want %v", name, err, w)
			}
		}
	}
	resign := func(text string, who ...note.Signer) []byte {
		b, err := note.Sign(&note.Note{Text: text}, who...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ada, bob := h.people[0], h.people[1]

	// Arbitrary software; keys that leaked, fewer than the threshold.
	refuse("unsigned", []byte(text), ErrMalformed)
	refuse("empty signatures", []byte(text+"\n"), ErrMalformed)
	refuse("one signature", h.sign(t, h.release, 0), ErrSignatures)
	refuse("by strangers", resign(text, stranger, newPerson(t, "mallory")), ErrSignatures)
	refuse("one of ours and a stranger", resign(text, ada, newPerson(t, "mallory")), ErrSignatures)
	refuse("one of ours and a stranger of the same name", resign(text, bob, stranger), ErrSignatures)
	one := h.sign(t, h.release, 0)
	line := one[bytes.LastIndex(one[:len(one)-1], []byte("\n"))+1:]
	refuse("one signature twice", append(bytes.Clone(one), line...), ErrSignatures)
	refuse("one signature ninety times", append(bytes.Clone(one), bytes.Repeat(line, 89)...), ErrSignatures)
	refuse("a thousand signatures", append(bytes.Clone(one), bytes.Repeat(line, 1000)...))

	// Rollback, of version and of epoch; wrong product; fast-forward and its like.
	change := func(name string, want error, f func(*Manifest)) {
		t.Helper()
		m := h.release
		m.Systems = append([]System(nil), m.Systems...)
		f(&m)
		refuse(name, h.sign(t, m, 0, 1), want)
	}
	change("an older version", ErrOlder, func(m *Manifest) { m.Version, m.Minimum = Version{1, 3, 9}, Version{} })
	change("an older epoch", ErrOlder, func(m *Manifest) { m.Epoch, m.Systems[0].Starts = 2, h.approve(t, 2) })
	change("another product", ErrOther, func(m *Manifest) { m.Product = "gatehouse-hub" })
	change("asks for a newer one first", ErrTooNew, func(m *Manifest) { m.Minimum = Version{1, 4, 1} })

	// Every line left out, doubled, exchanged with the next, or grown, signed by those who should know better.
	lines := strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
	lines[len(lines)-1] += "\n"
	for i := range lines {
		without := strings.Join(append(append([]string(nil), lines[:i]...), lines[i+1:]...), "")
		if !strings.HasPrefix(lines[i], "start ") && !strings.HasPrefix(lines[i], "key ") && !strings.HasPrefix(lines[i], "system arm64") {
			refuse(fmt.Sprintf("without line %d", i), resign(without, ada, bob), ErrMalformed)
		}
		refuse(fmt.Sprintf("line %d twice", i), resign(strings.Join(lines[:i+1], "")+lines[i]+strings.Join(lines[i+1:], ""), ada, bob), ErrMalformed)
		if i+1 < len(lines) && !(strings.HasPrefix(lines[i], "key ") && strings.HasPrefix(lines[i+1], "key ")) {
			refuse(fmt.Sprintf("lines %d and %d exchanged", i, i+1), resign(strings.Join(lines[:i], "")+lines[i+1]+lines[i]+strings.Join(lines[i+2:], ""), ada, bob), ErrMalformed)
		}
		for _, grown := range []string{" x", "\t", " ", "\r"} {
			l := strings.TrimSuffix(lines[i], "\n") + grown + "\n"
			b, err := note.Sign(&note.Note{Text: strings.Join(lines[:i], "") + l + strings.Join(lines[i+1:], "")}, ada, bob)
			if err != nil {
				continue // the library signs no control characters
			}
			refuse(fmt.Sprintf("line %d with %q", i, grown), b, ErrMalformed)
		}
	}
	for _, words := range [][2]string{
		{"epoch 3", "epoch 03"}, {"epoch 3", "epoch +3"}, {"epoch 3", "epoch 0"}, {"epoch 3", "epoch -1"}, {"epoch 3", "epoch 9223372036854775808"},
		{"version 1.5.0", "version 1.5"}, {"version 1.5.0", "version 01.5.0"}, {"version 1.5.0", "version 1.5.0-rc1"}, {"version 1.5.0", "version 1.5.4294967296"},
		{"minimum 1.2.0", "minimum 2.0.0"}, {"issued 2026-11-28", "issued 2026-11-31"}, {"issued 2026-11-28", "issued 1970-01-01"}, {"issued 2026-11-28", "issued 26-11-28"},
		{"threshold 2", "threshold 0"}, {"threshold 2", "threshold 4"}, {"threshold 2", "threshold 99999"}, {"product gatehouse", "product Gatehouse"}, {"product gatehouse", "product ../x"},
		{"system amd64 ", "system amd64  "}, {"system amd64 ", "system zmd64 "}, {fmt.Sprintf("amd64 %d ", len(h.content)), "amd64 0 "}, {fmt.Sprintf("amd64 %d ", len(h.content)), "amd64 67108865 "},
		{"epoch 3", "epoch 4"}, {"approver MFk", "approver MFo"}, {"approver ", "approver AAAA"},
		{fmt.Sprintf("amd64 %d ", len(h.content)), "amd64 -1 "}, {"start amd64 direct", "start arm64 direct"}, {"start amd64 direct", "start amd64 zirect"}, {"key bob", "key ada"},
	} {
		if !strings.Contains(text, words[0]) {
			t.Fatalf("the manifest has no %q", words[0])
		}
		refuse(words[1], resign(strings.Replace(text, words[0], words[1], 1), ada, bob), ErrMalformed)
	}
	same := h.release
	same.Keys = Keys{2, []string{ada.public, ada.public, bob.public}}
	if _, err := same.Text(); !errors.Is(err, ErrMalformed) {
		t.Errorf("one key twice: %v", err)
	}
	same.Keys.Keys[1] = "ida" + ada.public[strings.Index(ada.public, "+"):]
	if _, err := same.Text(); !errors.Is(err, ErrMalformed) {
		t.Errorf("one key under two names: %v", err)
	}

	// Approvals: by nobody, by another key, of another start, of another epoch.
	unsignable := func(name string, f func(*Manifest)) {
		t.Helper()
		m := h.release
		m.Systems = append([]System(nil), m.Systems...)
		m.Systems[0].Starts = append([]approval.Start(nil), m.Systems[0].Starts...)
		f(&m)
		if _, err := m.Text(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	wide, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unsignable("approvals without an approver", func(m *Manifest) { m.Approver = nil })
	unsignable("an approver without approvals", func(m *Manifest) { m.Systems[0].Starts = nil })
	unsignable("another approver", func(m *Manifest) { m.Approver = &other.PublicKey })
	unsignable("an approver that no TPM knows", func(m *Manifest) { m.Approver = &wide.PublicKey })
	unsignable("a policy exchanged", func(m *Manifest) { m.Systems[0].Starts[1].Approval.Policy = m.Systems[0].Starts[0].Approval.Policy })
	unsignable("approvals of the epoch before", func(m *Manifest) { m.Systems[0].Starts = h.approve(t, 2) })

	// Endless data, truncation, and damage in every place.
	refuse("endless", append(bytes.Clone(good), bytes.Repeat([]byte("x"), MaxManifest)...), ErrMalformed)
	refuse("zeros", make([]byte, 1000), ErrMalformed)
	for n := range good {
		if n%3 == 0 {
			refuse(fmt.Sprintf("cut at %d", n), good[:n])
		}
		for _, bit := range []byte{0, 3, 7} {
			bad := bytes.Clone(good)
			bad[n] ^= 1 << bit
			refuse(fmt.Sprintf("bit %d of byte %d", bit, n), bad)
		}
	}
	// A signature's last character has bits that say nothing: each of them set.
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		bad := bytes.Clone(good)
		at := bytes.LastIndexByte(bad, '=') - 1
		if bad[at] != byte(c) {
			bad[at] = byte(c)
			refuse(fmt.Sprintf("its last character %c", c), bad)
		}
	}
	if tried < 2000 {
		t.Errorf("%d bad bundles, want 2000", tried)
	}
	t.Logf("%d bad bundles", tried)
}

func TestBOX4_ContentIsTheSignedOne(t *testing.T) {
	h := newHouse(t)
	s := h.release.Systems[0]
	for name, c := range map[string][]byte{
		"nothing": nil, "cut": h.content[:len(h.content)-1], "longer": append(bytes.Clone(h.content), 0),
		"changed at the start": append([]byte{'T'}, h.content[1:]...), "changed at the end": append(bytes.Clone(h.content[:len(h.content)-1]), 'x'),
		"endless": bytes.Repeat([]byte("x"), 1<<20), "another architecture's": []byte("other"),
	} {
		got, err := io.ReadAll(s.Content(bytes.NewReader(c)))
		if !errors.Is(err, ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
		if int64(len(got)) > s.Size {
			t.Errorf("%s: %d bytes were passed on of at most %d", name, len(got), s.Size)
		}
	}
	// Swapped between the check and the use: what is passed on is what is checked.
	swapped := io.MultiReader(bytes.NewReader(h.content[:100]), bytes.NewReader(bytes.Repeat([]byte("x"), len(h.content)-100)))
	if _, err := io.ReadAll(s.Content(swapped)); !errors.Is(err, ErrContent) {
		t.Errorf("swapped meanwhile: %v", err)
	}
	if _, err := io.ReadAll(s.Content(io.MultiReader(bytes.NewReader(h.content), iotest.ErrReader(io.ErrNoProgress)))); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("an error of the way is the error: %v", err)
	}
	if _, err := h.release.System("riscv64"); !errors.Is(err, ErrOther) {
		t.Errorf("an architecture that is not there: %v", err)
	}
}

// Keys change by the word of those before them, over two releases.
// What stands between plus signs in a key is not all of it.
func TestBOX4_KeysThatEndAlikeAreTwo(t *testing.T) {
	var k Keys
	for n := 0; len(k.Keys) < 2; n++ {
		seed := sha256.Sum256([]byte{byte(n), byte(n >> 8)})
		public, err := note.NewEd25519VerifierKey(fmt.Sprintf("signer%d", len(k.Keys)), ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(public, "+") {
			k.Keys = append(k.Keys, public)
		}
	}
	k.Threshold = 2
	if err := k.Check(); err != nil {
		t.Error(err)
	}
}

func TestKEY10_KeysRotate(t *testing.T) {
	h := newHouse(t)
	fresh := []person{newPerson(t, "fay"), newPerson(t, "gus")}
	rotated := h.release
	rotated.Keys = Keys{2, []string{h.people[0].public, fresh[0].public, fresh[1].public}}
	first, err := h.trust.Open(h.sign(t, rotated, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	after := h.trust.Next(first)
	second := rotated
	second.Version, second.Epoch = Version{1, 6, 0}, 4
	second.Approver, second.Systems = nil, second.Systems[1:]
	old := h.sign(t, second, 1, 2)
	if _, err := after.Open(old); !errors.Is(err, ErrSignatures) {
		t.Errorf("keys that were given up still count: %v", err)
	}
	if _, err := h.trust.Open(old); err != nil {
		t.Errorf("where they were not given up they do: %v", err)
	}
	b, err := second.Sign(fresh[0], fresh[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.trust.Open(b); !errors.Is(err, ErrSignatures) {
		t.Errorf("keys count before those of the box have said so: %v", err)
	}
	m, err := after.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	last := after.Next(m)
	if last.Epoch != 4 {
		t.Errorf("%+v", last)
	}
	if _, err := last.Open(h.sign(t, h.release, 0, 1)); err == nil {
		t.Error("the first release is taken again")
	}
	// In the other slot once more, the box still knows what it has had.
	if back := last.Next(first); back.Version != first.Version || back.Newest != m.Version || back.Epoch != 4 {
		t.Errorf("after going back: %+v", back)
	}
}

func FuzzOpen(f *testing.F) {
	h := newHouse(f)
	good := h.sign(f, h.release, 0, 1)
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := h.trust.Open(b)
		if err != nil {
			return
		}
		want, _ := h.release.Text()
		if got, err := m.Text(); err != nil || got != want {
			t.Fatalf("accepted:\n%s", b)
		}
	})
}

// FuzzText has those who should know better sign whatever it is given.
func FuzzText(f *testing.F) {
	h := newHouse(f)
	text, err := h.release.Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, in string) {
		m, err := parse(in)
		if err != nil {
			return
		}
		if again, err := m.Text(); err != nil || again != in {
			t.Fatalf("read, and written it is another one: %v\n%s", err, again)
		}
	})
}
