package boot

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/lists"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/vault"
	"gatehouse/tpm/tpmtest"
)

// TestKEY6_LockedBoxUsesWhatTheTPMVouchesFor: lists and network of a thief, or of a box
// without a TPM that could say, open nothing; those that were kept are used.
func TestKEY6_LockedBoxUsesWhatTheTPMVouchesFor(t *testing.T) {
	quiet := slog.New(slog.DiscardHandler)
	s := tpmtest.Start(t)
	meta, err := os.OpenFile(filepath.Join(t.TempDir(), "meta"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(meta.Truncate(vault.MetaSize))
	c := vault.Config{Meta: meta, TPM: s.TPM(), Form: vault.Box}
	v, err := vault.Create(t.Context(), c)
	must(err)
	t.Cleanup(v.Wipe)
	must(v.Commit(t.Context()))

	folder, err := lists.Open(t.TempDir())
	must(err)
	open := &box{log: quiet, keys: v, meta: meta, config: c}
	kept := control.NetworkSettings{Resolvers: nil, Search: []string{"example.org"}}
	text, err := netconf.Encode(kept)
	must(err)
	must(vault.WriteNetwork(meta, text))
	folder.OnKept = func() { open.rememberKept(folder) }
	must(folder.Stage(control.ListsStage{Reset: true, File: "allowlists.toml", Data: []byte("enabled = true\n")}))
	candidate, err := folder.Candidate()
	must(err)
	must(folder.Keep(candidate))

	locked := func(c vault.Config) (paths supervise.Paths, network control.NetworkSettings) {
		b := &box{log: quiet, meta: meta, config: c}
		paths.Control = filepath.Join(t.TempDir(), "control.sock")
		b.unpackLists(t.Context(), &paths)
		return paths, b.netStore().load()
	}
	s.Firmware = "another"
	s.PowerCut(t)
	if p, n := locked(c); p.Lists == "" || p.Admission == "" || !netconf.Equal(n, kept) {
		t.Fatalf("what was kept is not used: %+v, %+v", p, n)
	} else if f, err := lists.Open(p.Lists); err != nil || f.Kept() == "" {
		t.Errorf("the lists are not there: %v", err)
	}
	without := c
	without.TPM = nil
	if p, n := locked(without); p.Lists != "" || !netconf.Equal(n, kept) {
		t.Errorf("where nobody can say: %+v, %+v", p, n)
	}
	packed, err := vault.ReadLists(meta)
	must(err)
	must(vault.WriteLists(meta, append(packed, "\x09evil.list\x00\x00\x00\x09"+"0.0.0.0/0"...)))
	if p, n := locked(c); p.Lists != "" || p.Admission != "" || !netconf.Equal(n, control.NetworkSettings{}) {
		t.Errorf("lists of a thief: %+v, %+v", p, n)
	}
	must(vault.WriteLists(meta, packed))
	if p, _ := locked(c); p.Lists == "" {
		t.Error("put back, they are not used")
	}
	evil, err := netconf.Encode(control.NetworkSettings{Search: []string{"evil.example"}})
	must(err)
	must(vault.WriteNetwork(meta, evil))
	if p, n := locked(c); p.Lists != "" || !netconf.Equal(n, control.NetworkSettings{}) {
		t.Errorf("a network of a thief: %+v, %+v", p, n)
	}
	// Vouched for, and malformed all the same: it was ours that was wrong, and
	// nobody is let in by it.
	must(vault.WriteLists(meta, []byte("\x05noise")))
	must(v.RememberKept(t.Context()))
	if p, _ := locked(c); p.Lists != "" {
		t.Error("malformed lists are used")
	}
}

// A folder of lists that does not open must not end the start: the page and the console say
// why, and only the box's own networks get in.
func TestNET2_UnreadListsEndNoStart(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "current"), []byte("rubbish"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &roles{log: slog.New(slog.DiscardHandler), paths: supervise.Paths{Lists: dir}}
	if l := r.lists(); l == nil || l.Folder.Problem() == "" || l.Folder.Kept() == "" {
		t.Errorf("%+v", l)
	}
}
