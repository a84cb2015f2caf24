package seed

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

const hash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

func whole() Seed {
	return Seed{
		Owner: &Owner{"Ada Lovelace", "ada@example.org", hash}, HostName: "attic", SecureBoot: Enrol, Install: &Install{"S3R1AL"},
		Network: &control.NetworkSettings{Links: []control.LinkSettings{{Name: "eth0", Mode: "static", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24")}}}},
	}
}

// Nothing of a seed that is not wholly right counts.
func TestBOX11_BadSeedsAreRefused(t *testing.T) {
	b, err := whole().Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the seed has no %s:\n%s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for says, text := range map[string]string{
		"not JSON":                   "",
		"unexpected EOF":             good[:len(good)-4],
		"follows its end":            good + "{}",
		"more than":                  good + strings.Repeat(" ", Size),
		"UTF-8":                      edit("Ada", "A\xff"),
		"its format":                 edit("seed 1", "seed 2"),
		`unknown field "lists"`:      edit(`"host_name"`, `"lists": [], "host_name"`),
		`unknown field "passphrase"`: edit(`"email"`, `"passphrase": "", "email"`),
		"says nothing":               `{"format": "gatehouse seed 1"}`,
		"e-mail":                     edit("ada@example.org", "ada"),
		"letters":                    edit("Ada Lovelace", " "),
		"hashed":                     edit(hash, "orbit walnut cathedral seven"),
		"name of a box":              edit("attic", "the attic"),
		"- at an end":                edit("attic", "attic-"),
		"network cannot":             edit("192.0.2.7/24", "224.0.0.1/24"),
		"only choice":                edit(`"enrol"`, `"off"`),
		"disk_serial":                edit(`"S3R1AL"`, `""`),
		"hub":                        edit(`"host_name"`, `"enrolment": {"token": "x"}, "host_name"`),
		"names no owner":             `{"format": "gatehouse seed 1", "secure_boot": "enrol"}`,
	} {
		s, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", short(text), err, says)
		}
		if errors.Is(err, ErrUsed) {
			t.Errorf("%q counts as used: %+v", text, s)
		}
	}
}

func TestBOX11_SeedIsReadAsItWasWritten(t *testing.T) {
	b, err := whole().Encode()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Encode()
	if err != nil || string(again) != string(b) {
		t.Errorf("%v\n%s\nwas\n%s", err, again, b)
	}
}

// What takes a seed's place has its length, so that it is written over.
func TestUsedSeedSaysSo(t *testing.T) {
	b := Used("gatehouse-7f3k", 500)
	if _, err := Parse(b); !errors.Is(err, ErrUsed) || len(b) != 500 {
		t.Errorf("%v, %d bytes: %s", err, len(b), b)
	}
	if b := Used("gatehouse-7f3k", 3); len(b) < 20 {
		t.Errorf("cut off: %s", b)
	}
}

func FuzzParse(f *testing.F) {
	b, err := whole().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Parse(b)
		if err != nil {
			return
		}
		if _, err := s.Encode(); err != nil {
			t.Errorf("read and cannot be written: %v", err)
		}
	})
}
