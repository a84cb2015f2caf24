package account

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base32"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/store"
)

const goodPassword = "orbit walnut cathedral seven"

var (
	ada  = Owner{"Ada Lovelace", "Ada@Example.org", goodPassword}
	home = Origin{Source: netip.MustParsePrefix("192.168.1.7/32"), Agent: "test"}
)

// box is one database with a clock that the test sets.
type box struct {
	*Accounts
	path         string
	wall, steady time.Time
}

func (b *box) open(t *testing.T) {
	t.Helper()
	db, err := store.Open(t.Context(), b.path, store.Keys{Fields: bytes.Repeat([]byte{1}, 32), Pepper: bytes.Repeat([]byte{2}, 32)}, Domain())
	if err != nil {
		t.Fatal(err)
	}
	b.Accounts = New(Config{db, func() time.Time { return b.wall }, func() time.Time { return b.steady }})
	t.Cleanup(func() { db.Close() })
}

// counting spares argon2 the guesses of a test that counts them: that a wrong
// password is found to be one is proven by the tests that judge a few.
type counting struct{ hasher }

func (c counting) Check(ctx context.Context, pw, hash string, known bool) (bool, error) {
	if pw == "wrong" {
		return false, nil
	}
	return c.hasher.Check(ctx, pw, hash, known)
}

// sampled is how often something is done: few times in the short tests.
func sampled(whole, short int) int {
	if testing.Short() {
		return short
	}
	return whole
}

// restart is what a restart of the console does to memory.
func (b *box) restart(t *testing.T) {
	t.Helper()
	b.db.Close()
	b.open(t)
}

func (b *box) pass(d time.Duration) { b.wall, b.steady = b.wall.Add(d), b.steady.Add(d) }

func newBox(t *testing.T) *box {
	t.Helper()
	start := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	b := &box{path: filepath.Join(t.TempDir(), "db"), wall: start, steady: start}
	b.open(t)
	return b
}

func claimed(t *testing.T) (*box, Person) {
	t.Helper()
	b := newBox(t)
	p, err := b.AddPendingOwner(t.Context(), ada)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.FinishClaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b, p
}

func factorOf(t *testing.T, b *box, p Person) []byte {
	t.Helper()
	f, err := b.BeginFactor(t.Context(), p, "gatehouse-7f3k", false)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(f.URI)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(u.Query().Get("secret"))
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

func withFactor(t *testing.T) (*box, Person, []byte) {
	t.Helper()
	b, p := claimed(t)
	secret := factorOf(t, b, p)
	if err := b.VerifyFactor(t.Context(), p, onetime.Code(secret, onetime.Step(b.wall)), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Minute)
	p, err := b.Person(t.Context(), p.ID)
	if err != nil || !p.Factor {
		t.Fatalf("%+v, %v", p, err)
	}
	return b, p, secret
}

func refused(t *testing.T, err error) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
}

