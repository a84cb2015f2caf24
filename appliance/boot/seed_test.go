package boot

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/seed"
	"gatehouse/appliance/seed/fat"
	"gatehouse/appliance/volume/disks"
)

const seedHash = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// media is a machine whose partitions hold the given files, each in a file
// system with its label; a name without a digit is a disk without partitions.
func media(t *testing.T, contents map[string][2]string) disks.Machine {
	t.Helper()
	root := t.TempDir()
	write := func(name string, b []byte) {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("proc/self/mountinfo", nil)
	write("dev/sdz", []byte("noise"))
	write("sys/class/block/sdz/size", []byte("1\n"))
	for name, c := range contents {
		whole := strings.TrimRight(name, "0123456789")
		write("sys/class/block/"+whole+"/size", []byte("2048\n"))
		if whole != name {
			write("sys/class/block/"+whole+"/"+name+"/partition", []byte("1\n"))
			write("sys/class/block/"+name+"/partition", []byte("1\n"))
			write("dev/"+whole, make([]byte, 512))
		}
		b, err := fat.Format(1<<20, c[0], seed.File, []byte(c[1]))
		if err != nil {
			t.Fatal(err)
		}
		write("dev/"+name, b)
	}
	return disks.Machine{Root: root}
}

func text(t *testing.T, s seed.Seed) string {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBOX11_WhichSeedIsMeantIsNeverGuessed(t *testing.T) {
	attic, cellar := text(t, seed.Seed{HostName: "attic"}), text(t, seed.Seed{HostName: "cellar"})
	owned := text(t, seed.Seed{Owner: &seed.Owner{Name: "Ada", Email: "ada@example.org", Password: seedHash}})
	used := string(seed.Used("gatehouse-7f3k", 100))
	for _, c := range []struct {
		name     string
		contents map[string][2]string
		from     string // where the seed is taken from; "": from nowhere
		says     string
	}{
		{"nothing", nil, "", ""},
		{"a partition", map[string][2]string{"vda3": {seed.Label, attic}}, "vda3", ""},
		{"a stick without partitions", map[string][2]string{"sda": {seed.Label, owned}}, "sda", ""},
		{"a label in small letters", map[string][2]string{"sda1": {"gateseed", attic}}, "sda1", ""},
		{"another label", map[string][2]string{"sda1": {"PHOTOS", attic}}, "", ""},
		{"two", map[string][2]string{"sda1": {seed.Label, attic}, "vda3": {seed.Label, cellar}}, "", "there are two"},
		{"one that was used", map[string][2]string{"sda1": {seed.Label, used}}, "", ""},
		{"one of two was used", map[string][2]string{"sda1": {seed.Label, used}, "vda3": {seed.Label, cellar}}, "vda3", ""},
		{"a bad one", map[string][2]string{"sda1": {seed.Label, "{}"}}, "", "its format"},
		{"a bad one beside a good one", map[string][2]string{"sda1": {seed.Label, "{}"}, "vda3": {seed.Label, cellar}}, "", "on sda1"},
		{"a cheap hash", map[string][2]string{"sda1": {seed.Label, strings.Replace(owned, "t=2", "t=1", 1)}}, "", "another form"},
	} {
		found, err := findMedia(media(t, c.contents), "")
		var from *medium
		if err == nil {
			_, from, err = readMedia(found)
		}
		got := ""
		if from != nil {
			got = from.name
		}
		if got != c.from || (c.says == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: from %q, %v; want %q, %q", c.name, got, err, c.from, c.says)
		}
	}
}

// mformat writes a table with one partition into the file system itself, which
// begins where the disk begins: that is one seed, not two.
func TestBOX11_StickMadeByMtoolsHoldsOneSeed(t *testing.T) {
	m := media(t, map[string][2]string{"sda1": {seed.Label, text(t, seed.Seed{HostName: "attic"})}})
	same, err := os.ReadFile(filepath.Join(m.Root, "dev/sda1"))
	if err == nil {
		err = os.WriteFile(filepath.Join(m.Root, "dev/sda"), same, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	found, err := findMedia(m, "")
	if err != nil || len(found) != 1 || found[0].name != "sda" {
		t.Fatalf("%+v, %v", found, err)
	}
	if s, _, err := readMedia(found); err != nil || s.HostName != "attic" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestBOX11_MediumWithoutSeedIsSaid(t *testing.T) {
	m := media(t, map[string][2]string{"sda1": {seed.Label, "x"}})
	b, err := fat.Format(1<<20, seed.Label, "other.json", []byte("x"))
	if err == nil {
		err = os.WriteFile(filepath.Join(m.Root, "dev/sda1"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := findMedia(m, ""); err == nil || !strings.Contains(err.Error(), "no file seed.json") {
		t.Errorf("%v", err)
	}
}

// What is overwritten is nowhere on the medium any more, and counts as used.
func TestBOX11_ForgottenSeedIsGone(t *testing.T) {
	m := media(t, map[string][2]string{"sda1": {seed.Label, text(t, seed.Seed{Owner: &seed.Owner{Name: "Ada", Email: "ada@example.org", Password: seedHash}})}})
	found, err := findMedia(m, "sda")
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	if err := found[0].forget("gatehouse-7f3k"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(m.Root, "dev/sda1"))
	if err != nil || strings.Contains(string(b), "ada@") || strings.Contains(string(b), "argon2") {
		t.Errorf("something of the seed is left (%v)", err)
	}
	if _, from, err := readMedia(found); from != nil || err != nil {
		t.Errorf("%v, %v", from, err)
	}
}

// A refused seed leaves nothing behind that could be carried out later.
func TestBOX11_RefusedSeedIsNothing(t *testing.T) {
	b := &box{log: slog.New(slog.DiscardHandler), seed: &seed.Seed{HostName: "attic"}, medium: &medium{}}
	if err := b.refuseSeed("it is bad"); err == nil || b.seed != nil || b.medium != nil || b.seedProblem != "it is bad" {
		t.Errorf("%v, %+v", err, b)
	}
}
