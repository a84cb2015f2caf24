package hosted

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
)

const filePhrase = "seven wet stones in a hat"

// export is the configuration as it comes.
func (l *lan) export() []byte {
	l.Helper()
	code, text := l.api(l.from(friend), "/api/v1/export", map[string]string{"passphrase": filePhrase}, nil)
	if code != 200 || !strings.HasPrefix(text, "age-encryption.org/v1\n") {
		l.Fatalf("the export answers %d %.300s\n%s", code, text, l.output())
	}
	return []byte(text)
}

// bring sends a file to be looked at.
func (l *lan) bring(file []byte, passphrase string) (int, string) {
	l.Helper()
	var b bytes.Buffer
	form := multipart.NewWriter(&b)
	form.WriteField("passphrase", passphrase)
	part, err := form.CreateFormFile("file", "export.age")
	if err != nil {
		l.Fatal(err)
	}
	part.Write(file)
	form.Close()
	r, err := l.from(friend).Post("https://"+boxAddress+"/api/v1/import", form.FormDataContentType(), &b)
	if err != nil {
		l.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		l.Fatal(err)
	}
	return r.StatusCode, string(text)
}

type foundThere struct {
	ID                       string
	Box, Owner, Certificates string
	Parts, Lists             []string
	People, Targets          int
}

func (l *lan) found(file []byte) (f foundThere) {
	l.Helper()
	code, text := l.bring(file, filePhrase)
	if code != 200 {
		l.Fatalf("looking at the file answers %d %s\n%s", code, text, l.output())
	}
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		l.Fatal(err)
	}
	return f
}

func (l *lan) waitsForNothing() {
	l.Helper()
	for _, name := range []string{"import.age", "export.age"} {
		if _, err := os.Stat(filepath.Join(l.state, "console", name)); err == nil {
			l.Errorf("%s was left behind", name)
		}
	}
}

