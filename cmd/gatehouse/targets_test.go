package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

func TestSES5_TargetsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	key := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "key")
	if err := os.WriteFile(key, []byte("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"no kind":            {[]string{"target", "add", "x", "--address", "nas.lan"}, exitUsage, "kind"},
		"a kind that is not": {[]string{"target", "add", "x", "--kind", "telnet", "--address", "nas.lan:23"}, exitUsage, "not a kind"},
		"no port":            {[]string{"target", "add", "x", "--kind", "tcp", "--address", "nas.lan"}, exitUsage, "has no port"},
		"the box's loopback": {[]string{"target", "add", "x", "--kind", "ssh", "--address", "127.0.0.1"}, exitUsage, "not the address of a host"},
		"no such target":     {[]string{"target", "remove", "printer"}, exitNotFound, "no target printer"},
		"a secret in clear":  {[]string{"target", "credential", "7", "--user", "ann", "--secret", "hunter2"}, exitUsage, "never the secret itself"},
		"two secrets":        {[]string{"target", "credential", "7", "--user", "ann", "--secret", "file:password", "--key", "file:key"}, exitUsage, "--secret or with --key"},
		"nobody":             {[]string{"target", "credential", "7", "--secret", "file:password"}, exitUsage, "--user"},
		"a key that is none": {[]string{"target", "credential", "7", "--user", "ann", "--key", "file:password"}, exitUsage, "not a private key"},
	} {
		if code, _, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q, want %d and %q", name, code, diag, c.want, c.say)
		}
	}
	if len(h.posted) != 0 {
		t.Errorf("posted: %q", h.posted)
	}
	for _, c := range []struct {
		args []string
		path string
		want string
	}{
		{[]string{"target", "add", "printer", "--kind", "http", "--address", "printer.lan", "--recording", "off", "--idle", "5"}, api.Targets,
			`{"name":"printer","kind":"http","host":"printer.lan","port":80,"recording":"off","idle":5}`},
		{[]string{"target", "change", "NAS Süd", "--address", "[2001:db8::5]:2222"}, api.TargetChange,
			`{"id":7,"name":"NAS Süd","kind":"ssh","host":"2001:db8::5","port":2222,"recording":"","idle":0}`},
		{[]string{"target", "credential", "7", "--user", "ann", "--secret", "file:password"}, api.Credential, `{"id":7,"user":"ann","password":"violet tractor"}`},
		{[]string{"target", "credential", "7", "--user", "ann", "--key", "file:key"}, api.Credential,
			`{"id":7,"user":"ann","private_key":"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n"}`},
		{[]string{"target", "credential", "7", "--remove"}, api.Credential, `{"id":7,"user":""}`},
		{[]string{"target", "forget-host-key", "7"}, api.HostKeys, `{"id":7}`},
		{[]string{"target", "remove", "7"}, api.TargetRemove, `{"id":7}`},
	} {
		if code, out, diag := h.run(nil, c.args...); code != 0 || string(h.posted[c.path]) != c.want {
			t.Errorf("%v: %d %s%s\n%s, want\n%s", c.args, code, out, diag, h.posted[c.path], c.want)
		}
	}
}

func TestSES7_SessionsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	h.sessions = []api.Session{
		{ID: targets.ID{0x3f, 1}, State: api.Live, Target: nas, Technician: "ada@example.org", Open: []string{"terminal"}, Path: "relay", Started: time.Now()},
		{ID: targets.ID{0x3f, 2}, State: api.Lost, Target: nas, Technician: "eve@example.org", Started: time.Now()},
		{ID: targets.ID{0x40}, State: api.Over, Target: nas, Reason: "idle\x1b[2J", Started: time.Now()},
	}
	if code, out, diag := h.run(nil, "sessions", "list"); code != 0 || strings.Count(out, "\n") != 3 || !strings.Contains(out, "3f010000  live     NAS Süd") {
		t.Errorf("%d %s%s", code, out, diag)
	}
	if code, out, _ := h.run(nil, "sessions", "list", "--all"); code != 0 || strings.Count(out, "\n") != 4 || strings.ContainsRune(out, 0x1b) {
		t.Errorf("%d %q", code, out)
	}
	for typed, want := range map[string]exitCode{"3f": exitConflict, "40": exitNotFound, "": exitNotFound, "zz": exitNotFound} {
		if code, _, diag := h.run(nil, "sessions", "end", typed); code != want || h.posted[api.End] != nil {
			t.Errorf("end %q: %d %s", typed, code, diag)
		}
	}
	if code, _, diag := h.run(nil, "sessions", "end", "3F01"); code != 0 || !strings.Contains(string(h.posted[api.End]), `"3f01`) {
		t.Errorf("%d %s %s", code, diag, h.posted[api.End])
	}
}

