package setup

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/store"
)

var (
	here  = netip.MustParsePrefix("192.168.1.7/32")
	owner = account.Owner{Name: "Ada", Email: "ada@example.org", Password: "orbit walnut cathedral seven"}
	salt  = [proof.SaltSize]byte{1, 2, 3}
)

// world is the other side of a Claimer: the privileged process and the clock.
type world struct {
	*Claimer
	settings  Settings
	code      proof.Code
	now       time.Time
	committed bool
	refuse    error
	opened    int
	salt      []byte // of the code that holds
}

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"), store.Keys{Fields: bytes.Repeat([]byte{1}, 32), Pepper: bytes.Repeat([]byte{2}, 32)}, account.Domain(), Domain())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	code, err := proof.NewCode(bytes.NewReader(bytes.Repeat([]byte{7, 9, 30}, 20)))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{settings: Settings{db}, code: code, now: time.Unix(1_800_000_000, 0)}
	clock := func() time.Time { return w.now }
	people := account.New(account.Config{DB: db, Wall: clock, Steady: clock})
	key := proof.Derive(code, salt)
	w.salt = salt[:]
	w.Claimer = NewClaimer(Config{
		Box: "gatehouse-7f3k", Accounts: people, Now: clock,
		Material: func(context.Context) (control.ClaimMaterial, error) {
			return control.ClaimMaterial{Salt: w.salt, Key: key[:]}, nil
		},
		Commit: func(context.Context, control.ClaimCommit) error {
			if w.refuse == nil {
				w.committed = true
			}
			return w.refuse
		},
		Report: func(ctx context.Context) (control.ConsoleState, error) {
			s := control.ConsoleState{State: control.StateUnclaimed, Committed: w.committed}
			if w.committed {
				s.State = control.StateReady
			}
			return s, nil
		},
		Claimed: func() error { w.opened++; return nil },
	})
	return w
}

func refused(t *testing.T, err error) string {
	t.Helper()
	var r *account.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	return r.Text
}

func (w *world) claim(t *testing.T) account.Claim {
	t.Helper()
	c, _, err := w.c.Accounts.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestACC1_WrongCodesAreRefusedAndSayWhereTheCodeIs(t *testing.T) {
	w := newWorld(t)
	for _, typed := range []string{"", "7K2M", "0000-0000-0000", w.code.String() + "0", strings.Repeat("x", 1000)} {
		_, err := w.CheckCode(t.Context(), here, typed)
		if text := refused(t, err); !strings.Contains(text, "HDMI") {
			t.Errorf("%.20q: %s", typed, text)
		}
	}
	if _, err := w.CheckCode(t.Context(), here, strings.ToLower(w.code.String())); err != nil {
		t.Error(err)
	}
}

func TestACC1_TriesAreLimitedPerAddressAndTogether(t *testing.T) {
	w := newWorld(t)
	for range sourceBurst {
		if text := refused(t, second(w.CheckCode(t.Context(), here, "0000-0000-0000"))); strings.Contains(text, "Too many") {
			t.Fatal(text)
		}
	}
	if text := refused(t, second(w.CheckCode(t.Context(), here, w.code.String()))); !strings.Contains(text, "Too many") {
		t.Error(text)
	}
	if _, err := w.CheckCode(t.Context(), netip.MustParsePrefix("192.168.1.8/32"), w.code.String()); err != nil {
		t.Errorf("another address: %v", err)
	}
	w.now = w.now.Add(sourceEach)
	if _, err := w.CheckCode(t.Context(), here, w.code.String()); err != nil {
		t.Errorf("after the wait: %v", err)
	}
	held := 0
	for i := range 2 * allBurst {
		_, _, err := w.Prove(t.Context(), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), 32), []byte("binding"), []byte("wrong"))
		if strings.Contains(refused(t, err), "Too many") {
			held++
		}
	}
	if held < allBurst {
		t.Errorf("only %d of %d from many addresses were held back", held, 2*allBurst)
	}
}

func second(_ string, err error) error { return err }

var thisChannel = bytes.Repeat([]byte{5}, 32)

