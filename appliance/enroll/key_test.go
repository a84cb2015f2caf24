package enroll

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gatehouse/appliance/keytext"
)

// fixedKey is 00 01 … 1f, the key of the vectors.
func fixedKey() APIKey {
	var k APIKey
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

func keysOf(t testing.TB, k APIKey) Keys {
	t.Helper()
	keys, err := k.Keys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestHUB2_APIKeyTypingErrors(t *testing.T) {
	text := fixedKey().Text()
	for i, r := range text {
		if r == '-' {
			continue
		}
		for _, wrong := range "0123456789ABCDEFGHJKMNPQRSTVWXYZ" {
			if wrong == r {
				continue
			}
			bad := text[:i] + string(wrong) + text[i+1:]
			if _, err := ParseAPIKey(bad); err == nil {
				t.Errorf("character %d changed from %c to %c is taken", i, r, wrong)
			}
		}
	}
	chars := strings.ReplaceAll(text, "-", "")
	for i := range len(chars) - 1 {
		if chars[i] == chars[i+1] {
			continue
		}
		swapped := chars[:i] + chars[i+1:i+2] + chars[i:i+1] + chars[i+2:]
		if _, err := ParseAPIKey(swapped); err == nil {
			t.Errorf("characters %d and %d swapped are taken", i, i+1)
		}
	}
	for _, bad := range []string{"", "0", chars[1:], chars + "0", strings.Repeat("0", len(chars)), "U" + chars[1:], "é" + chars[1:], chars[:10] + "_" + chars[10:]} {
		if _, err := ParseAPIKey(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestHUB2_APIKeyText(t *testing.T) {
	for range 100 {
		k, err := NewAPIKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		text := k.Text()
		if len(text) != 8*keytext.Group+7 || strings.Count(text, "-") != 7 {
			t.Fatalf("text %q", text)
		}
		sloppy := strings.NewReplacer("0", "o", "1", "l", "-", " ").Replace(strings.ToLower(text)) + "\n"
		for _, s := range []string{text, sloppy} {
			got, err := ParseAPIKey(s)
			if err != nil || got != k {
				t.Fatalf("%q: %v", s, err)
			}
		}
	}
	if _, err := NewAPIKey(bytes.NewReader(make([]byte, 31))); err == nil {
		t.Error("a key was made of 31 bytes")
	}
}

// TestKeysStayOutOfLogs prints keys the ways a log line would.
func TestKeysStayOutOfLogs(t *testing.T) {
	k := fixedKey()
	keys := keysOf(t, k)
	var b bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&b, nil), slog.NewJSONHandler(&b, nil)} {
		slog.New(h).Info("x", "key", k, "keys", keys, "err", fmt.Errorf("with %v and %v", k, keys))
	}
	fmt.Fprintf(&b, "%v %s %+v %v", k, k, keys, &keys)
	for _, secret := range []string{k.Text(), "AAECAw", "0 1 2 3", "00010203", fmt.Sprint(keys.MAC[:4]), fmt.Sprintf("%x", keys.MAC[:4]), fmt.Sprint(keys.Request[:4])} {
		if strings.Contains(b.String(), strings.Trim(secret, "[]")) {
			t.Errorf("%q is in the log:\n%s", secret, b.String())
		}
	}
}

func TestIDText(t *testing.T) {
	id := keysOf(t, fixedKey()).ID
	var got ID
	if err := got.UnmarshalText([]byte(id.String())); err != nil || got != id {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", id.String()[1:], id.String() + "00", strings.ToUpper(id.String()), "g" + id.String()[1:]} {
		if err := got.UnmarshalText([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKeysDiffer(t *testing.T) {
	a, b := fixedKey(), fixedKey()
	b[31] ^= 1
	ka, kb := keysOf(t, a), keysOf(t, b)
	if ka.ID == kb.ID || ka.MAC == kb.MAC || ka.Request == kb.Request {
		t.Error("keys of two API keys are alike")
	}
	if bytes.Equal(ka.MAC[:32], ka.Request[:]) {
		t.Error("two labels give one key")
	}
}

func FuzzAPIKey(f *testing.F) {
	f.Add(fixedKey().Text())
	f.Add("0000000-0000000")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseAPIKey(s)
		if err != nil {
			return
		}
		again, err := ParseAPIKey(k.Text())
		if err != nil || again != k {
			t.Fatalf("%q became %q: %v", s, k.Text(), err)
		}
	})
}