// TestBOX13_ExportComesBackOnAnotherBox brings the configuration of one box to
// another: people with password and factor, lists, targets with credentials, and
// the own CA are back; what is a box's own stays its own.
func TestBOX13_ExportComesBackOnAnotherBox(t *testing.T) {
	a := newLAN(t)
	a.own()
	c := a.try(office(friend + "\n"))
	if code, text := a.api(a.from(friend), "/api/v1/allowlists/keep", map[string]string{"id": c.ID}, nil); code != 200 {
		t.Fatalf("keeping: %d %s", code, text)
	}
	var declared api.Target
	if code, text := a.api(a.from(friend), "/api/v1/targets", map[string]any{"name": "printer", "kind": "ssh", "host": "192.0.2.9", "port": 22, "recording": "allowed", "idle": 15}, &declared); code/100 != 2 {
		t.Fatalf("declaring: %d %s", code, text)
	}
	if code, text := a.api(a.from(friend), "/api/v1/targets/credential", map[string]any{"id": declared.ID, "user": "root", "password": "of the printer 7"}, nil); code/100 != 2 {
		t.Fatalf("the credential: %d %s", code, text)
	}
	if code, text := a.api(a.from(friend), "/api/v1/certificates/use", map[string]any{"source": "ca"}, nil); code/100 != 2 {
		t.Fatalf("the own CA: %d %s", code, text)
	}
	_, root := a.open(a.from(friend), "/certificates/root.pem")
	file := a.export()
	for _, secret := range []string{"ann@example.com", "printer", friend} {
		if bytes.Contains(file, []byte(secret)) {
			t.Errorf("%s can be read in the file", secret)
		}
	}
	_, words := a.open(a.from(friend), "/audit")
	if !strings.Contains(words, "export configuration") {
		t.Error("the export is not in the audit log")
	}
	a.waitsForNothing()
	nameA, secretA, identityA := a.now().name, a.secret, a.now().fingerprint
	a.stop()

	b := newLAN(t)
	b.own()
	// Refusals first; none of them changes anything, or leaves the file behind.
	for what, bad := range map[string]struct {
		file   []byte
		phrase string
		words  string
	}{
		"a wrong passphrase": {file, "another one altogether", "not the right one"},
		"a cut file":         {file[:len(file)-10], filePhrase, "not whole"},
		"one bit":            {append(append([]byte{}, file[:len(file)-9]...), append([]byte{file[len(file)-9] ^ 1}, file[len(file)-8:]...)...), filePhrase, "not whole"},
		"nothing":            {nil, filePhrase, "Choose the file"},
		"something else":     {[]byte("a letter"), filePhrase, "not an age file"},
	} {
		if code, text := b.bring(bad.file, bad.phrase); code != 403 || !strings.Contains(text, bad.words) {
			t.Errorf("%s: %d %s", what, code, text)
		}
		b.waitsForNothing()
	}
	f := b.found(file)
	if f.Box != nameA || f.Owner != "ann@example.com" || f.People != 1 || f.Targets != 1 || f.Certificates != "ca" || !slices.Equal(f.Lists, []string{"office"}) || slices.Contains(f.Parts, "network") {
		t.Errorf("it is found to have %+v", f)
	}
	for what, q := range map[string]map[string]any{
		"another id":       {"id": "x", "only": []string{"place"}},
		"an unknown part":  {"id": f.ID, "only": []string{"wishes"}},
		"one not in there": {"id": f.ID, "only": []string{"network"}},
	} {
		if code, text := b.api(b.from(friend), "/api/v1/import/take", q, nil); code != 403 {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	if code, text := b.open(b.from(friend), "/api/v1/targets"); code != 200 || strings.Contains(text, "printer") {
		t.Errorf("after refusals: %d %s", code, text)
	}
	identityB := b.now().fingerprint
	b.take(f.ID)

	b.signsInAnew(secretA)
	if code, text := b.open(b.from(friend), "/api/v1/targets"); code != 200 || !strings.Contains(text, "printer") || !strings.Contains(text, `"credential":"password"`) {
		t.Errorf("the targets: %d %s", code, text)
	}
	if _, text := b.open(b.from(friend), "/api/v1/allowlists/document?list=office"); !strings.Contains(text, friend) {
		t.Errorf("the lists: %s", text)
	}
	if b.reaches(stranger) {
		t.Error("the lists are back and let strangers in")
	}
	if _, back := b.open(b.from(friend), "/certificates/root.pem"); back != root || !strings.Contains(root, "BEGIN CERTIFICATE") {
		t.Error("the own CA is another one")
	}
	if _, words := b.open(b.from(friend), "/audit"); !strings.Contains(words, "import configuration") {
		t.Error("the import is not in the audit log")
	}
	// Keys are the box's own: its identity, and what it signs with.
	if identityA == identityB || b.now().name == nameA {
		t.Errorf("the other box became the first: %s %s", identityB, b.now().name)
	}
	b.waitsForNothing()
	b.stop()
	b.start("ready")
	if got := b.now(); got.name == nameA {
		t.Errorf("after a restart it is %s", got.name)
	}
}

// take takes all that is usual, and keeps the lists.
func (l *lan) take(id string) {
	l.Helper()
	var got struct {
		Done, Notes []string
		Lists       *control.Candidate
		SignIn      bool `json:"sign_in"`
	}
	code, text := l.api(l.from(friend), "/api/v1/import/take", map[string]any{"id": id}, &got)
	want := []string{"people", "targets", "certificates", "lists"}
	if code != 200 || len(got.Notes) > 0 || !slices.Equal(got.Done, want) || got.Lists == nil || got.SignIn {
		l.Fatalf("taking it answers %d %s, want %v\n%s", code, text, want, l.output())
	}
	if code, text := l.api(l.from(friend), "/api/v1/allowlists/keep", map[string]string{"id": got.Lists.ID}, nil); code != 200 {
		l.Fatalf("keeping the lists: %d %s", code, text)
	}
}

// signsInAnew signs ann in with the password and the factor of the other box;
// the factor of before is nobody's.
func (l *lan) signsInAnew(factor []byte) {
	l.Helper()
	try := func(secret []byte, step int64) int {
		jar, err := cookiejar.New(nil)
		if err != nil {
			l.Fatal(err)
		}
		l.jar = jar
		c := l.from(friend)
		l.form(c, "/sign-in", "email", "ann@example.com", "password", password)
		r, err := c.PostForm("https://"+boxAddress+"/sign-in/code", url.Values{"code": {onetime.Code(secret, step)}})
		if err != nil {
			l.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	now := onetime.Step(time.Now())
	if code := try(l.secret, now); code == http.StatusSeeOther {
		l.Error("the factor of the box before still signs in")
	}
	// The step of now, and the next should it have been used on the other box.
	code := 0
	for _, step := range []int64{now, now + 1} {
		if code = try(factor, step); code == http.StatusSeeOther {
			l.secret = factor
			return
		}
	}
	l.Fatalf("the factor of the other box does not sign in: %d\n%s", code, fmt.Sprint(l.output()))
}
