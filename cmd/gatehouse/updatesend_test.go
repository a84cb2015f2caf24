package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
)

// A file that was not copied as a whole is refused before the box is asked to make
// room for it.
func TestBOX4_FilesThatWereNotCopiedWhole(t *testing.T) {
	const size = 100_000
	whole := consoletest.NewReleaser(t).Bundle("0.2.0", size)
	path := filepath.Join(t.TempDir(), "new.update")
	for name, c := range map[string]struct {
		content []byte
		words   string
	}{
		"a byte less":     {whole[:len(whole)-1], "not copied as a whole"},
		"no system":       {whole[:len(whole)-size], "not copied as a whole"},
		"a byte more":     {append(append([]byte(nil), whole...), 'x'), "not copied as a whole"},
		"no manifest":     {[]byte("gatehouse update 1 5\nwhat\nx"), "manifest"},
		"another file":    {[]byte("to do\n"), "whose name ends in .update"},
		"the whole of it": {whole, ""},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := openBundle(path)
		if c.words == "" {
			if err != nil || b.size != size {
				t.Errorf("%s: %v", name, err)
				continue
			}
			b.Close()
			continue
		}
		var f *failure
		if !errors.As(err, &f) || f.code != exitVerification || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}
