package script

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"gatehouse/appliance/console"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/vault"
	"gatehouse/image/disk"
)

// tool is the command with a home and files of its own.
type tool struct {
	t    *testing.T
	path string
	home string
}

func newTool(t *testing.T, code string) tool {
	home := t.TempDir()
	for name, text := range map[string]string{"code": code, "password": consoletest.Password} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tool{t, filepath.Join(build(t), "gatehouse"), home}
}

func (c tool) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.t.Context(), c.path, args...)
	cmd.Dir = c.home
	cmd.Env = []string{"HOME=" + c.home, "XDG_CONFIG_HOME=" + c.home}
	cmd.Stderr = os.Stderr
	return cmd
}

// The box's own console, claimed by one command.
func TestACC1_SetupClaimsARealConsole(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	c := newTool(t, b.Code.String())
	args := []string{"setup", b.URL, "--code", "file:code", "--name", "Ada", "--email", "ada@example.org", "--password", "file:password"}
	if out, err := c.command(args...).Output(); err != nil || !strings.Contains(string(out), "belongs to ada@example.org") {
		t.Fatalf("setup: %v\n%s", err, out)
	}
	if out, err := c.command("status").Output(); err != nil || !strings.Contains(string(out), ": ready") {
		t.Errorf("status: %v\n%s", err, out)
	}
	cmd := c.command(args...)
	if out, err := cmd.Output(); cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("a second setup: %v, want exit 5\n%s", err, out)
	}
}

// A code that was set in an image claims the console of the box with that image.
func TestBOX10_CodeSetInAnImageClaims(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	c := newTool(t, b.Code.String())
	file := filepath.Join(c.home, "box.img")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := disk.Write(f, nil, []byte("test")); err != nil {
		t.Fatal(err)
	}
	code, err := c.command("image", "claim-code", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.home, "flashed"), code, 0o600); err != nil {
		t.Fatal(err)
	}
	start, err := disk.Meta(f)
	if err != nil {
		t.Fatal(err)
	}
	salt, key, ok, err := vault.ReadClaimVerifier(metaOf{io.NewOffsetWriter(f, start), io.NewSectionReader(f, start, disk.MetaSize), f})
	if err != nil || !ok {
		t.Fatalf("no verifier in the image (%v)", err)
	}
	b.Flashed(control.ClaimMaterial{Salt: salt[:], Key: key[:]})
	args := []string{"setup", b.URL, "--name", "Ada", "--email", "ada@example.org", "--password", "file:password", "--code"}
	if out, err := c.command(append(args, "file:code")...).Output(); err == nil {
		t.Fatalf("the code of another box claimed it:\n%s", out)
	}
	if out, err := c.command(append(args, "file:flashed")...).Output(); err != nil || !strings.Contains(string(out), "belongs to ada@example.org") {
		t.Fatalf("setup with the code of the image: %v\n%s", err, out)
	}
}

// metaOf is META inside of an image.
type metaOf struct {
	io.WriterAt
	io.ReaderAt
	*os.File
}

func (m metaOf) ReadAt(b []byte, off int64) (int, error)  { return m.ReaderAt.ReadAt(b, off) }
func (m metaOf) WriteAt(b []byte, off int64) (int, error) { return m.WriterAt.WriteAt(b, off) }

var hidden = regexp.MustCompile(`name="ticket"[^>]*value="([^"]+)"`)

// The same by the local page, in a browser that refuses every certificate.
func TestACC1_SetupPageOfARealConsole(t *testing.T) {
	b := consoletest.Start(t, console.Run)
	c := newTool(t, b.Code.String())
	cmd := c.command("setup", b.URL, "--code", "file:code", "--no-browser", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var printed struct{ URL string }
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&printed); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(printed.URL)
	if err != nil {
		t.Fatal(err)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browser := &http.Client{Jar: jar, Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+u.Port())
	}}}
	page := read(t)(browser.Get(printed.URL))
	ticket := hidden.FindStringSubmatch(page)
	if ticket == nil {
		t.Fatalf("the page has no ticket:\n%s", page)
	}
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+u.Host+"/setup", strings.NewReader(url.Values{
		"ticket": {ticket[1]}, "name": {"Ada"}, "email": {"ada@example.org"}, "password": {consoletest.Password},
	}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "http://"+u.Host)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if page = read(t)(browser.Do(r)); !strings.Contains(page, "Is the clock right?") {
		t.Fatalf("the claim does not lead on to the clock:\n%s", page)
	}
	if out, err := c.command("status").Output(); err != nil || !strings.Contains(string(out), ": ready") {
		t.Errorf("status: %v\n%s", err, out)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("interrupted: exit %d, want 130", cmd.ProcessState.ExitCode())
	}
}

func read(t *testing.T) func(*http.Response, error) string {
	return func(r *http.Response, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d, %v\n%s", r.Request.URL, r.StatusCode, err, b)
		}
		return string(b)
	}
}

