package portable_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"gatehouse/appliance/portable"
)

const phrase = "seven wet stones in a hat"

var about = portable.About{Box: "gatehouse-7f3k", Version: "0.6.0", Made: time.Date(2026, 11, 29, 11, 0, 0, 0, time.UTC)}

// entry is one file of a crafted archive.
type entry struct {
	head tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o600, Format: tar.FormatUSTAR}, data}
}

const good = `{"format":1,"box":"gatehouse-7f3k","version":"0.6.0","made":"2026-11-29T11:00:00Z"}`

// craft encrypts an archive that no Writer would write; after is put behind its end.
func craft(t *testing.T, to age.Recipient, after string, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	out, err := age.Encrypt(&b, to)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(out)
	for _, e := range entries {
		if err := w.WriteHeader(&e.head); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.data)
	}
	w.Close()
	io.WriteString(out, after)
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func pair(t *testing.T) (*age.X25519Identity, func() *portable.Opener) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id, func() *portable.Opener {
		o, err := portable.Opening("", "# made by a test\n"+id.String()+"\n")
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
}

func read(b []byte, o *portable.Opener) (parts map[string]string, err error) {
	parts = make(map[string]string)
	_, err = portable.Read(bytes.NewReader(b), o, func(name string, size int64, r io.Reader) error {
		text, err := io.ReadAll(r)
		parts[name] = string(text)
		return err
	})
	return parts, err
}

// refused wants a sentence for a person with some words in it.
func refused(t *testing.T, what string, err error, words string) {
	t.Helper()
	var r *portable.Refusal
	if !errors.As(err, &r) || !strings.Contains(r.Text, words) {
		t.Errorf("%s: %v, want a refusal with %q", what, err, words)
	}
}

func TestBOX13_BadExportsAreRefused(t *testing.T) {
	id, opener := pair(t)
	pax := file("people.json", "[]")
	pax.head.Format, pax.head.PAXRecords = tar.FormatPAX, map[string]string{"GATEHOUSE.x": "1"}
	link := func(kind byte, name, to string) entry {
		return entry{tar.Header{Typeflag: kind, Name: name, Linkname: to, Format: tar.FormatUSTAR}, ""}
	}
	for what, c := range map[string]struct {
		entries []entry
		after   string
		words   string
	}{
		"empty":                    {nil, "", "not a configuration"},
		"no about":                 {[]entry{file("people.json", "[]")}, "", "does not begin with"},
		"about is huge":            {[]entry{file("about.json", good+strings.Repeat(" ", 5000))}, "", "does not begin with"},
		"about is no document":     {[]entry{file("about.json", "{")}, "", "cannot be read"},
		"about has more fields":    {[]entry{file("about.json", `{"format":1,"key":"x"}`)}, "", "cannot be read"},
		"about of form 0":          {[]entry{file("about.json", `{"format":0}`)}, "", "cannot be read"},
		"a newer form":             {[]entry{file("about.json", `{"format":2,"new":true}`)}, "", "newer"},
		"an unknown part":          {[]entry{file("about.json", good), file("wishes.json", "[]")}, "", "does not know"},
		"a part twice":             {[]entry{file("about.json", good), file("people.json", "[]"), file("people.json", "[]")}, "", "twice"},
		"about twice":              {[]entry{file("about.json", good), file("about.json", good)}, "", "does not know"},
		"a path upwards":           {[]entry{file("about.json", good), file("lists/../people.json", "[]")}, "", "does not know"},
		"an absolute path":         {[]entry{file("about.json", good), file("/people.json", "[]")}, "", "does not know"},
		"a deeper list":            {[]entry{file("about.json", good), file("lists/a/b.list", "")}, "", "does not know"},
		"a name that lists lack":   {[]entry{file("about.json", good), file("lists/A B.list", "")}, "", "does not know"},
		"a symbolic link":          {[]entry{file("about.json", good), link(tar.TypeSymlink, "people.json", "/etc/passwd")}, "", "not a plain one"},
		"a hard link":              {[]entry{file("about.json", good), link(tar.TypeLink, "people.json", "about.json")}, "", "not a plain one"},
		"a folder":                 {[]entry{file("about.json", good), link(tar.TypeDir, "lists/", "")}, "", "not a plain one"},
		"a device":                 {[]entry{file("about.json", good), link(tar.TypeChar, "people.json", "")}, "", "not a plain one"},
		"extended headers":         {[]entry{file("about.json", good), pax}, "", "not a plain one"},
		"more after the end":       {[]entry{file("about.json", good)}, "more", "more in the file after its end"},
		"a part that is very long": {[]entry{file("about.json", good), {tar.Header{Typeflag: tar.TypeReg, Name: "people.json", Size: portable.MaxPart + 1, Format: tar.FormatUSTAR}, ""}}, "", "is the most"},
	} {
		_, err := read(craft(t, id.Recipient(), c.after, c.entries...), opener())
		refused(t, what, err, c.words)
	}
}