func TestOwnerCheckRefuses(t *testing.T) {
	for _, o := range []Owner{
		{"", ada.Email, ada.Password}, {"  ", ada.Email, ada.Password}, {strings.Repeat("a", 101), ada.Email, ada.Password},
		{"Ada\x00", ada.Email, ada.Password}, {"Ada\nLovelace", ada.Email, ada.Password}, {"Ada", "", ada.Password},
		{"Ada", "ada", ada.Password}, {"Ada", "ada@", ada.Password}, {"Ada", "@example.org", ada.Password},
		{"Ada", "ada@b@c", ada.Password}, {"Ada", "<ada@example.org>", ada.Password}, {"Ada", "ada@example.org\n", ada.Password},
		{"Ada", strings.Repeat("a", 251) + "@b.c", ada.Password}, {"Ada", ada.Email, "short"}, {"Ada", ada.Email, "password123"},
	} {
		if o.Check("gatehouse-7f3k") == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	if err := ada.Check("gatehouse-7f3k"); err != nil {
		t.Error(err)
	}
}

func TestClaimSides(t *testing.T) {
	b := newBox(t)
	ctx := t.Context()
	is := func(want Claim) {
		t.Helper()
		if c, owner, err := b.Claim(ctx); c != want || err != nil || (c != Unclaimed && owner.Email != "ada@example.org") {
			t.Fatalf("%s %+v %v, want %s", c, owner, err, want)
		}
	}
	is(Unclaimed)
	if err := b.FinishClaim(ctx); err == nil {
		t.Fatal("a claim of nobody was finished")
	}
	if _, err := b.AddPendingOwner(ctx, ada); err != nil {
		t.Fatal(err)
	}
	is(Pending)
	_, err := b.CheckPassword(ctx, ada.Email, ada.Password, "", home)
	refused(t, err) // a pending owner is nobody
	b.restart(t)
	is(Pending)
	if err := b.DiscardPending(ctx); err != nil {
		t.Fatal(err)
	}
	is(Unclaimed)
	p, err := b.AddPendingOwner(ctx, ada)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := b.Start(ctx, p, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, token, true); !errors.Is(err, ErrNoSession) {
		t.Fatalf("a pending owner has a session: %v", err)
	}
	if err := b.FinishClaim(ctx); err != nil {
		t.Fatal(err)
	}
	is(Claimed)
	_, err = b.AddPendingOwner(ctx, Owner{"Eve", "eve@example.org", goodPassword})
	refused(t, err)
	if err := b.DiscardPending(ctx); err != nil {
		t.Fatal(err)
	}
	is(Claimed)
}

func TestSignInRefuses(t *testing.T) {
	b, _ := claimed(t)
	for _, c := range [][2]string{{"", ""}, {"ada@example.org", ""}, {"ada@example.org", goodPassword + " "}, {"eve@example.org", goodPassword}, {"' OR 1=1 --", goodPassword}} {
		_, err := b.CheckPassword(t.Context(), c[0], c[1], "", home)
		refused(t, err)
		if err.Error() != wrongPassword {
			t.Errorf("%q: %v", c[0], err)
		}
		b.pass(time.Hour)
	}
	for _, email := range []string{"ada@example.org", " ADA@example.org "} {
		if p, err := b.CheckPassword(t.Context(), email, goodPassword, "", home); err != nil || p.Name != ada.Name {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

func TestACC6_FiveFailuresSlowDown(t *testing.T) {
	b, _ := claimed(t)
	try := func() error {
		_, err := b.CheckPassword(t.Context(), ada.Email, "wrong", "", home)
		return err
	}
	for range freeTries {
		if err := try(); err.Error() != wrongPassword {
			t.Fatal(err)
		}
	}
	if err := try(); !strings.Contains(err.Error(), "Wait 1 s") {
		t.Fatal(err)
	}
	b.pass(time.Second)
	if err := try(); err.Error() != wrongPassword {
		t.Fatal(err)
	}
	if err := try(); !strings.Contains(err.Error(), "Wait 2 s") {
		t.Fatal(err)
	}
	elsewhere := Origin{Source: netip.MustParsePrefix("192.168.1.8/32")}
	if _, err := b.CheckPassword(t.Context(), ada.Email, goodPassword, "", elsewhere); err != nil {
		t.Errorf("another address is held up: %v", err)
	}
}

func TestACC6_TenThousandHostileFailuresDoNotKeepTheOwnerOut(t *testing.T) {
	b, p, secret := withFactor(t)
	device, err := b.KnowDevice(t.Context(), p, "")
	if err != nil {
		t.Fatal(err)
	}
	codes, err := b.NewRecoveryCodes(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	b.hasher = counting{b.hasher}
	judged := 0
	for i := range sampled(10_000, 3*strangerTries) {
		o := Origin{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 32)}
		_, err := b.CheckPassword(t.Context(), ada.Email, "wrong", "", o)
		refused(t, err)
		if err.Error() == wrongPassword {
			judged++
		}
	}
	if judged > 100 {
		t.Errorf("%d consecutive guesses were judged, at most 100 may be", judged)
	}
	b.restart(t)
	if _, err := b.CheckPassword(t.Context(), ada.Email, goodPassword, "", Origin{Source: netip.MustParsePrefix("10.200.0.1/32")}); err == nil {
		t.Error("the limit was forgotten by a restart")
	}
	signIn := func(o Origin, recovery, code string) {
		t.Helper()
		p, err := b.CheckPassword(t.Context(), ada.Email, goodPassword, recovery, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.CheckCode(t.Context(), p, code, o); err != nil {
			t.Fatal(err)
		}
	}
	known := home
	known.Device = device
	before := func() (n int) {
		b.db.View(t.Context(), func(tx *sql.Tx) error { return tx.QueryRow("SELECT sum(failures) FROM guess").Scan(&n) })
		return n
	}
	if n := before(); n != strangerTries {
		t.Errorf("%d failures are counted", n)
	}
	newBrowser := Origin{Source: netip.MustParsePrefix("10.200.0.2/32")}
	signIn(newBrowser, codes[0], codes[0]) // a lost browser, in the middle of it
	signIn(known, "", onetime.Code(secret, onetime.Step(b.wall)))
}

func TestAStolenDeviceCookieIsWorthFewTries(t *testing.T) {
	b, p := claimed(t)
	device, err := b.KnowDevice(t.Context(), p, "")
	if err != nil {
		t.Fatal(err)
	}
	o := home
	o.Device = device
	b.hasher = counting{b.hasher}
	judged := 0
	for range sampled(400, deviceTries+strangerTries+10) {
		_, err := b.CheckPassword(t.Context(), ada.Email, "wrong", "", o)
		if err.Error() == wrongPassword {
			judged++
		}
		b.pass(longestWait)
	}
	if judged != deviceTries+strangerTries {
		t.Errorf("%d guesses were judged", judged)
	}
}

func TestACC4_TOTPReplay(t *testing.T) {
	b, p, secret := withFactor(t)
	accepted := 0
	code := onetime.Code(secret, onetime.Step(b.wall))
	n := sampled(1000, 100)
	for i := range n {
		switch i {
		case n * 3 / 10:
			b.restart(t)
		case n * 6 / 10:
			b.wall = b.wall.Add(-30 * time.Second) // the clock went back; the code is still in the window
		}
		o := Origin{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), 32)}
		if _, err := b.CheckCode(t.Context(), p, code, o); err == nil {
			accepted++
		}
		b.succeeded(t.Context(), b.lookup(p.Email), o) // so that the brakes do not hide a replay
	}
	if accepted != 1 {
		t.Errorf("one code was accepted %d times", accepted)
	}
}

func TestACC4_OneCodeAtOnceCountsOnce(t *testing.T) {
	b, p, secret := withFactor(t)
	codes, err := b.NewRecoveryCodes(t.Context(), p)
	if err != nil || len(codes) != 10 {
		t.Fatal(len(codes), err)
	}
	for name, code := range map[string]string{"recovery": codes[3], "totp": onetime.Code(secret, onetime.Step(b.wall))} {
		var wg sync.WaitGroup
		var won atomic.Int32
		for i := range 50 {
			wg.Go(func() {
				o := Origin{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), 32)}
				if _, err := b.CheckCode(t.Context(), p, code, o); err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%s: %d of 50 won", name, won.Load())
		}
		b.succeeded(t.Context(), b.lookup(p.Email), home)
	}
	if n, err := b.RecoveryLeft(t.Context(), p); n != 9 || err != nil {
		t.Errorf("%d codes are left, %v", n, err)
	}
}

func TestRecoveryCodesAreReplacedTogether(t *testing.T) {
	b, p, _ := withFactor(t)
	old, _ := b.NewRecoveryCodes(t.Context(), p)
	fresh, err := b.NewRecoveryCodes(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.CheckCode(t.Context(), p, old[0], home)
	refused(t, err)
	if ok, err := b.IsRecoveryCode(t.Context(), p, fresh[1]); !ok || err != nil {
		t.Error("typing one back is not recognised", err)
	}
	proof, err := b.CheckCode(t.Context(), p, strings.ToLower(fresh[1]), home)
	if err != nil || !proof.Recovery || proof.Left != 9 {
		t.Errorf("%+v, %v", proof, err)
	}
}

func TestFactorNeedsItsOwnCode(t *testing.T) {
	b, p := claimed(t)
	nothing := func() error { return nil }
	refused(t, b.VerifyFactor(t.Context(), p, "000000", nothing))
	secret := factorOf(t, b, p)
	if again := factorOf(t, b, p); !bytes.Equal(secret, again) {
		t.Error("coming back to the page made another secret")
	}
	refused(t, b.VerifyFactor(t.Context(), p, onetime.Code(secret, onetime.Step(b.wall)+9), nothing))
	code := onetime.Code(secret, onetime.Step(b.wall))
	no := errors.New("the audit log cannot be written")
	if err := b.VerifyFactor(t.Context(), p, code, func() error { return no }); !errors.Is(err, no) {
		t.Fatal(err)
	}
	if p, _ := b.Person(t.Context(), p.ID); p.Factor {
		t.Error("AUD1: the factor was set although its event could not be written")
	}
	if err := b.VerifyFactor(t.Context(), p, code, nothing); err != nil {
		t.Fatal(err)
	}
	_, err := b.CheckCode(t.Context(), p, code, home)
	refused(t, err) // the code that verified it is used
}

func TestACC8_SessionsEnd(t *testing.T) {
	b, p := claimed(t)
	start := func(stage Stage) string {
		t.Helper()
		token, _, err := b.Start(t.Context(), p, stage, home, "")
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	alive := func(token string) bool {
		t.Helper()
		_, err := b.Session(t.Context(), token, true)
		if err != nil && !errors.Is(err, ErrNoSession) {
			t.Fatal(err)
		}
		return err == nil
	}
	for _, token := range []string{"", "x", strings.Repeat("A", 43)} {
		if alive(token) {
			t.Errorf("%q is a session", token)
		}
	}
	idle := start(StageFull)
	for range 6 { // a page that refreshes itself
		b.pass(IdleTime / 6)
		b.Session(t.Context(), idle, false)
	}
	if alive(idle) {
		t.Error("alive after the idle time")
	}
	busy := start(StageFull)
	for d := time.Duration(0); d < AbsoluteTime-10*time.Minute; d += 10 * time.Minute {
		if !alive(busy) {
			t.Fatalf("ended after %s", d)
		}
		b.pass(10 * time.Minute)
	}
	b.pass(10 * time.Minute)
	if alive(busy) {
		t.Error("alive after the absolute time")
	}
	code := start(StageCode)
	b.pass(CodeTime)
	if alive(code) {
		t.Error("the second step has no end")
	}
	token := start(StageFull)
	b.wall = b.wall.AddDate(1, 0, 0)
	if !alive(token) {
		t.Error("a clock that is put right ended the session")
	}
	b.restart(t)
	if !alive(token) {
		t.Error("a restart ended the session")
	}
	b.steady = b.steady.Add(-time.Hour)
	if alive(token) {
		t.Error("a session from the future is alive")
	}
}

// A person who looks through the list knows the address, not its network.
func TestACC8_ASessionNamesItsAddress(t *testing.T) {
	b, p := claimed(t)
	a := netip.MustParseAddr("2001:db8::5054:ff:fe12:3456")
	if _, _, err := b.Start(t.Context(), p, StageFull, Origin{Source: netip.MustParsePrefix("2001:db8::/64"), Address: a}, ""); err != nil {
		t.Fatal(err)
	}
	if list, err := b.Sessions(t.Context(), p); err != nil || len(list) != 1 || list[0].Source != a.String() {
		t.Errorf("%+v, %v", list, err)
	}
}

// On a full volume it cannot be noted that a session is in use. Who is signed in
// stays so for as long as without use, and can make room.
func TestACC8_AFullVolumeSignsNobodyOut(t *testing.T) {
	b, p := claimed(t)
	token, s, err := b.Start(t.Context(), p, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	err = b.db.Update(t.Context(), func(tx *sql.Tx) error { // no room for this
		_, err := tx.ExecContext(t.Context(), "CREATE TRIGGER full BEFORE UPDATE ON session BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.pass(2 * time.Minute)
	if got, err := b.Session(t.Context(), token, true); err != nil || got.ID != s.ID {
		t.Errorf("in use on a full volume: %+v, %v", got, err)
	}
	b.pass(IdleTime - 2*time.Minute)
	if _, err := b.Session(t.Context(), token, true); !errors.Is(err, ErrNoSession) {
		t.Errorf("a use that is not written down prolongs it: %v", err)
	}
}

func TestACC8_SessionsAreListedAndRevoked(t *testing.T) {
	b, p := claimed(t)
	ctx := t.Context()
	first, s1, err := b.Start(ctx, p, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	second, s2, err := b.Start(ctx, p, StageFull, home, "")
	if err != nil {
		t.Fatal(err)
	}
	third, _, err := b.Start(ctx, p, StageFull, home, second) // rotated
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, second, true); !errors.Is(err, ErrNoSession) {
		t.Error("the cookie from before a sign-in lives on")
	}
	list, err := b.Sessions(ctx, p)
	if err != nil || len(list) != 2 || list[1].ID != s1.ID || list[1].Source != "192.168.1.7" {
		t.Fatalf("%+v, %v", list, err)
	}
	if err := b.End(ctx, Person{ID: p.ID + 1}, s1.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, first, true); err != nil {
		t.Error("somebody else ended the session")
	}
	if err := b.EndOthers(ctx, p, list[0].ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, first, true); !errors.Is(err, ErrNoSession) {
		t.Error("revoked and alive")
	}
	if _, err := b.Session(ctx, third, true); err != nil {
		t.Error("one's own session was ended too")
	}
	_ = s2
}

func TestSecondStepEndsAfterFiveTries(t *testing.T) {
	b, p := claimed(t)
	token, s, err := b.Start(t.Context(), p, StageCode, home, "")
	if err != nil {
		t.Fatal(err)
	}
	for want := codeTries - 1; want >= 0; want-- {
		if left, err := b.CountTry(t.Context(), s); left != want || err != nil {
			t.Fatalf("%d left, %v, want %d", left, err, want)
		}
	}
	if _, err := b.Session(t.Context(), token, true); !errors.Is(err, ErrNoSession) {
		t.Error("the session lives on")
	}
}

func TestChangedPasswordEndsTheOldOnes(t *testing.T) {
	b, p := claimed(t)
	ctx := t.Context()
	refused(t, b.CheckNewPassword(p, "lovelace-1", "box"))
	other, _, _ := b.Start(ctx, p, StageFull, home, "")
	mine, s, _ := b.Start(ctx, p, StageFull, home, "")
	device, err := b.KnowDevice(ctx, p, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.SetPassword(ctx, p, "violet tractor sings again", s.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Session(ctx, other, true); !errors.Is(err, ErrNoSession) {
		t.Error("another session lives on")
	}
	if _, err := b.Session(ctx, mine, true); err != nil {
		t.Error(err)
	}
	if again, _ := b.KnowDevice(ctx, p, device); again == device {
		t.Error("the browser is still known")
	}
	_, err = b.CheckPassword(ctx, ada.Email, goodPassword, "", home)
	refused(t, err)
	if _, err := b.CheckPassword(ctx, ada.Email, "violet tractor sings again", "", home); err != nil {
		t.Error(err)
	}
}

func TestFreshness(t *testing.T) {
	b, p := claimed(t)
	token, s, err := b.Start(t.Context(), p, StageFull, home, "")
	if err != nil || !b.Fresh(s) {
		t.Fatal(err)
	}
	b.pass(FreshTime)
	if b.Fresh(s) {
		t.Error("fresh for ever")
	}
	if err := b.Confirm(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if s, err = b.Session(t.Context(), token, true); err != nil || !b.Fresh(s) {
		t.Error("not fresh after it was confirmed", err)
	}
	for _, stage := range []Stage{StageCode, StageEnrol} {
		if b.Fresh(Session{Stage: stage, Confirmed: b.steady}) {
			t.Errorf("%s is fresh", stage)
		}
	}
}

func TestBrakesKeepABoundedNumberOfSources(t *testing.T) {
	now := time.Unix(0, 0)
	br := newBrakes(func() time.Time { now = now.Add(time.Millisecond); return now })
	for i := range sampled(3*bucketsKept, bucketsKept+bucketsKept/4) {
		br.take(fmt.Sprint(i), fmt.Sprint(i))
	}
	if len(br.by) > bucketsKept || len(br.all) > bucketsKept {
		t.Errorf("%d and %d are kept", len(br.by), len(br.all))
	}
}
