package boot

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

func TestNET10_CertificateFilesAreWatched(t *testing.T) {
	dir := t.TempDir()
	chain, key := filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem")
	got := make(chan control.CertificateFiles, 10)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		followCertificate(ctx, chain, key, slog.New(slog.DiscardHandler), func(f control.CertificateFiles) { got <- f })
	})
	defer wg.Wait()
	defer cancel()
	next := func() control.CertificateFiles {
		t.Helper()
		select {
		case f := <-got:
			return f
		case <-time.After(20 * time.Second):
			t.Fatal("no change was told")
		}
		return control.CertificateFiles{}
	}
	if f := next(); !f.Named || f.Problem == "" || f.Chain != nil {
		t.Errorf("missing files: %+v", f)
	}
	put := func(path, text string) { // as tools do that renew
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put(chain, "chain 1")
	put(key, "key 1")
	f := next()
	for f.Problem != "" {
		f = next()
	}
	if string(f.Chain) != "chain 1" || string(f.Key) != "key 1" {
		t.Errorf("%+v", f)
	}
	put(chain, strings.Repeat("x", maxCertificateFile+1))
	if f = next(); f.Problem == "" || f.Key != nil {
		t.Errorf("a huge file: %+v", f)
	}
	put(chain, "chain 2")
	if f = next(); string(f.Chain) != "chain 2" {
		t.Errorf("%+v", f)
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if f = next(); f.Problem == "" || f.Chain != nil {
		t.Errorf("without a key: %+v", f)
	}
}
