package onetime

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

var secret = []byte("12345678901234567890")

func TestCodeIsRFC6238(t *testing.T) {
	// Appendix B, SHA-1 column, the last six of the eight digits.
	for at, want := range map[int64]string{
		59: "287082", 1111111109: "081804", 1111111111: "050471", 1234567890: "005924", 2000000000: "279037", 20000000000: "353130",
	} {
		if got := Code(secret, Step(time.Unix(at, 0))); got != want {
			t.Errorf("at %d: %s, want %s", at, got, want)
		}
	}
}

func TestACC4_MatchRefuses(t *testing.T) {
	now := time.Unix(1111111111, 0)
	step := Step(now)
	for name, c := range map[string]struct {
		typed string
		last  int64
	}{
		"nothing":         {"", 0},
		"wrong":           {"000000", 0},
		"short":           {Code(secret, step)[:5], 0},
		"long":            {Code(secret, step) + "0", 0},
		"two steps old":   {Code(secret, step-2), 0},
		"two steps ahead": {Code(secret, step+2), 0},
		"used":            {Code(secret, step), step},
		"older than used": {Code(secret, step-1), step},
		"clock set back":  {Code(secret, step), step + 1000},
		"other digits":    {strings.Map(func(r rune) rune { return r - '0' + '٠' }, Code(secret, step)), 0},
	} {
		if _, ok := Match(secret, c.typed, now, c.last); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, ok := Match(NewSecret(), Code(secret, step), now, 0); ok {
		t.Error("accepted under another secret")
	}
}

func TestMatchAcceptsTheNeighbours(t *testing.T) {
	now := time.Unix(1111111111, 0)
	for _, d := range []int64{-1, 0, 1} {
		code := Code(secret, Step(now)+d)
		for _, typed := range []string{code, code[:3] + " " + code[3:], " " + code + " "} {
			if s, ok := Match(secret, typed, now, 0); !ok || s != Step(now)+d {
				t.Errorf("step %+d typed %q: %d, %v", d, typed, s, ok)
			}
		}
	}
}

func TestManualAndURI(t *testing.T) {
	if got := Manual(secret); got != "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ" {
		t.Errorf("Manual = %q", got)
	}
	want := "otpauth://totp/Gatehouse%20gatehouse-7f3k:ada@example.org?algorithm=SHA1&digits=6&issuer=Gatehouse%20gatehouse-7f3k&period=30&secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	if got := URI(secret, "gatehouse-7f3k", "ada@example.org"); got != want {
		t.Errorf("URI = %s", got)
	}
}

func TestImageIsAnSVG(t *testing.T) {
	s, err := Image(URI(secret, "gatehouse-7f3k", "ada@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "data:image/svg+xml;base64,"))
	if err != nil || !strings.HasPrefix(string(b), "<svg ") || !strings.Contains(string(b), "M4 4h7v1h-7z") {
		t.Errorf("%v: %.120s", err, b)
	}
	if _, err := Image(strings.Repeat("x", 5000)); err == nil {
		t.Error("5000 characters fit into a QR code")
	}
}

func TestParseRecoveryCode(t *testing.T) {
	for _, typed := range []string{"", "ABCD", "ABCD-EFGH-JKMN-PQR", "ABCD-EFGH-JKMN-PQRST", "ABCD-EFGH-JKMN-PQRU", "ABCD_EFGH_JKMN_PQRS", "ÀBCD-EFGH-JKMN-PQRS"} {
		if got, err := ParseRecoveryCode(typed); err == nil {
			t.Errorf("%q was read as %s", typed, got)
		}
	}
	for range 100 {
		c := NewRecoveryCode()
		for _, typed := range []string{c, strings.ToLower(c), strings.ReplaceAll(c, "-", " "), strings.ReplaceAll(strings.ReplaceAll(c, "0", "o"), "1", "l")} {
			if got, err := ParseRecoveryCode(typed); err != nil || got != c {
				t.Fatalf("%q: %q, %v", typed, got, err)
			}
		}
	}
}

func TestRecoveryCodesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for range 10_000 {
		c := NewRecoveryCode()
		if seen[c] {
			t.Fatal("the same code twice")
		}
		seen[c] = true
	}
}