func TestProveAnswersOnlyARightProof(t *testing.T) {
	w := newWorld(t)
	key := proof.Derive(w.code, salt)
	right := proof.ClientProof(key, thisChannel)
	for name, theirs := range map[string][]byte{"empty": nil, "short": right[:31], "server's": first(proof.ServerProof(key, thisChannel))} {
		ours, ticket, err := w.Prove(t.Context(), here, thisChannel, theirs)
		if refused(t, err); ours != nil || ticket != "" {
			t.Errorf("%s was answered", name)
		}
	}
	_, _, err := w.Prove(t.Context(), here, bytes.Repeat([]byte{6}, 32), right[:])
	refused(t, err)
	ours, ticket, err := w.Prove(t.Context(), here, thisChannel, right[:])
	if err != nil || ticket == "" || !proof.VerifyServer(key, thisChannel, ours) {
		t.Error(err)
	}
}

func first(p [32]byte) []byte { return p[:] }

func TestTicketsAreSingleUseAndEnd(t *testing.T) {
	w := newWorld(t)
	ticket := w.newTicket(salt[:])
	w.now = w.now.Add(ticketTime)
	refused(t, third(w.Claim(t.Context(), ticket, owner, "")))
	ticket = w.newTicket(salt[:])
	w.refuse = errors.New("the audit log cannot be written")
	if _, err := w.Claim(t.Context(), ticket, owner, ""); err == nil || w.opened != 0 {
		t.Fatal("a claim that was not committed succeeded")
	}
	if w.claim(t) != account.Unclaimed {
		t.Error("the pending owner stays")
	}
	w.refuse = nil
	refused(t, third(w.Claim(t.Context(), ticket, owner, "")))
	for range 3 * maxTickets {
		ticket = w.newTicket(salt[:])
	}
	if len(w.tickets) > maxTickets {
		t.Errorf("%d tickets are kept", len(w.tickets))
	}
	weak := owner
	weak.Password = "password"
	refused(t, third(w.Claim(t.Context(), ticket, weak, ""))) // costs no ticket
	if p, err := w.Claim(t.Context(), ticket, owner, ""); err != nil || p.Email != owner.Email || w.opened != 1 {
		t.Fatal(p, err, w.opened)
	}
	if _, err := w.Claim(t.Context(), w.newTicket(salt[:]), owner, ""); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second claim: %v", err)
	}
}

func third(_ account.Person, err error) error { return err }

// "The old code is void" is said at the console: so is what it was traded for.
func TestANewCodeVoidsTheTicketsOfTheOldOne(t *testing.T) {
	w := newWorld(t)
	ticket, err := w.CheckCode(t.Context(), here, w.code.String())
	if err != nil {
		t.Fatal(err)
	}
	w.salt = bytes.Repeat([]byte{9}, proof.SaltSize)
	refused(t, third(w.Claim(t.Context(), ticket, owner, "")))
	if w.committed || w.claim(t) != account.Unclaimed {
		t.Error("the old code made an owner")
	}
}

func TestSettleFollowsTheCommitPoint(t *testing.T) {
	for _, committed := range []bool{false, true} {
		w := newWorld(t)
		if _, err := w.c.Accounts.AddPendingOwner(t.Context(), owner); err != nil {
			t.Fatal(err)
		}
		w.committed = committed
		if _, err := w.Settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := account.Unclaimed
		if committed {
			want = account.Claimed
		}
		if got := w.claim(t); got != want {
			t.Errorf("committed %v: %s", committed, got)
		}
	}
}

func TestPlaceRefuses(t *testing.T) {
	good := Place{"Head office", "Europe/Vienna", "night"}
	for _, p := range []Place{
		{"", good.Zone, good.Window}, {" ", good.Zone, good.Window}, {strings.Repeat("x", 61), good.Zone, good.Window}, {"a\nb", good.Zone, good.Window},
		{good.Site, "", good.Window}, {good.Site, "Local", good.Window}, {good.Site, "Europe/Atlantis", good.Window}, {good.Site, "../../etc/passwd", good.Window},
		{good.Site, good.Zone, ""}, {good.Site, good.Zone, "always"},
	} {
		refused(t, p.Check())
	}
	w := newWorld(t)
	if left, err := w.settings.Undone(t.Context()); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
	if err := w.settings.SetPlace(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	if p, err := w.settings.Place(t.Context()); err != nil || p != good {
		t.Errorf("%+v, %v", p, err)
	}
	if left, err := w.settings.Undone(t.Context()); err != nil || len(left) != 1 || left[0] != TodoCodes {
		t.Errorf("%v, %v", left, err)
	}
}
