package vault

import (
	"os"
	"path/filepath"
	"testing"

	"gatehouse/tpm/tpmtest"
)

func standing(t *testing.T, c Config) Standing {
	t.Helper()
	s, err := JudgeKept(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// largeMeta is META of a box, in a file.
func largeMeta(t *testing.T) *File {
	t.Helper()
	dev, err := OpenFile(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

func copyMeta(t *testing.T, from *File) *File {
	t.Helper()
	b, err := os.ReadFile(from.Name())
	if err != nil {
		t.Fatal(err)
	}
	to := largeMeta(t)
	if _, err := to.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return to
}

// A thief writes the disk: other lists, other network settings, older ones, none,
// or those of another box. The TPM says of each that it is not what was kept.
func TestKEY6_CopiesOfAThiefAreNotWhatWasKept(t *testing.T) {
	s := tpmtest.Start(t)
	meta := largeMeta(t)
	c := box(s, meta)
	v := mustCreate(t, c)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(WriteNetwork(meta, []byte("the first network")))
	if standing(t, c) != Unknown {
		t.Error("a TPM that was told nothing vouches for something")
	}
	must(WriteLists(meta, []byte("the first lists")))
	must(v.RememberKept(t.Context()))
	older := copyMeta(t, meta)
	must(WriteLists(meta, []byte("the lists")))
	if standing(t, c) != Other {
		t.Error("after a power cut between the copy and the TPM the copy counts")
	}
	must(WriteNetwork(meta, []byte("the network")))
	must(v.RememberKept(t.Context()))
	must(v.RememberKept(t.Context()))

	// Locked by a changed register: the right copies are known all the same.
	s.Firmware = "another"
	s.PowerCut(t)
	_, err := Open(t.Context(), c)
	wantLocked(t, err, "pcr")
	if standing(t, c) != Same {
		t.Fatal("what was kept is not known again")
	}
	with := func(change func(*File)) Config {
		dev := copyMeta(t, meta)
		change(dev)
		return box(s, dev)
	}
	for name, c := range map[string]Config{
		"other lists":   with(func(d *File) { must(WriteLists(d, []byte("everybody"))) }),
		"no lists":      with(func(d *File) { must(WriteLists(d, nil)) }),
		"other network": with(func(d *File) { must(WriteNetwork(d, []byte("another"))) }),
		"lists wiped": with(func(d *File) {
			_, err := d.WriteAt(make([]byte, 2*listsPlace), listsAt)
			must(err)
		}),
		"an older copy": box(s, older),
		"exchanged": with(func(d *File) {
			must(WriteNetwork(d, []byte("the lists")))
			must(WriteLists(d, []byte("the network")))
		}),
	} {
		if got := standing(t, c); got != Other {
			t.Errorf("%s: %d", name, got)
		}
	}
	// Another TPM vouches for nothing, nor does none, nor a header of another form.
	other := tpmtest.Start(t)
	if got, err := JudgeKept(t.Context(), box(other, meta)); got == Same || got == Other {
		t.Errorf("another TPM: %d, %v", got, err)
	}
	none := c
	none.TPM = nil
	if standing(t, none) != Unknown || standing(t, box(s, largeMeta(t))) != Unknown {
		t.Error("nobody there, and somebody vouches")
	}
	// The header of another box in this one's TPM.
	theirs := largeMeta(t)
	mustCreate(t, box(other, theirs))
	must(WriteLists(theirs, []byte("the lists")))
	must(WriteNetwork(theirs, []byte("the network")))
	if got, err := JudgeKept(t.Context(), box(s, theirs)); got == Same {
		t.Errorf("another box's header: %d, %v", got, err)
	}
	s.Firmware = ""
	must(Erase(t.Context(), c))
	if standing(t, c) != Unknown {
		t.Error("after erasing the TPM remembers")
	}
}

func TestListsLieWhereTheMapSays(t *testing.T) {
	dev := largeMeta(t)
	if WriteLists(dev, make([]byte, MaxLists+1)) == nil {
		t.Error("more than fits was written")
	}
	for _, n := range []int{MaxLists, MaxLists - 1} {
		if err := WriteLists(dev, append(make([]byte, n-1), 1)); err != nil {
			t.Fatal(err)
		}
		if err := WriteSpool(dev, append(make([]byte, MaxSpool-n%2-1), 1)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := os.ReadFile(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !isBlank(all[:256<<10]) || !isBlank(all[512<<10:]) || isBlank(all[256<<10:448<<10]) || isBlank(all[448<<10:512<<10]) {
		t.Error("bytes outside of their places changed")
	}
	if b, err := ReadLists(dev); err != nil || len(b) != MaxLists-1 {
		t.Errorf("%d bytes of lists, %v", len(b), err)
	}
	if b, err := ReadSpool(dev); err != nil || len(b) < MaxSpool-1 {
		t.Errorf("%d bytes of the spool, %v", len(b), err)
	}
}