// What the page Status shows, by the tool: refusals first.
func TestKEY3_StatusShowsWhatThePageShows(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	c := newTool(t, br.Codes[0])
	words := b.Ready().Certificate.Words
	signed := []string{"status", b.URL, "--proof", words, "--email", "ada@example.org", "--password", "file:password", "--code", "file:code"}
	for _, bad := range []struct {
		args []string
		exit int
	}{
		{[]string{"status", b.URL, "--proof", words, "--email", "ada@example.org"}, 2},
		{[]string{"status", b.URL, "--proof", words, "--password", "file:password"}, 2},
		{[]string{"status", b.URL, "--proof", words, "--email", "ada@example.org", "--password", "secret", "--code", "file:code"}, 2},
		{[]string{"status", b.URL, "--proof", words, "--email", "eve@example.org", "--password", "file:password", "--code", "file:code"}, 3},
		{[]string{"status", b.URL, "--proof", words, "--email", "ada@example.org", "--password", "file:password", "--code", "file:password"}, 3},
		{append([]string{"status", b.URL, "--proof", "amber canyon violin drift pencil north"}, signed[4:]...), 7},
	} {
		cmd := c.command(bad.args...)
		if out, _ := cmd.Output(); cmd.ProcessState.ExitCode() != bad.exit {
			t.Errorf("%v: exit %d, want %d\n%s", bad.args, cmd.ProcessState.ExitCode(), bad.exit, out)
		}
	}
	out, err := c.command(signed...).Output()
	if err != nil || !strings.Contains(string(out), "grade B") || !strings.Contains(string(out), "Firewall") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(c.home, "code"), []byte(br.Codes[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = c.command(append(signed, "--json")...).Output()
	var d struct {
		Name  string
		Trust struct{ Mechanism, Grade string }
	}
	if err := errors.Join(err, json.Unmarshal(out, &d)); err != nil || d.Name != consoletest.Name || d.Trust.Grade != "B" {
		t.Errorf("%v\n%s", err, out)
	}
	if p := br.Open("/account"); strings.Count(p.Body, "/account/end\"") > 1 {
		t.Error("the tool left a session open")
	}
}

// A recovery key by the tool: printed alone, and its last group typed back.
func TestKEY8_ToolMakesARecoveryKey(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	c := newTool(t, br.Codes[0])
	if out, err := c.command("status", b.URL, "--proof", b.Ready().Certificate.Words).Output(); err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	cmd := c.command("keys", "recovery", "new", "--email", "ada@example.org", "--password", "file:password", "--code", "file:code")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	key, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := consoletest.RecoveryKind.Parse(strings.TrimSpace(key)); err != nil {
		t.Errorf("%q: %v", key, err)
	}
	// A slip, then as a person types.
	if _, err := io.WriteString(in, "0000000\n "+strings.ToLower(key[strings.LastIndexByte(key, '-')+1:])); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v", err)
	}
	if asked := b.KeysAsked(); len(asked) != 3 || !strings.Contains(br.Open("/api/v1/keys").Body, `"recovery":"confirmed"`) {
		t.Errorf("not confirmed: %v", asked)
	}
}

// Lists that are files of the host, by the tool: shown with what was refused,
// and not changed.
func TestNET2_ToolShowsListsOfTheHost(t *testing.T) {
	b, br := consoletest.Owned(t, console.Run)
	c := newTool(t, "")
	if out, err := c.command("status", b.URL, "--proof", b.Ready().Certificate.Words).Output(); err != nil {
		t.Fatalf("status: %v\n%s", err, out)
	}
	b.HostLists("/etc/gatehouse/lists", control.Problem{File: "office.list", Line: 7, Text: "x\x1b[31m", Reason: "this is not an address"})
	run := func(code int, args ...string) (string, int) {
		t.Helper()
		for name, text := range map[string]string{"code": br.Codes[code], "office.list": "192.0.2.0/24"} {
			if err := os.WriteFile(filepath.Join(c.home, name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := c.command(append(append([]string{"allowlist"}, args...), "--email", "ada@example.org", "--password", "file:password", "--code", "file:code")...)
		cmd.Stderr = nil
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	const where = "files of the host: change them there, in /etc/gatehouse/lists"
	if out, code := run(0, "apply", "office.list", "--keep"); code == 0 || !strings.Contains(out, where) {
		t.Errorf("apply: exit %d\n%s", code, out)
	}
	if out, code := run(1, "apply", "office.list", "--dry-run"); code == 0 || !strings.Contains(out, where) {
		t.Errorf("apply --dry-run: exit %d\n%s", code, out)
	}
	out, code := run(2, "list")
	if code != 0 || !strings.Contains(out, "These lists are files of the host, in /etc/gatehouse/lists.") || !strings.Contains(out, "office.list, line 7: this is not an address") || strings.Contains(out, "\x1b") {
		t.Errorf("list: exit %d\n%q", code, out)
	}
}
