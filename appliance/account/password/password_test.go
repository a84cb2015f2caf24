package password

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestACC6_WeakPasswordsAreRefused(t *testing.T) {
	context := []string{"Ada Lovelace", "ada@analytical.example", "gatehouse-7f3k"}
	for _, pw := range []string{
		"", "short", "123456789", "1234567890", "password12", "Password123!", "passwordpassword", "qwertyuiop",
		"1q2w3e4r5t", "aaaaaaaaaaaaaaaa", "abcabcabcabc", "abcdefghijklmnop", "iloveyou1985", "P@ssw0rd2024",
		"adalovelace1", "analytical1", "gatehouse1234", "gatehouse-7f3k", "Lovelace1985", "letmein2024!",
		"drowssap11", "trustno1trustno1", "ada@analytical.example", "qwerty123456", "2026202620262026",
	} {
		if Problem(pw, context...) == "" {
			t.Errorf("%q was accepted: %+v", pw, Judge(pw, context...))
		}
	}
	if Problem("correct\xffhorse\xfebattery") == "" {
		t.Error("bytes that are not UTF-8 were accepted")
	}
	if Problem(strings.Repeat("k7Q-", 64)+"x") == "" {
		t.Error("257 characters were accepted")
	}
}

func TestACC6_StrongPasswordsAreAccepted(t *testing.T) {
	for _, pw := range []string{
		"orbit walnut cathedral seven", "violet-tractor-sings", "Zk4!vq9Lm#", "Straßenkreuzung bei Nacht 🙂",
		strings.Repeat("7x-Qm ", 11)[:64], "mit neun rostigen Nägeln",
	} {
		if p := Problem(pw, "Ada", "ada@example.org"); p != "" {
			t.Errorf("%q was refused: %s", pw, p)
		}
	}
}

func TestJudgeRises(t *testing.T) {
	last := -1
	for _, pw := range []string{"password", "walnut9", "walnut orb", "walnut orbit", "walnut orbit cathedral"} {
		s := Judge(pw)
		if s.Score < last {
			t.Errorf("%q has score %d, the one before %d", pw, s.Score, last)
		}
		if s.Words == "" {
			t.Errorf("%q has no words", pw)
		}
		last = s.Score
	}
	if last != 4 {
		t.Errorf("three words have score %d", last)
	}
}

func TestHashRefuses(t *testing.T) {
	h := NewHasher()
	hash, err := h.Make(t.Context(), "orbit walnut")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("the hash is %s", hash)
	}
	for _, pw := range []string{"", "orbit walnu", "orbit walnut ", "Orbit walnut"} {
		if ok, err := h.Check(t.Context(), pw, hash, false); ok || err != nil {
			t.Errorf("%q: %v, %v", pw, ok, err)
		}
	}
	if ok, err := h.Check(t.Context(), "orbit walnut", hash, false); !ok || err != nil {
		t.Errorf("the right one: %v, %v", ok, err)
	}
	for _, pw := range []string{"", "x"} {
		if ok, err := h.Check(t.Context(), pw, "", false); ok || err != nil {
			t.Errorf("an unknown person: %v, %v", ok, err)
		}
	}
	for _, broken := range []string{"x", hash[:len(hash)-1], strings.Replace(hash, "19456", "1024", 1), strings.Replace(hash, "argon2id", "argon2i", 1)} {
		if ok, err := h.Check(t.Context(), "orbit walnut", broken, false); ok || err == nil {
			t.Errorf("%s: %v, %v", broken, ok, err)
		}
	}
}

func TestTwoHashesOfOnePasswordDiffer(t *testing.T) {
	h := NewHasher()
	a, _ := h.Make(t.Context(), "orbit walnut")
	b, _ := h.Make(t.Context(), "orbit walnut")
	if a == b {
		t.Error("the salt is not random")
	}
}

func TestACC6_TwoHundredAtOnceStayBounded(t *testing.T) {
	h := NewHasher()
	n := 200
	if testing.Short() {
		n = 24 // unbounded, these would be 456 MiB
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	peak := uint64(0)
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&now)
				peak = max(peak, now.HeapInuse)
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, err := h.Check(t.Context(), "guess", "", i%20 == 0)
			for errors.Is(err, ErrBusy) { // as people do, when they are told to
				time.Sleep(20 * time.Millisecond)
				_, err = h.Check(t.Context(), "guess", "", i%20 == 0)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(done)
	<-watched
	if grown := int64(peak) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	} else {
		t.Logf("the heap grew by %d MiB", grown>>20)
	}
}

func TestStrangersCannotKeepAKnownBrowserWaiting(t *testing.T) {
	h := NewHasher()
	h.strangers <- struct{}{} // a stranger is being served, and does not end
	for range MaxWaiting {
		h.waiting <- struct{}{}
	}
	if _, err := h.Check(t.Context(), "x", "", false); !errors.Is(err, ErrBusy) {
		t.Errorf("one stranger too many got %v", err)
	}
	if _, err := h.Check(t.Context(), "x", "", true); err != nil {
		t.Errorf("a known browser got %v", err)
	}
}

func TestWaitingEndsWithTheRequest(t *testing.T) {
	h := NewHasher()
	h.strangers <- struct{}{}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := h.Check(ctx, "x", "", false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if len(h.waiting) != 0 {
		t.Error("the place in the queue was not given back")
	}
}
