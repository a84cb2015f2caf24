package admission

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gatehouse/netfilter/allowlist"
)

var (
	friend   = netip.MustParseAddr("192.0.2.9")
	stranger = netip.MustParseAddr("198.51.100.1")
)

func policy(t *testing.T, ranges string, scope string) []byte {
	t.Helper()
	p, bad := allowlist.Parse([]allowlist.File{
		{Name: allowlist.Index, Data: []byte("enabled = true\n[[list]]\nname = \"office\"\nenabled = true\nscope = [\"" + scope + "\"]\n")},
		{Name: "office.list", Data: []byte(ranges)},
	})
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	return allowlist.Encode(p)
}

func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".next", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".next", path); err != nil {
		t.Fatal(err)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestNET2_DamagedFileAdmitsNobodyNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admission")
	replace(t, path, []byte("GHAL"))
	if s := Open(path, quiet()).Scopes(friend); s != 0 {
		t.Errorf("a damaged file gives %b", s)
	}
	replace(t, path, policy(t, "192.0.2.0/24", "console"))
	w := Open(path, quiet())
	replace(t, path, []byte("GHALrubbish"))
	w.look()
	if w.Scopes(friend) != allowlist.Console || w.Scopes(stranger) != 0 {
		t.Error("a damaged file changed what was known")
	}
	if w.Scopes(netip.MustParseAddr("127.0.0.1")) != allowlist.Everything || w.Scopes(netip.MustParseAddr("::ffff:192.0.2.9")) != allowlist.Console {
		t.Error("loopback or IPv4 in IPv6 form is judged otherwise")
	}
	if Open("", quiet()).Scopes(stranger) != allowlist.Everything {
		t.Error("without a file to follow the kernel judges alone")
	}
}

func TestNET4_ChangeIsToldAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admission")
	replace(t, path, policy(t, "192.0.2.0/24", "console"))
	w := Open(path, quiet())
	told := make(chan allowlist.Scope, 10)
	w.OnChange(func() { told <- w.Scopes(friend) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	replace(t, path, policy(t, "10.0.0.0/8", "console"))
	select {
	case s := <-told:
		if s != 0 {
			t.Errorf("the removed source has %b", s)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("not told")
	}
}