const cast = `{"version": 2, "width": 80, "height": 24}
[0.5, "o", "hello "]
[10.5, "o", "world"]
[10.6, "r", "100x30"]
[11.6, "o", "\r\n"]
`

func TestSES9_RecordingsByTheTool(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	h.cast = cast
	if code, out, _ := h.run(nil, "record", "list"); code != 0 || !strings.Contains(out, "ab000000") || !strings.Contains(out, "1m1s") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := h.run(nil, "record", "export", "ab"); code != 0 || out != cast {
		t.Errorf("%d %s", code, out)
	}
	file := filepath.Join(t.TempDir(), "nas.cast")
	if code, _, diag := h.run(nil, "record", "export", "ab", "--file", file); code != 0 {
		t.Errorf("%d %s", code, diag)
	}
	if i, err := os.Stat(file); err != nil || i.Mode().Perm() != 0o600 || i.Size() != int64(len(cast)) {
		t.Errorf("%v, %v", i, err)
	}
	if code, _, _ := h.run(nil, "record", "export", "ab", "--file", file); code != exitConflict {
		t.Errorf("over a file: %d", code)
	}
	if code, out, diag := h.run(nil, "record", "play", "ab", "--speed", "1000"); code != 0 || !strings.HasPrefix(out, "hello world\r\n\x1b[0m") {
		t.Errorf("%d %q %s", code, out, diag)
	}
	for _, bad := range [][]string{{"--speed", "0"}, {"--speed", "-1"}, {"--idle-limit", "-1s"}} {
		if code, _, _ := h.run(nil, append([]string{"record", "play", "ab"}, bad...)...); code != exitUsage {
			t.Errorf("%v: %d", bad, code)
		}
	}
	if code, _, _ := h.run(strings.NewReader("no\n"), "record", "remove", "ab"); code != exitConflict || h.posted[api.RecordingEnd] != nil {
		t.Errorf("removed after a no: %d", code)
	}
	if code, _, _ := h.run(strings.NewReader("yes\n"), "record", "remove", "ab"); code != 0 || h.posted[api.RecordingEnd] == nil {
		t.Errorf("%d", code)
	}
	for _, bad := range []string{"", "x\n", `{"version": 1}` + "\n", `{"version": 2}` + "\n[1]\n", `{"version": 2}` + "\n[\"x\",\"o\",\"\"]\n"} {
		h.cast = bad
		if code, _, diag := h.run(nil, "record", "play", "ab"); code != exitVerification {
			t.Errorf("%q: %d %s", bad, code, diag)
		}
	}
}

func TestSES9_PlayKeepsTime(t *testing.T) {
	for _, c := range []struct {
		p    player
		want string
	}{
		{player{speed: 1}, "[500ms 10s 100ms 1s]"},
		{player{speed: 2}, "[250ms 5s 50ms 500ms]"},
		{player{speed: 2, idle: 2 * time.Second}, "[250ms 1s 50ms 500ms]"},
	} {
		var waited []time.Duration
		var out bytes.Buffer
		err := c.p.play(t.Context(), strings.NewReader(cast), &out, func(_ context.Context, d time.Duration) error {
			waited = append(waited, d.Round(time.Millisecond))
			return nil
		})
		if err != nil || fmt.Sprint(waited) != c.want || out.String() != "hello world\r\n" {
			t.Errorf("%+v: %v %v %q", c.p, err, waited, &out)
		}
	}
}

func TestSES5_NamesForOpenSSH(t *testing.T) {
	for name, want := range map[string]string{"nas": "nas", "NAS 2": "nas-2", "Drucker Süd": "drucker-s-d", "--": "", "a.b": "a-b", strings.Repeat("x", 100): strings.Repeat("x", 40)} {
		if got := hostLabel(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	got := sshConfig("/opt/it's 100%/gatehouse", "[2001:db8::1]:8443")
	want := "Host *.gatehouse\n  ProxyCommand '/opt/it'\\''s 100%%/gatehouse' connect %n --stdio --box [2001:db8::1]:8443\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("%s\nwant %s", got, want)
	}
}
