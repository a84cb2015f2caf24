package account

import (
	"bytes"
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/store"
)

// another is a second box with keys of its own, owned by ada with another password.
func another(t *testing.T, fill byte, pw string) (*Accounts, *store.DB) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "other.db"), store.Keys{Fields: bytes.Repeat([]byte{fill}, 32), Pepper: bytes.Repeat([]byte{fill + 1}, 32)}, Domain())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	a := New(Config{db, time.Now, time.Now})
	if _, err := a.AddPendingOwner(t.Context(), Owner{ada.Name, ada.Email, pw}); err != nil {
		t.Fatal(err)
	}
	if err := a.FinishClaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a, db
}

func TestBOX13_PeopleWhoCannotBeTaken(t *testing.T) {
	a, db := another(t, 10, goodPassword)
	good, err := a.Export(t.Context())
	if err != nil || len(good) != 1 {
		t.Fatalf("%v, %v", good, err)
	}
	second := good[0]
	second.Email, second.Role = "bob@example.org", right.Viewer
	with := func(change func(*Moved)) []Moved {
		m := good[0]
		change(&m)
		return []Moved{m}
	}
	for what, list := range map[string][]Moved{
		"nobody":               nil,
		"no owner":             {second},
		"two owners":           {good[0], func() Moved { m := second; m.Role = right.Owner; return m }()},
		"the same twice":       {good[0], func() Moved { m := second; m.Email = " ADA@example.org"; return m }()},
		"another role":         with(func(m *Moved) { m.Role = "king" }),
		"no address":           with(func(m *Moved) { m.Email = "ada" }),
		"no name":              with(func(m *Moved) { m.Name = " " }),
		"a costly hash":        with(func(m *Moved) { m.Password = "$argon2id$v=19$m=4194304,t=9,p=1$AAAA$AAAA" }),
		"no password":          with(func(m *Moved) { m.Password = "" }),
		"a short factor":       with(func(m *Moved) { m.Factor = []byte{1} }),
		"too many codes":       with(func(m *Moved) { m.Recovery = make([][]byte, 11) }),
		"a code of other size": with(func(m *Moved) { m.Recovery = [][]byte{{1}} }),
	} {
		err := db.Update(t.Context(), func(tx *sql.Tx) error { return a.Import(t.Context(), tx, list, 0) })
		if err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	if now, err := a.Export(t.Context()); err != nil || len(now) != 1 || now[0].Email != good[0].Email {
		t.Errorf("after refusals: %v, %v", now, err)
	}
}

func TestBOX13_ImportedPeopleSignIn(t *testing.T) {
	from, _ := another(t, 20, goodPassword)
	list, err := from.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list[0].Factor, list[0].Step = onetime.NewSecret(), onetime.Step(time.Now())+1000
	code := onetime.NewRecoveryCode()
	list[0].Recovery = [][]byte{digest(code)}
	second := list[0]
	second.Email, second.Role = "bob@example.org", right.Technician

	to, db := another(t, 30, "another walnut in the attic")
	who, err := to.CheckPassword(t.Context(), ada.Email, "another walnut in the attic", "", home)
	if err != nil {
		t.Fatal(err)
	}
	mine, _, err := to.Start(t.Context(), who, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := to.Start(t.Context(), who, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := to.Session(t.Context(), mine, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(t.Context(), func(tx *sql.Tx) error { return to.Import(t.Context(), tx, append(list, second), kept.ID) }); err != nil {
		t.Fatal(err)
	}
	if _, err := to.Session(t.Context(), mine, false); err != nil {
		t.Errorf("the session of who imports: %v", err)
	}
	if _, err := to.Session(t.Context(), other, false); err == nil {
		t.Error("another session goes on")
	}
	if _, err := to.CheckPassword(t.Context(), ada.Email, "another walnut in the attic", "", home); err == nil {
		t.Error("the password of before signs in")
	}
	for _, email := range []string{ada.Email, "bob@example.org"} {
		p, err := to.CheckPassword(t.Context(), email, goodPassword, "", home)
		if err != nil || !p.Factor {
			t.Fatalf("%s: %+v, %v", email, p, err)
		}
		if ok, err := to.IsRecoveryCode(t.Context(), p, code); err != nil || !ok {
			t.Errorf("the recovery code of %s: %v, %v", email, ok, err)
		}
	}
	again, err := to.Export(t.Context())
	if err != nil || len(again) != 2 || again[0].Step > onetime.Step(time.Now())+1 || !strings.EqualFold(again[1].Email, "bob@example.org") {
		t.Errorf("exported again: %v, %v", again, err)
	}
}

// A code is good once: an import of the same second factor, made before the code was typed,
// does not make it good again. Where the factor is another one, only its own steps count.
func TestBOX13_AnImportMakesNoCodeGoodAgain(t *testing.T) {
	a, db := another(t, 40, goodPassword)
	list, err := a.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secret := onetime.NewSecret()
	list[0].Factor = secret
	bring := func() {
		t.Helper()
		if err := db.Update(t.Context(), func(tx *sql.Tx) error { return a.Import(t.Context(), tx, list, 0) }); err != nil {
			t.Fatal(err)
		}
	}
	bring()
	who, err := a.CheckPassword(t.Context(), ada.Email, goodPassword, "", home)
	if err != nil {
		t.Fatal(err)
	}
	code := onetime.Code(secret, onetime.Step(time.Now()))
	if err := a.useStep(t.Context(), who, code); err != nil {
		t.Fatal(err)
	}
	used, err := a.Export(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bring()
	if err := a.useStep(t.Context(), who, code); err == nil {
		t.Error("after the import the code that was used is good once more")
	}
	if now, err := a.Export(t.Context()); err != nil || now[0].Step != used[0].Step {
		t.Errorf("the newest step is %d, %v, and was %d", now[0].Step, err, used[0].Step)
	}
	list[0].Factor = onetime.NewSecret()
	bring()
	if now, err := a.Export(t.Context()); err != nil || now[0].Step != list[0].Step {
		t.Errorf("of another factor the step is %d, %v, and %d was brought", now[0].Step, err, list[0].Step)
	}
}
