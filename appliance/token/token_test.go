package token

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/store"
)

type fixture struct {
	*Tokens
	db    *store.DB
	owner account.Person
	now   time.Time
}

var here = from(netip.MustParsePrefix("192.0.2.7/32"))

func from(source netip.Prefix) account.Origin { return account.Origin{Source: source} }

func open(t *testing.T) *fixture {
	t.Helper()
	keys := store.Keys{Fields: bytes.Repeat([]byte{1}, 32), Pepper: bytes.Repeat([]byte{2}, 32)}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), keys, account.Domain(), Domain())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	f := &fixture{db: db, now: time.Now()}
	clock := func() time.Time { return f.now }
	accounts := account.New(account.Config{DB: db, Wall: clock, Steady: clock})
	f.owner, err = accounts.AddPendingOwner(t.Context(), account.Owner{Name: "Ada", Email: "ada@example.org", Password: "orbit walnut cathedral seven"})
	if err != nil {
		t.Fatal(err)
	}
	f.Tokens = New(db, accounts, clock, clock)
	return f
}

func (f *fixture) exec(t *testing.T, query string, args ...any) {
	t.Helper()
	if err := f.db.Update(t.Context(), func(tx *sql.Tx) error { _, err := tx.Exec(query, args...); return err }); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) use(text string) error {
	_, err := f.Use(context.Background(), text, Metrics, here)
	return err
}

func TestACC10_TokensNoWiderThanTheirMaker(t *testing.T) {
	f := open(t)
	for name, c := range map[string]struct {
		role  right.Role
		name  string
		scope Scope
		days  int
	}{
		"technician": {right.Technician, "x", Metrics, 1}, "viewer": {right.Viewer, "x", Metrics, 1}, "nobody": {"", "x", Metrics, 1},
		"no scope": {right.Owner, "x", "", 1}, "unknown scope": {right.Owner, "x", "everything", 1},
		"no name": {right.Owner, "", Metrics, 1}, "blank": {right.Owner, " x", Metrics, 1}, "control": {right.Owner, "x\ny", Metrics, 1}, "long": {right.Owner, strings.Repeat("x", 61), Metrics, 1},
		"past": {right.Owner, "x", Metrics, -1}, "for ever and a day": {right.Owner, "x", Metrics, MaxDays + 1},
	} {
		p := f.owner
		p.Role = c.role
		var r *account.Refusal
		if _, _, err := f.Make(t.Context(), p, c.name, c.scope, c.days); !errors.As(err, &r) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, text, err := f.Make(t.Context(), f.owner, "prometheus", Metrics, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.use(text); err != nil {
		t.Fatalf("the owner's: %v", err)
	}
	f.exec(t, "UPDATE person SET role = 'viewer'")
	if err := f.use(text); !errors.Is(err, ErrNot) {
		t.Errorf("its maker lost the right: %v", err)
	}
	f.exec(t, "DELETE FROM person")
	if err := f.use(text); !errors.Is(err, ErrNot) {
		t.Errorf("its maker is gone: %v", err)
	}
}

func TestACC10_TokensThatAreNotGood(t *testing.T) {
	f := open(t)
	good, text, err := f.Make(t.Context(), f.owner, "prometheus", Metrics, 1)
	if err != nil {
		t.Fatal(err)
	}
	swapped := []byte(text)
	swapped[10] ^= 1
	for name, bad := range map[string]string{
		"none": "", "prefix": Prefix, "other": string(swapped), "no prefix": text[3:], "longer": text + "A", "shorter": text[:len(text)-1], "case": strings.ToUpper(text), "space": " " + text, "huge": strings.Repeat("A", 1<<20),
	} {
		if err := f.use(bad); !errors.Is(err, ErrNot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.Use(t.Context(), text, "another", here); !errors.Is(err, ErrNot) {
		t.Errorf("for another scope: %v", err)
	}
	if err := f.use(text); err != nil {
		t.Fatal(err)
	}
	var stored []byte
	if err := f.db.View(t.Context(), func(tx *sql.Tx) error {
		return tx.QueryRow("SELECT lookup || name || scope || source FROM token").Scan(&stored)
	}); err != nil || bytes.Contains(stored, []byte(text[3:])) || len(stored) < 32 {
		t.Errorf("stored: %q, %v", stored, err)
	}
	list, err := f.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Maker != "ada@example.org" || list[0].Source != "192.0.2.7" || list[0].Used.Unix() != f.now.Unix() || list[0].Expired {
		t.Errorf("listed: %+v, %v", list, err)
	}
	f.now = f.now.Add(24 * time.Hour)
	if err := f.use(text); !errors.Is(err, ErrNot) {
		t.Errorf("expired: %v", err)
	}
	if list, _ := f.List(t.Context()); !list[0].Expired {
		t.Error("it is not listed as expired")
	}
	f.now = f.now.Add(-time.Hour)
	if err := f.use(text); err != nil {
		t.Errorf("an hour before: %v", err)
	}
	if err := f.Revoke(t.Context(), good.ID); err != nil {
		t.Fatal(err)
	}
	if err := f.use(text); !errors.Is(err, ErrNot) {
		t.Errorf("revoked: %v", err)
	}
	if _, err := f.Find(t.Context(), good.ID); err == nil {
		t.Error("it is still found")
	}
}

func TestACC10_GuessersWait(t *testing.T) {
	f := open(t)
	_, text, err := f.Make(t.Context(), f.owner, "prometheus", Metrics, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 { // what is right costs nothing
		if err := f.use(text); err != nil {
			t.Fatal(err)
		}
	}
	for i := range burst {
		if err := f.use("gh_wrong"); !errors.Is(err, ErrNot) {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	var busy *BusyError
	if err := f.use("gh_wrong"); !errors.As(err, &busy) || busy.Wait != refill {
		t.Errorf("one too many: %v", err)
	}
	if err := f.use(text); !errors.As(err, &busy) {
		t.Errorf("the right one, while the source waits: %v", err)
	}
	if _, err := f.Use(t.Context(), text, Metrics, from(netip.MustParsePrefix("192.0.2.8/32"))); err != nil {
		t.Errorf("another source: %v", err)
	}
	f.now = f.now.Add(refill)
	if err := f.use(text); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	if n := f.Refused(); n != burst+2 {
		t.Errorf("%d refused", n)
	}
	for i := range 3 * sources {
		_, _ = f.Use(t.Context(), "gh_wrong", Metrics, from(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32)))
	}
	if len(f.brake.by) > sources {
		t.Errorf("%d sources are remembered", len(f.brake.by))
	}
	for range most - 1 {
		if _, _, err := f.Make(t.Context(), f.owner, "more", Metrics, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := f.Make(t.Context(), f.owner, "one too many", Metrics, 0); err == nil {
		t.Error("there is no end of tokens")
	}
}

// The list of tokens says where one is used from: an address, not its network.
func TestACC10_ATokenNamesTheAddressOfItsLastUse(t *testing.T) {
	f := open(t)
	_, text, err := f.Make(t.Context(), f.owner, "prometheus", Metrics, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr("2001:db8::5054:ff:fe12:3456")
	if _, err := f.Use(t.Context(), text, Metrics, account.Origin{Source: netip.MustParsePrefix("2001:db8::/64"), Address: a}); err != nil {
		t.Fatal(err)
	}
	if list, err := f.List(t.Context()); err != nil || len(list) != 1 || list[0].Source != a.String() {
		t.Errorf("%+v, %v", list, err)
	}
}
