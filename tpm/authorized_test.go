package tpm_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"testing"

	"gatehouse/tpm"
	"gatehouse/tpm/pcr"
	"gatehouse/tpm/tpmtest"
)

const ref = "gatehouse/epoch-1"

var (
	system  = pcr.Select(11, 12, 13)
	counter = tpm.Counter{Handle: 0x01814710}
)

func releaseKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// release is a box whose secret is sealed under all that a policy can ask.
type release struct {
	*tpmtest.Server
	root   tpm.Root
	key    *ecdsa.PrivateKey
	policy tpm.Policy
	blob   tpm.Blob
	secret []byte
}

func newRelease(t testing.TB) *release {
	t.Helper()
	s := tpmtest.Start(t)
	r := &release{Server: s, key: releaseKey(t), secret: bytes.Repeat([]byte{0x5A}, 32)}
	var err error
	if r.root, err = s.TPM().Root(); err != nil {
		t.Fatal(err)
	}
	if err := s.TPM().DefineCounter(r.root, counter); err != nil {
		t.Fatal(err)
	}
	n, err := s.TPM().ReadCounter(r.root, counter)
	if err != nil {
		t.Fatal(err)
	}
	r.policy = tpm.Policy{Key: &r.key.PublicKey, Ref: ref, Approved: system, Literal: r.values(t, policy), Counter: counter, AtMost: n}
	if r.blob, err = s.TPM().SealUnder(r.root, r.secret, r.policy); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *release) values(t testing.TB, sel pcr.Selection) pcr.Values {
	t.Helper()
	v, err := r.TPM().PCRs(r.root, sel)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// approved approves what the registers hold now.
func (r *release) approved(t testing.TB, key *ecdsa.PrivateKey, ref string) pcr.Approval {
	t.Helper()
	a, err := pcr.Approve(key, ref, r.values(t, system))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (r *release) open(a ...pcr.Approval) error {
	got, err := r.TPM().UnsealUnder(r.root, r.blob, r.policy, a)
	if err == nil && !bytes.Equal(got, r.secret) {
		return errors.New("another secret came")
	}
	return err
}

func TestKEY10_OnlyApprovedSystemsOpen(t *testing.T) {
	r := newRelease(t)
	good := r.approved(t, r.key, ref)
	if err := r.open(good); err != nil {
		t.Fatal(err)
	}
	other := releaseKey(t)
	broken := good
	broken.Signature = bytes.Clone(good.Signature)
	broken.Signature[len(broken.Signature)-1] ^= 1
	for name, c := range map[string]struct {
		with []pcr.Approval
		want error
	}{
		"no approval":           {nil, tpm.ErrNotApproved},
		"another key's":         {[]pcr.Approval{r.approved(t, other, ref)}, tpm.ErrPolicy},
		"of an older epoch":     {[]pcr.Approval{r.approved(t, r.key, "gatehouse/epoch-0")}, tpm.ErrPolicy},
		"a changed signature":   {[]pcr.Approval{broken}, tpm.ErrPolicy},
		"a changed policy":      {[]pcr.Approval{{Policy: pcr.Digest{1}, Signature: good.Signature}}, tpm.ErrNotApproved},
		"noise for a signature": {[]pcr.Approval{{Policy: good.Policy, Signature: []byte("x")}}, tpm.ErrPolicy},
	} {
		if err := r.open(c.with...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	// Another system was started: one that nobody approved, then one that the key did.
	r.PowerCut(t)
	if err := r.open(good); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	r.Measure(t, 11, "another system")
	if err := r.open(good); !errors.Is(err, tpm.ErrNotApproved) {
		t.Errorf("a system that nobody approved: %v", err)
	}
	if err := r.open(good, r.approved(t, r.key, ref)); err != nil {
		t.Errorf("an update that the key approved: %v", err)
	}
	if n := r.Loaded(t); n != 0 {
		t.Errorf("%d objects and sessions left loaded", n)
	}
}

// The check in this program is for words; without it the TPM still refuses.
func TestKEY10_TheTPMItselfRefuses(t *testing.T) {
	r := newRelease(t)
	other := releaseKey(t)
	forged := r.policy
	forged.Key = &other.PublicKey
	if _, err := r.TPM().UnsealUnder(r.root, r.blob, forged, []pcr.Approval{r.approved(t, other, ref)}); !errors.Is(err, tpm.ErrPolicy) {
		t.Errorf("with another key: %v", err)
	}
	forged = r.policy
	forged.Ref = "gatehouse/epoch-0"
	if _, err := r.TPM().UnsealUnder(r.root, r.blob, forged, []pcr.Approval{r.approved(t, r.key, forged.Ref)}); !errors.Is(err, tpm.ErrPolicy) {
		t.Errorf("under another epoch: %v", err)
	}
	for name, spoil := range map[string]func(*tpm.Policy){
		"without the key":        func(p *tpm.Policy) { p.Key = nil },
		"without the registers":  func(p *tpm.Policy) { p.Literal = nil },
		"without the counter":    func(p *tpm.Policy) { p.Counter = tpm.Counter{} },
		"with a wider counter":   func(p *tpm.Policy) { p.AtMost++ },
		"with fewer registers":   func(p *tpm.Policy) { p.Literal = pcr.Values{7: p.Literal[7]} },
		"with other registers":   func(p *tpm.Policy) { p.Approved = pcr.Select(11) },
		"with nothing but a key": func(p *tpm.Policy) { p.Literal, p.Counter = nil, tpm.Counter{} },
	} {
		p := r.policy
		spoil(&p)
		if _, err := r.TPM().UnsealUnder(r.root, r.blob, p, []pcr.Approval{r.approved(t, r.key, ref)}); !errors.Is(err, tpm.ErrPolicy) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKEY10_CounterShutsOutTheOlder(t *testing.T) {
	r := newRelease(t)
	good := r.approved(t, r.key, ref)
	next := r.policy
	next.AtMost++
	newer, err := r.TPM().SealUnder(r.root, r.secret, next)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range []tpm.Blob{r.blob, newer} {
		p := r.policy
		if bytes.Equal(b.Private, newer.Private) {
			p = next
		}
		if _, err := r.TPM().UnsealUnder(r.root, b, p, []pcr.Approval{good}); err != nil {
			t.Fatalf("before counting: %v", err)
		}
	}
	if err := r.TPM().Count(r.root, counter); err != nil {
		t.Fatal(err)
	}
	r.PowerCut(t)
	if err := r.open(good); !errors.Is(err, tpm.ErrPolicy) || errors.Is(err, tpm.ErrNotApproved) {
		t.Errorf("a header of before: %v", err)
	}
	if _, err := r.TPM().UnsealUnder(r.root, newer, next, []pcr.Approval{good}); err != nil {
		t.Errorf("the header of now: %v", err)
	}
	// Removed and made anew it does not begin anew.
	before, err := r.TPM().ReadCounter(r.root, counter)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.TPM().UndefineNV(r.root, counter.Handle); err != nil {
		t.Fatal(err)
	}
	if _, err := r.TPM().ReadCounter(r.root, counter); !errors.Is(err, tpm.ErrNoIndex) {
		t.Errorf("a counter that is not there: %v", err)
	}
	if _, err := r.TPM().UnsealUnder(r.root, newer, next, []pcr.Approval{good}); err == nil {
		t.Error("opened without its counter")
	}
	if err := r.TPM().DefineCounter(r.root, counter); err != nil {
		t.Fatal(err)
	}
	if n, err := r.TPM().ReadCounter(r.root, counter); err != nil || n <= before {
		t.Errorf("made anew it counts %d after %d, %v", n, before, err)
	}
	if err := r.open(good); err == nil {
		t.Error("the older one opens again")
	}
}

// An index of another kind in the counter's place is no counter.
func TestKEY10_ForeignCounterIsRefused(t *testing.T) {
	r := newRelease(t)
	if err := r.TPM().UndefineNV(r.root, counter.Handle); err != nil {
		t.Fatal(err)
	}
	fake := tpm.Index{Handle: counter.Handle, Size: 8}
	if err := r.TPM().DefineNV(r.root, fake); err != nil {
		t.Fatal(err)
	}
	if err := r.TPM().WriteNV(r.root, fake, make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	if err := r.open(r.approved(t, r.key, ref)); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("opened by an index of zeros: %v", err)
	}
	if _, err := r.TPM().ReadCounter(r.root, counter); !errors.Is(err, tpm.ErrForeign) {
		t.Errorf("read as a counter: %v", err)
	}
}

func TestKEY12_LiteralRegistersCountBesides(t *testing.T) {
	r := newRelease(t)
	good := r.approved(t, r.key, ref)
	if err := r.TPM().Extend(r.root, 15, sha256.Sum256([]byte("cap"))); err != nil {
		t.Fatal(err)
	}
	if err := r.open(good); !errors.Is(err, tpm.ErrPolicy) || errors.Is(err, tpm.ErrNotApproved) {
		t.Errorf("capped: %v", err)
	}
	r.PowerCut(t)
	if err := r.open(good); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if n, err := r.TPM().Lockout(r.root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v", n, err)
	}
}

func TestKEY1_PolicyAboutNothingSealsNothing(t *testing.T) {
	r := newRelease(t)
	for name, p := range map[string]tpm.Policy{
		"empty":                  {},
		"a key for no registers": {Key: &r.key.PublicKey, Ref: ref},
		"a key and no reference": {Key: &r.key.PublicKey, Approved: system},
	} {
		if _, err := r.TPM().SealUnder(r.root, r.secret, p); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	wrong, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.TPM().SealUnder(r.root, r.secret, tpm.Policy{Key: &wrong.PublicKey, Ref: ref, Approved: system}); err == nil {
		t.Error("sealed under a key that not every TPM verifies")
	}
	if _, err := pcr.Approve(wrong, ref, r.values(t, system)); err == nil {
		t.Error("approved with a key that not every TPM verifies")
	}
	if _, err := pcr.Approve(r.key, ref, nil); err == nil {
		t.Error("approved a policy about nothing")
	}
}

// Every answer of the TPM garbled, cut or lost: an error, and no secret.
func TestKEY10_FaultsFailClosed(t *testing.T) {
	r := newRelease(t)
	good := r.approved(t, r.key, ref)
	whole := &tpmtest.Fault{To: r.Transport()}
	if _, err := tpm.New(whole).UnsealUnder(r.root, r.blob, r.policy, []pcr.Approval{good}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d commands", whole.N)
	opened := 0
	for i := range whole.N {
		for _, spoil := range []func([]byte) []byte{
			func(b []byte) []byte { return b[:len(b)/2] },
			func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			func(b []byte) []byte { return tpmtest.Code(0x101) },
		} {
			f := &tpmtest.Fault{To: r.Transport(), After: func(n int, _, b []byte) ([]byte, error) {
				if n == i {
					b = spoil(bytes.Clone(b))
				}
				return b, nil
			}}
			got, err := tpm.New(f).UnsealUnder(r.root, r.blob, r.policy, []pcr.Approval{good})
			if err == nil {
				opened++ // an answer that decides nothing, such as that of a flush
				if !bytes.Equal(got, r.secret) {
					t.Fatalf("answer %d: another secret came", i)
				}
			}
			r.PowerCut(t) // whatever was left loaded
		}
	}
	if opened > whole.N {
		t.Errorf("opened in spite of %d of %d broken answers", opened, 3*whole.N)
	}
}

// Every byte of every answer to an unsealing is changed by a bit: it fails, or
// the secret is the one that was sealed.
func TestKEY1_FlippedAnswersNeverGiveAnotherSecret(t *testing.T) {
	r := newRelease(t)
	approvals := []pcr.Approval{r.approved(t, r.key, ref)}
	var total int
	unseal := func(at int, bit uint) ([]byte, error) {
		total = 0
		return tpm.New(&tpmtest.Fault{To: r.Transport(), After: func(_ int, _, b []byte) ([]byte, error) {
			if i := at - total; i >= 0 && i < len(b) {
				b = bytes.Clone(b)
				b[i] ^= 1 << bit
			}
			total += len(b)
			return b, nil
		}}).UnsealUnder(r.root, r.blob, r.policy, approvals)
	}
	if _, err := unseal(-1, 0); err != nil {
		t.Fatal(err)
	}
	whole, opened := total, 0
	for at := range whole {
		for bit := range uint(8 / sample(8)) {
			got, err := unseal(at, (uint(at)+bit)%8)
			if err == nil {
				opened++
				if !bytes.Equal(got, r.secret) {
					t.Fatalf("byte %d: another secret came", at)
				}
			}
			r.Flush(t)
		}
	}
	t.Logf("%d bytes; opened in spite of %d changes", whole, opened)
	if opened > whole*int(8/sample(8))/2 {
		t.Error("most changes are not seen")
	}
	if n, err := r.TPM().Lockout(r.root); err != nil || n != 0 {
		t.Errorf("lockout counter %d, %v", n, err)
	}
}
