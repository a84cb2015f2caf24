package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUSE2_LoginRefusals(t *testing.T) {
	h := newHubBox(t, nas, never)
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"nobody to ask":       {[]string{"login"}, exitUsage, "--email"},
		"no password":         {[]string{"login", "--email", "ada@example.org"}, exitUsage, "--password"},
		"no code":             {[]string{"login", "--email", "ada@example.org", "--password", "file:password"}, exitUsage, "--code"},
		"a secret in clear":   {[]string{"login", "--email", "ada@example.org", "--password", hubPassword, "--code", "file:code"}, exitUsage, "never the secret itself"},
		"two from stdin":      {[]string{"login", "--email", "ada@example.org", "--password", "-", "--code", "-"}, exitUsage, "only one"},
		"a wrong password":    {[]string{"login", "--email", "ada@example.org", "--password", "file:code", "--code", "file:code"}, exitDenied, "refused the sign-in"},
		"a wrong code":        {[]string{"login", "--email", "ada@example.org", "--password", "file:password", "--code", "file:password"}, exitDenied, "refused the sign-in"},
		"logout of nothing":   {[]string{"logout"}, exitNotFound, "no session is kept"},
		"not signed in":       {[]string{"targets"}, exitDenied, "gatehouse login"},
		"connect, the same":   {[]string{"connect", "nas"}, exitDenied, "gatehouse login"},
		"an old verb as well": {[]string{"allowlist", "list"}, exitDenied, "gatehouse login"},
		"a box that is not":   {[]string{"login", "192.0.2.77"}, exitNotFound, "not known on this machine"},
	} {
		if code, out, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) || out != "" {
			t.Errorf("%s: %d %q %q, want %d and %q", name, code, out, diag, c.want, c.say)
		}
	}
	if k, err := readKept(); err != nil || len(k.Sessions) != 0 {
		t.Errorf("kept: %+v, %v", k, err)
	}
}

func TestUSE2_LoginKeepsASessionAndNoSecret(t *testing.T) {
	h := newHubBox(t, nas, never)
	h.login()
	if code, out, diag := h.run(nil, "targets"); code != 0 || !strings.Contains(out, "NAS Süd") {
		t.Fatalf("%d %s%s", code, out, diag)
	}
	if h.signIns != 1 {
		t.Errorf("%d sign-ins", h.signIns)
	}
	dir := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "gatehouse")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil || bytes.Contains(b, []byte(hubPassword)) || bytes.Contains(b, []byte(hubCode)) {
			t.Errorf("%s holds a secret that was typed (%v)", f.Name(), err)
		}
		if i, err := f.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), i.Mode(), err)
		}
	}
	// One go with secrets leaves the kept session alone, and none of its own.
	kept, _ := readKept()
	one := []string{"targets", "--json", "--email", "ada@example.org", "--password", "file:password", "--code", "file:code"}
	if code, out, diag := h.run(nil, one...); code != 0 || !strings.Contains(out, `"name": "NAS Süd"`) {
		t.Errorf("%d %s%s", code, out, diag)
	}
	if now, _ := readKept(); fmt.Sprint(now) != fmt.Sprint(kept) || h.session != "" {
		t.Errorf("kept %+v, before %+v; at the box %q", now, kept, h.session)
	}
	// What the box has ended is said, and forgotten.
	if code, _, diag := h.run(nil, "targets"); code != exitDenied || !strings.Contains(diag, "gatehouse login") {
		t.Errorf("%d %s", code, diag)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
	h.login()
	h.confirm = true
	if code, _, diag := h.run(nil, "targets"); code != exitDenied || !strings.Contains(diag, "password and the code again") {
		t.Errorf("%d %s", code, diag)
	}
	h.confirm = false
	if code, _, diag := h.run(nil, "logout"); code != 0 || h.session != "" {
		t.Errorf("logout: %d %s, at the box %q", code, diag, h.session)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
	h.login()
	h.Close()
	if code, _, diag := h.run(nil, "logout"); code != exitUnreachable || !strings.Contains(diag, "forgotten here") {
		t.Errorf("logout without the box: %d %s", code, diag)
	}
	if now, _ := readKept(); len(now.Sessions) != 0 {
		t.Errorf("kept: %+v", now)
	}
}

// At a terminal it asks, the password without showing it and the code last.
func TestUSE2_LoginAsksAPerson(t *testing.T) {
	newHubBox(t, nas, never)
	for name, c := range map[string]struct {
		lines, hidden string
		want          exitCode
		asks          string
	}{
		"nothing typed":  {"", hubPassword, exitUsage, "E-mail address: "},
		"no password":    {"ada@example.org\n", "", exitUsage, "E-mail address: Password: "},
		"wrong password": {"ada@example.org\n", "violet", exitDenied, "E-mail address: Password: "},
		"no code":        {"ada@example.org\n", hubPassword, exitUsage, "E-mail address: Password: Code of the second factor, or a recovery code: "},
		"all of it":      {"ada@example.org\n" + hubCode + "\n", hubPassword, exitOK, "E-mail address: Password: Code of the second factor, or a recovery code: "},
	} {
		b, s, err := askBox(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		a := &asker{lines: bufio.NewReader(strings.NewReader(c.lines)), out: &out, secret: func() (string, error) { return c.hidden, nil }}
		err = s.login(t.Context(), b, signIn{}, a)
		if c.want == exitOK && err != nil || c.want != exitOK && codeOf(err) != c.want || out.String() != c.asks {
			t.Errorf("%s: %v, asks %q, want %d and %q", name, err, &out, c.want, c.asks)
		}
		if k, err := readKept(); err != nil || len(k.Sessions) == 1 != (c.want == exitOK) {
			t.Errorf("%s: kept %+v, %v", name, k, err)
		}
		if k, _ := readKept(); c.want == exitOK && len(k.Sessions) == 1 {
			if err := k.put(keptSession{SPKI: k.Sessions[0].SPKI}); err != nil { // for the next of them
				t.Fatal(err)
			}
		}
	}
}
