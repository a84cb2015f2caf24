package config

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// env is a lookup in a map.
func env(m map[string]string) func(string) (string, bool) {
	return func(k string) (string, bool) { v, ok := m[k]; return v, ok }
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "gatehouse.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBOX14_WrongFileIsRefusedWithItsLine(t *testing.T) {
	for name, test := range map[string]struct{ text, want string }{
		"unknown key":         {"name = \"a\"\nhtps = \":1\"\n", `line 2: there is no key "htps"`},
		"unknown table":       {"# a\n\n[web]\nport = 1\n", `line 3: there is no key "web"`},
		"two unknown keys":    {"a = 1\nb = 2\n", `line 2: there is no key "b"`},
		"syntax":              {"name = \"a\"\nstate = \n", "line 2: "},
		"a key twice":         {"name = \"a\"\nname = \"b\"\n", "line 2: "},
		"wrong type":          {"\n\nhttp = 80\n", "line 3: "},
		"port 0":              {"\nhttps = \":0\"\n", "line 2: \":0\" is not a port"},
		"port too big":        {"https = \":65536\"", "is not a port"},
		"port with sign":      {"https = \":+443\"", "is not a port"},
		"port with zero":      {"https = \":0443\"", "is not a port"},
		"name for an address": {"https = \"nas:443\"", "is not an address and a port"},
		"no port":             {"https = \"192.0.2.1\"", "is not an address and a port"},
		"relative state":      {"state = \"data\"", "line 1: \"data\" is not an absolute path"},
		"root as state":       {"state = \"/x/..\"", "is not an absolute path of a folder"},
		"capital name":        {"name = \"NAS\"", "is not a name"},
		"name with a dot":     {"name = \"a.b\"", "is not a name"},
		"empty name":          {"name = \"\"", "is not a name"},
		"long name":           {"name = \"" + strings.Repeat("a", 64) + "\"", "is not a name"},
		"address as name":     {"names = [\"a.example\",\n \"192.0.2.1\"]", "line 2: \"192.0.2.1\" is an address"},
		"name with a port":    {"names = [\"nas.example:8443\"]", "is not a host name"},
		"wildcard":            {"names = [\"*.example\"]", "is not a host name"},
		"very long host":      {"names = [\"" + strings.Repeat("a.", 127) + "a\"]", "is not a host name"},
		"level":               {"log_level = \"INFO+3\"", "is not a log level"},
		"variable":            {"key_variable = \"my key\"", "is not the name of a variable"},
		"passphrase itself":   {"key = \"correct horse\"", `there is no key "key"`},
		"ports collide":       {"http = \":8443\"", "would listen on the same port"},
		"ports collide by *":  {"http = \"0.0.0.0:9\"\nhttps = \"192.0.2.1:9\"", "would listen on the same port"},
		"relative lists":      {"lists = \"lists\"", "line 1: \"lists\" is not an absolute path"},
		"lists in the state":  {"state = \"/srv/g\"\nlists = \"/srv/g/lists\"", "is in the state folder"},
		"lists are the state": {"state = \"/srv/g\"\nlists = \"/srv/g/\"", "is in the state folder"},
		"over the size":       {strings.Repeat("# comment\n", fileLimit/10+1), "is over 65536 bytes"},
	} {
		c, err := Load(Sources{File: file(t, test.text), Lookup: env(nil)})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v, want %q", name, c, err, test.want)
		}
	}
	for name, path := range map[string]string{"missing": "/nowhere/gatehouse.toml", "a folder": t.TempDir()} {
		if _, err := Load(Sources{File: path, Lookup: env(nil)}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFlagsAndVariablesAreCheckedToo(t *testing.T) {
	for _, f := range Flags() {
		variable := "GATEHOUSE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if _, err := Load(Sources{Lookup: env(map[string]string{variable: "!"})}); err == nil || !strings.Contains(err.Error(), variable) {
			t.Errorf("%s=!: %v", variable, err)
		}
		if _, err := Load(Sources{Lookup: env(nil), Flags: map[string]string{f.Name: "!"}}); err == nil || !strings.Contains(err.Error(), "--"+f.Name) {
			t.Errorf("--%s=!: %v", f.Name, err)
		}
	}
	if _, err := Load(Sources{Lookup: env(nil), Flags: map[string]string{"htps": ":1"}}); err == nil {
		t.Error("an unknown flag was taken")
	}
}

func TestPrecedence(t *testing.T) {
	s := Sources{Lookup: env(nil)}
	check := func(what, https string) {
		t.Helper()
		c, err := Load(s)
		if err != nil || c.HTTPS.String() != https {
			t.Errorf("%s: %v, %v, want %s", what, c.HTTPS, err, https)
		}
	}
	check("default", ":8443")
	s.File = file(t, `https = "192.0.2.1:1"`)
	check("file", "192.0.2.1:1")
	s.Lookup = env(map[string]string{"GATEHOUSE_HTTPS": "[2001:db8::1]:2"})
	check("variable", "[2001:db8::1]:2")
	s.Flags = map[string]string{"https": ":3"}
	check("flag", ":3")
}

func TestBOX14_ReferenceFile(t *testing.T) {
	const path = "../../docs/gatehouse.toml"
	c, err := Load(Sources{File: path, Lookup: env(nil)})
	if err != nil {
		t.Fatal(err)
	}
	defaults, err := Load(Sources{Lookup: env(nil)})
	if err != nil {
		t.Fatal(err)
	}
	// The file says that its values are the defaults where there is one.
	want := defaults
	want.Name, want.Names, want.Lists = "gatehouse-nas", []string{"nas.example.net"}, "/etc/gatehouse/lists"
	want.Certificate, want.Key = "/etc/ssl/nas/fullchain.pem", "/etc/ssl/nas/privkey.pem"
	if c.Name != want.Name || !slices.Equal(c.Names, want.Names) || c.LogLevel != want.LogLevel || len(want.AtNextStart(c)) > 0 {
		t.Errorf("the reference file says %+v, want %+v", c, want)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Flags() {
		for _, word := range []string{"--" + f.Name, "GATEHOUSE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), "\n" + strings.ReplaceAll(f.Name, "-", "_") + " = "} {
			if !strings.Contains(string(text), word) {
				t.Errorf("the reference file lacks %q", word)
			}
		}
	}
}

func TestNamesAreNormal(t *testing.T) {
	c, err := Load(Sources{Lookup: env(map[string]string{"GATEHOUSE_NAMES": "Nas.Example.net., a.example, ,nas.example.net"})})
	if err != nil || !slices.Equal(c.Names, []string{"a.example", "nas.example.net"}) {
		t.Errorf("%q, %v", c.Names, err)
	}
}

func TestAtNextStart(t *testing.T) {
	load := func(text string) Config {
		c, err := Load(Sources{File: file(t, text), Lookup: env(nil)})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := load("")
	if got := old.AtNextStart(load("names = [\"a.example\"]\nlog_level = \"debug\"")); len(got) > 0 {
		t.Errorf("names and level change at once, but %v", got)
	}
	got := old.AtNextStart(load("name=\"x\"\nstate=\"/x\"\nhttp=\":1\"\nhttps=\":2\"\nkey_variable=\"X\""))
	if !slices.Equal(got, []string{"name", "state", "http", "https", "key_variable"}) {
		t.Errorf("AtNextStart = %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("name = \"a\"\nhttps = \":443\"\nnames = [\"b.example\"]\n"))
	f.Add([]byte("[a]\nb = {c = 1}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(b)
		if err != nil {
			return
		}
		c, err := r.valid()
		if err != nil {
			return
		}
		if !filepath.IsAbs(c.State) || c.HTTP.Port() == 0 || c.HTTPS.Port() == 0 || c.KeyVariable == "" {
			t.Fatalf("%q gave %+v", b, c)
		}
	})
}

func TestBOX14_Hosted(t *testing.T) {
	group := func(s string) fstest.MapFS { return fstest.MapFS{"proc/1/cgroup": {Data: []byte(s)}} }
	for name, test := range map[string]struct {
		env  map[string]string
		root fstest.MapFS
		want Form
	}{
		"nothing":            {nil, fstest.MapFS{}, Host},
		"systemd host":       {nil, group("0::/init.scope\n"), Host},
		"docker":             {nil, fstest.MapFS{".dockerenv": {}}, Container},
		"podman":             {nil, fstest.MapFS{"run/.containerenv": {}}, Container},
		"nspawn":             {map[string]string{"container": "systemd-nspawn"}, fstest.MapFS{}, Container},
		"kubernetes":         {map[string]string{"KUBERNETES_SERVICE_HOST": "192.0.2.1"}, fstest.MapFS{}, Container},
		"docker, cgroup v1":  {nil, group("12:pids:/docker/0123\n"), Container},
		"lxc":                {nil, group("1:name=systemd:/lxc/c1\n"), Container},
		"kubepods, v2":       {nil, group("0::/kubepods/besteffort/pod1\n"), Container},
		"told: container":    {map[string]string{"GATEHOUSE_HOSTED": "container"}, fstest.MapFS{}, Container},
		"told: host, marked": {map[string]string{"GATEHOUSE_HOSTED": "host"}, fstest.MapFS{".dockerenv": {}}, Host},
	} {
		if got, err := Hosted(env(test.env), test.root); err != nil || got != test.want {
			t.Errorf("%s: %q, %v, want %s", name, got, err, test.want)
		}
	}
	for _, wrong := range []string{"", "nas", "Container", "1"} {
		if got, err := Hosted(env(map[string]string{"GATEHOUSE_HOSTED": wrong}), fstest.MapFS{}); err == nil {
			t.Errorf("GATEHOUSE_HOSTED=%q was taken as %s", wrong, got)
		}
	}
}

// heard is what Watch told.
type heard struct {
	c   Config
	err error
}

// watching runs watch on a file and gives what it tells.
func watching(t *testing.T, path string, rescan time.Duration) <-chan heard {
	t.Helper()
	told := make(chan heard, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- watch(ctx, Sources{File: path, Lookup: env(nil)}, slog.New(slog.DiscardHandler), func(c Config, err error) { told <- heard{c, err} }, 50*time.Millisecond, rescan)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("watch = %v, want the end of its context", err)
		}
	})
	return told
}

func next(t *testing.T, told <-chan heard) heard {
	t.Helper()
	select {
	case h := <-told:
		return h
	case <-time.After(20 * time.Second):
		t.Fatal("heard nothing")
		return heard{}
	}
}

func TestBOX14_ChangedFileIsReadAgain(t *testing.T) {
	path := file(t, `name = "one"`)
	told := watching(t, path, time.Hour)
	if h := next(t, told); h.err != nil || h.c.Name != "one" {
		t.Fatalf("at the start: %+v", h)
	}
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(`name = "two"`)
	if h := next(t, told); h.err != nil || h.c.Name != "two" {
		t.Errorf("written in place: %+v", h)
	}
	put("\nnmae = \"three\"")
	if h := next(t, told); h.err == nil || !strings.Contains(h.err.Error(), "line 2") {
		t.Errorf("a wrong file: %+v", h)
	}
	// As editors do it.
	if err := os.WriteFile(path+".new", []byte(`name = "four"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if h := next(t, told); h.err != nil || h.c.Name != "four" {
		t.Errorf("replaced by rename: %+v", h)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if h := next(t, told); !errors.Is(h.err, os.ErrNotExist) {
		t.Errorf("removed: %+v", h)
	}
	put(`name = "five"`)
	if h := next(t, told); h.err != nil || h.c.Name != "five" {
		t.Errorf("back again: %+v", h)
	}
	// What does not change the content is not told.
	put(`name = "five"`)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	select {
	case h := <-told:
		t.Errorf("told without a change: %+v", h)
	default:
	}
}

func TestManyWritesAreOneChange(t *testing.T) {
	path := file(t, `name = "one"`)
	told := watching(t, path, time.Hour)
	next(t, told)
	for i := range 20 {
		if err := os.WriteFile(path, []byte("# "+strings.Repeat("x", i)+"\nname = \"two\""), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if h := next(t, told); h.err != nil || h.c.Name != "two" {
		t.Errorf("after many writes: %+v", h)
	}
	time.Sleep(200 * time.Millisecond)
	if n := len(told); n > 1 {
		t.Errorf("told %d times more", n)
	}
}

// A folder that reports nothing is looked at anyway: the link leads elsewhere.
func TestSilentFileIsFoundByRescan(t *testing.T) {
	real := file(t, `name = "one"`)
	link := filepath.Join(t.TempDir(), "gatehouse.toml")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	told := watching(t, link, 100*time.Millisecond)
	next(t, told)
	if err := os.WriteFile(real, []byte(`name = "two"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := next(t, told); h.err != nil || h.c.Name != "two" {
		t.Errorf("found by looking again: %+v", h)
	}
}

func TestWatchRefusesAFolderThatIsNotThere(t *testing.T) {
	err := Watch(Sources{File: "/nowhere/gatehouse.toml", Lookup: env(nil)}, slog.New(slog.DiscardHandler), func(Config, error) {}).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("Watch = %v", err)
	}
}

func TestWatchWithoutAFileOnlyWaits(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(Sources{Lookup: env(nil)}, slog.New(slog.DiscardHandler), nil).Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
}