// Every truncation and every changed byte of a file is refused, in words, at the
// latest at its end.
func TestBOX13_DamagedExportsAreRefused(t *testing.T) {
	id, opener := pair(t)
	whole := craft(t, id.Recipient(), "", file("about.json", good), file("people.json", `["ada"]`))
	if parts, err := read(whole, opener()); err != nil || parts["people.json"] != `["ada"]` {
		t.Fatalf("%v, %v", parts, err)
	}
	bad := func(what string, b []byte) {
		var r *portable.Refusal
		if _, err := read(b, opener()); !errors.As(err, &r) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range whole {
		bad("cut", whole[:i])
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1
		bad("one bit", flipped)
		if t.Failed() {
			t.Fatalf("at byte %d of %d", i, len(whole))
		}
	}
	bad("something behind it", append(bytes.Clone(whole), 0))
	bad("no age file", []byte("-----BEGIN PGP MESSAGE-----\n"))
}

func TestBOX13_OnlyTheSecretOpensAnExport(t *testing.T) {
	if _, err := portable.Passphrase("too short"); err == nil {
		t.Error("a short passphrase is taken")
	}
	for _, bad := range [][]string{nil, {"age1nothing"}, {"ssh-ed25519 AAAA"}, {""}} {
		_, err := portable.Recipients(bad)
		refused(t, "recipients", err, "age1")
	}
	for _, q := range [][2]string{{"", ""}, {"a", "b"}, {"", " \n"}} {
		_, err := portable.Opening(q[0], q[1])
		refused(t, "opening", err, "either")
	}
	_, err := portable.Opening("", "not a key")
	refused(t, "opening", err, "AGE-SECRET-KEY-1")

	to, err := portable.Passphrase(phrase)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := portable.NewWriter(&b, to, about)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"about.json", "other.json", "lists/../x"} {
		if err := w.Add(name, 0, strings.NewReader("")); err == nil {
			t.Errorf("%s is written", name)
		}
	}
	list := strings.Repeat("192.0.2.0/24\n", 20000)
	for _, err := range []error{w.AddJSON(portable.People, []string{"ada lovelace"}), w.Add("lists/office.list", int64(len(list)), strings.NewReader(list)), w.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Contains(b.Bytes(), []byte("ada lovelace")) || bytes.Contains(b.Bytes(), []byte("192.0.2.0")) {
		t.Error("the file can be read as it is")
	}
	wrong, err := portable.Opening("another one altogether", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = read(b.Bytes(), wrong)
	refused(t, "a wrong passphrase", err, "not the right one")
	id, opener := pair(t)
	_, err = read(b.Bytes(), opener())
	refused(t, "a key for a passphrase", err, "does not open")

	o, err := portable.Opening(phrase, "")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time without the passphrase
		parts, err := read(b.Bytes(), o)
		if err != nil || parts["lists/office.list"] != list || parts["people.json"] != `["ada lovelace"]` {
			t.Fatalf("%v", err)
		}
	}
	_, err = read(craft(t, id.Recipient(), "", file("about.json", good)), o)
	refused(t, "an opener that is bound to a file, on another", err, "does not open")
	o.Forget()
	_, err = read(b.Bytes(), o)
	refused(t, "an opener that forgot", err, "does not open")

	// What age itself would make of a passphrase takes 256 MB: it is not begun.
	heavy, err := age.NewScryptRecipient(phrase)
	if err != nil {
		t.Fatal(err)
	}
	heavy.SetWorkFactor(17)
	h := craft(t, heavy, "", file("about.json", good))
	if o, err = portable.Opening(phrase, ""); err != nil {
		t.Fatal(err)
	}
	_, err = read(h, o)
	refused(t, "a work factor of 17", err, "more memory")
}
