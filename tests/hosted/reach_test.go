package hosted

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/tests/netns"
)

const (
	nasAddress = "198.51.100.10"
	boxInside  = "198.51.100.1"
)

// behind is a box with a machine behind it that nobody else reaches, on which a
// real OpenSSH server runs, and a technician with the tool before it.
type behind struct {
	*lan
	nas  *netns.Host
	home string // of the technician
	key  string // that the server takes, and its print
	host string // fingerprint of the server's key
}

func newBehind(t *testing.T) *behind {
	t.Helper()
	b := &behind{lan: newLAN(t), nas: netns.New(t, "nas"), home: t.TempDir()}
	netns.Connect(t, b.lan.host, "lan1", b.nas, "lan1")
	b.lan.host.Up(t, "lan1", boxInside+"/24")
	b.nas.Up(t, "lan1", nasAddress+"/24")
	b.own()
	if out, code := b.tool("status", boxAddress, "--proof", b.words()); code != 0 {
		t.Fatalf("making the box known: %d\n%s", code, out)
	}
	b.sshd()
	return b
}

// environment is that of the technician's programs.
func (b *behind) environment() []string {
	return []string{"PATH=/usr/bin:/bin:/usr/sbin:/sbin", "HOME=" + b.home, "XDG_CONFIG_HOME=" + b.home + "/config", "TERM=xterm"}
}

// before is a program at the technician's machine.
func (b *behind) before(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = b.environment(), b.home
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// tool runs the tool to its end.
func (b *behind) tool(args ...string) (string, int) {
	b.Helper()
	return b.whole("", b.toolPath(), args...)
}

func (b *behind) toolPath() string {
	b.Helper()
	path, err := filepath.Abs(tool)
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// whole runs a program at the technician's machine to its end.
func (b *behind) whole(stdin, name string, args ...string) (string, int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	cmd := b.before(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	b.machine.Do(b.T, cmd.Start)
	err := cmd.Wait()
	if err != nil && cmd.ProcessState == nil {
		b.Fatal(err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// good is tool for what must work.
func (b *behind) good(args ...string) string {
	b.Helper()
	out, code := b.tool(args...)
	if code != 0 {
		b.Fatalf("gatehouse %s: %d\n%s\n%s", strings.Join(args, " "), code, out, b.output())
	}
	return out
}

// sshd starts an OpenSSH server behind the box, for root with a key.
func (b *behind) sshd() {
	b.Helper()
	dir := b.TempDir()
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)).CombinedOutput(); err != nil {
			b.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	print, err := exec.Command("ssh-keygen", "-l", "-f", filepath.Join(dir, "host.pub")).Output()
	if err != nil {
		b.Fatal(err)
	}
	b.key, b.host = filepath.Join(dir, "user"), strings.Fields(string(print))[1]
	config := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nListenAddress %[2]s\nPidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nPrintMotd no\nPrintLastLog no\nSetEnv SHLVL=2\nSubsystem sftp internal-sftp\n", dir, nasAddress) // so that bash leaves the files of this machine’s root alone
	if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.MkdirAll("/run/sshd", 0o755)); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var log bytes.Buffer
	cmd.Stderr = &log
	b.nas.Do(b.T, cmd.Start)
	b.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with those that serve
		cmd.Wait()
		if b.Failed() {
			b.Logf("sshd:\n%s", &log)
		}
	})
	b.eventually("sshd", func() bool {
		var conn net.Conn
		var err error
		b.nas.Do(b.T, func() error { conn, err = net.DialTimeout("tcp", nasAddress+":22", time.Second); return nil })
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// login signs ann in with the tool, and keeps the session.
func (b *behind) login() {
	b.Helper()
	out := b.good("login", boxAddress, "--email", "ann@example.com", "--password", b.file("password", password), "--code", b.file("code", onetime.Code(b.secret, onetime.Step(time.Now()))))
	if !strings.Contains(out, "Signed in at "+boxAddress) || !strings.Contains(out, "30 minutes") {
		b.Errorf("login says: %s", out)
	}
}

// TestSES5_FirstSession is the README's first session, whole: refusals, then a
// target, commands, OpenSSH and rsync through the tool, a port, web pages.
func TestSES5_FirstSession(t *testing.T) {
	b := newBehind(t)
	if conn, err := b.dialAt(b.machine, nasAddress+":22", time.Second); err == nil {
		conn.Close()
		t.Fatal("the machine behind the box is reached without it: this test could not fail")
	}
	if out, code := b.tool("targets"); code != 3 || !strings.Contains(out, "gatehouse login") {
		t.Errorf("not signed in: %d\n%s", code, out)
	}
	b.login()
	for name, c := range map[string]struct {
		args []string
		want int
		say  string
	}{
		"no such target": {[]string{"connect", "nas", "--stdio"}, 4, "no such target"},
		"its loopback":   {[]string{"target", "add", "evil", "--kind", "tcp", "--address", "127.0.0.1:22"}, 2, "not the address of a host"},
	} {
		if out, code := b.tool(c.args...); code != c.want || !strings.Contains(out, c.say) {
			t.Errorf("%s: %d, want %d and %q\n%s", name, code, c.want, c.say, out)
		}
	}
	b.good("target", "add", "nas", "--kind", "ssh", "--address", nasAddress)
	b.good("target", "add", "Nobody There", "--kind", "tcp", "--address", "198.51.100.77:22")
	b.good("target", "credential", "nas", "--user", "root", "--key", "file:"+b.key)
	if out := b.good("targets"); !strings.Contains(out, "key of root") || !strings.Contains(out, "the box itself") {
		t.Errorf("targets: %s", out)
	}
	b.commands()
	b.openSSH()
	b.port()
	b.pages()
	if out, code := b.tool("logout", boxAddress); code != 0 {
		t.Errorf("logout: %d\n%s", code, out)
	}
	if out, code := b.tool("exec", "nas", "--", "true"); code != 3 || !strings.Contains(out, "gatehouse login") {
		t.Errorf("after logout: %d\n%s", code, out)
	}
}

func (b *behind) dialAt(h *netns.Host, address string, wait time.Duration) (conn net.Conn, err error) {
	h.Do(b.T, func() error { conn, err = net.DialTimeout("tcp", address, wait); return nil })
	return conn, err
}

// commands: exec, with the host key refused, given, and pinned.
func (b *behind) commands() {
	b.Helper()
	other := "SHA256:" + strings.Repeat("A", 43)
	if out, code := b.tool("exec", "nas", "--host-key", other, "--", "touch", b.home+"/done"); code != 7 || !strings.Contains(out, b.host) {
		b.Errorf("another host key: %d, want 7\n%s", code, out)
	}
	if _, err := os.Stat(b.home + "/done"); !errors.Is(err, fs.ErrNotExist) {
		b.Errorf("the command ran at a target with another key (%v)", err)
	}
	out, code := b.whole("typed", b.toolPath(), "exec", "nas", "--host-key", b.host, "--", "tr a-z A-Z; echo oops >&2; exit 42")
	if code != 42 || !strings.Contains(out, "TYPED") || !strings.Contains(out, "oops") {
		b.Errorf("exec: %d\n%s", code, out)
	}
	if out, code := b.tool("exec", "nas", "--", "echo", "$SSH_CONNECTION"); code != 0 || !strings.HasPrefix(out, boxInside+" ") {
		b.Errorf("once it is pinned: %d, the target is reached from %s", code, out)
	}
	b.good("exec", "nas", "--record", "--", "echo this is recorded")
	b.eventually("the recording", func() bool { return strings.Contains(b.good("record", "list", "--json"), `"whole": true`) })
	id := regexp.MustCompile(`"session": "([0-9a-f]{32})"`).FindStringSubmatch(b.good("record", "list", "--json"))[1]
	if out := b.good("record", "export", id[:6]); !strings.Contains(out, `"version":2`) || !strings.Contains(out, "this is recorded") {
		b.Errorf("the recording: %s", out)
	}
	if out := b.good("record", "play", id, "--speed", "100"); !strings.Contains(out, "this is recorded\r\n") {
		b.Errorf("played: %q", out)
	}
	if out, code := b.whole("help\nexit\n", b.toolPath(), "connect", "box"); code != 0 || !strings.Contains(out, "status") {
		b.Errorf("the console of the box: %d\n%s", code, out)
	}
	if out, code := b.tool("exec", "nobody-there", "--", "true"); code != 1 && code != 3 {
		b.Errorf("a command at a plain port: %d\n%s", code, out)
	}
}

// openSSH: plain ssh, with its own key and host key check, and rsync.
func (b *behind) openSSH() {
	b.Helper()
	config := b.good("ssh-config", "--box", boxAddress)
	if !strings.HasPrefix(config, "Host *.gatehouse\n  ProxyCommand ") {
		b.Fatalf("ssh-config: %s", config)
	}
	public, err := os.ReadFile(filepath.Join(filepath.Dir(b.key), "host.pub"))
	if err != nil {
		b.Fatal(err)
	}
	known, file := filepath.Join(b.home, "known_hosts"), filepath.Join(b.home, "ssh_config")
	err = errors.Join(os.WriteFile(known, append([]byte("nas.gatehouse "), public...), 0o600),
		os.WriteFile(file, fmt.Appendf(nil, "%s  IdentityFile %s\n  UserKnownHostsFile %s\n  StrictHostKeyChecking yes\n  BatchMode yes\n", config, b.key, known), 0o600))
	if err != nil {
		b.Fatal(err)
	}
	if out, code := b.whole("", "ssh", "-F", file, "root@printer.gatehouse", "true"); code != 255 || !strings.Contains(out, "no such target") {
		b.Errorf("ssh to a target that is not: %d\n%s", code, out)
	}
	if out, code := b.whole("", "ssh", "-F", file, "root@nobody-there.gatehouse", "true"); code != 255 || !strings.Contains(out, "198.51.100.77") {
		b.Errorf("ssh to a target that does not answer: %d\n%s", code, out)
	}
	if out, code := b.whole("from here\n", "ssh", "-F", file, "root@nas.gatehouse", "cat; echo $SSH_CONNECTION; exit 5"); code != 5 || !strings.HasPrefix(out, "from here\n"+boxInside+" ") || strings.Count(out, "\n") != 2 {
		b.Errorf("ssh: %d\n%s", code, out)
	}
	from, to := filepath.Join(b.home, "tree"), filepath.Join(b.home, "copy")
	want := map[string][sha256.Size]byte{}
	for i := range 40 {
		name := fmt.Sprintf("a/b%d/file %d", i%5, i)
		text := bytes.Repeat([]byte(fmt.Sprintf("%d of it ", i)), 1+i*i*40)
		want[name] = sha256.Sum256(text)
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(from, name)), 0o755), os.WriteFile(filepath.Join(from, name), text, 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	if out, code := b.whole("", "rsync", "-a", "-e", "ssh -F "+file, from+"/", "root@nas.gatehouse:"+to+"/"); code != 0 {
		b.Fatalf("rsync: %d\n%s", code, out)
	}
	b.rsyncWithoutAGateway(file)
	// ssh has ended its ProxyCommand, and that has ended the session: what it
	// leaves would be open at the target until the agent gives up waiting.
	b.eventually("the end of the sessions of ssh and rsync", func() bool { return !strings.Contains(b.good("sessions", "list"), "nas") })
	for name, sum := range want {
		if text, err := os.ReadFile(filepath.Join(to, name)); err != nil || sha256.Sum256(text) != sum {
			b.Errorf("%s came as another: %v", name, err)
		}
	}
}

// rsyncWithoutAGateway copies while the gateway is killed twice: neither ssh nor
// rsync notices.
func (b *behind) rsyncWithoutAGateway(config string) {
	b.Helper()
	from, to := filepath.Join(b.home, "large"), filepath.Join(b.home, "large copy")
	text := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	if err := os.WriteFile(from, text, 0o644); err != nil {
		b.Fatal(err)
	}
	// A way without the gateway would make it none of its business.
	ways, err := os.ReadFile(config)
	if err == nil {
		config += "_relay"
		err = os.WriteFile(config, bytes.Replace(ways, []byte(" --stdio"), []byte(" --stdio --no-direct"), 1), 0o600)
	}
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(b.Context(), 2*patience)
	defer cancel()
	cmd := b.before(ctx, "rsync", "--whole-file", "--inplace", "--protect-args", "--bwlimit=4m", "-e", "ssh -F "+config, from, "root@nas.gatehouse:"+to)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	b.machine.Do(b.T, cmd.Start)
	arrived := func() int64 {
		if i, err := os.Stat(to); err == nil {
			return i.Size()
		}
		return 0
	}
	for _, at := range []int64{2 << 20, 8 << 20} {
		b.eventually("a part of the copy", func() bool { return arrived() >= at })
		if arrived() == int64(len(text)) {
			b.Error("the copy was there before the gateway was killed: this test could not fail")
		}
		b.killRole("gateway")
	}
	if err := cmd.Wait(); err != nil {
		b.Errorf("rsync: %v\n%s\n%s", err, &out, b.output())
	}
	if got, err := os.ReadFile(to); err != nil || sha256.Sum256(got) != sha256.Sum256(text) {
		b.Errorf("it came as another: %d bytes of %d, %v", len(got), len(text), err)
	}
}

// running is a program that prints a line when it is ready.
func (b *behind) running(args ...string) (line string, stop func() int) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 2*patience)
	b.Cleanup(cancel)
	cmd := b.before(ctx, b.toolPath(), args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	var diag bytes.Buffer
	cmd.Stderr = &diag
	b.machine.Do(b.T, cmd.Start)
	buf := make([]byte, 4096)
	n, err := out.Read(buf)
	if err != nil {
		cmd.Wait()
		b.Fatalf("gatehouse %s: %v\n%s\n%s", strings.Join(args, " "), err, &diag, b.output())
	}
	return strings.TrimSpace(string(buf[:n])), func() int {
		cmd.Process.Signal(os.Interrupt)
		io.Copy(io.Discard, out)
		cmd.Wait()
		return cmd.ProcessState.ExitCode()
	}
}

// port: a forwarded one, with many connections at once.
func (b *behind) port() {
	b.Helper()
	line, stop := b.running("connect", "nas", "--forward", "0")
	at, _, ok := strings.Cut(line, " leads to nas, "+nasAddress+":22")
	if !ok {
		b.Fatalf("--forward says %q", line)
	}
	for range 5 {
		conn, err := b.dialAt(b.machine, at, patience)
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		hello := make([]byte, 7)
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "SSH-2.0" {
			b.Errorf("the forwarded port says %q, %v", hello, err)
		}
	}
	if out := b.good("sessions", "list", "--json"); strings.Count(out, `"state": "live"`) != 1 || !strings.Contains(out, `"forward"`) {
		b.Errorf("sessions: %s", out)
	}
	if code := stop(); code != 130 {
		b.Errorf("interrupted: %d", code)
	}
	if conn, err := b.dialAt(b.machine, at, time.Second); err == nil {
		conn.Close()
		b.Error("the port is open after the end")
	}
}

var address = regexp.MustCompile(`^http://intranet-[a-z2-7]{8}\.localhost:\d+/[a-z2-7]{32}$`)

// pages: those of a small web server behind the box, for one browser.
func (b *behind) pages() {
	b.Helper()
	var l net.Listener
	b.nas.Do(b.T, func() (err error) { l, err = net.Listen("tcp", nasAddress+":8080"); return err })
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, "http://"+r.Host+"/home", http.StatusFound)
			return
		}
		fmt.Fprintf(w, "%s at %s from %s", r.URL.Path, r.Host, r.RemoteAddr)
	})}
	go server.Serve(l)
	b.Cleanup(func() { server.Close() })
	b.good("target", "add", "Intranet", "--kind", "http", "--address", nasAddress+":8080")
	line, stop := b.running("open", "intranet", "--no-browser")
	if !address.MatchString(line) {
		b.Fatalf("open prints %q", line)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	port := line[strings.LastIndex(line[:len(line)-33], ":")+1 : len(line)-33]
	dial := func(context.Context, string, string) (net.Conn, error) {
		return b.dialAt(b.machine, "127.0.0.1:"+port, patience)
	}
	get := func(c *http.Client, url string) (int, string) {
		r, err := c.Get(url)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		if err != nil {
			b.Fatal(err)
		}
		return r.StatusCode, string(text)
	}
	mine := &http.Client{Jar: jar, Timeout: patience, Transport: &http.Transport{DialContext: dial}}
	other := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial}}
	want := "/home at " + nasAddress + ":8080 from " + boxInside
	if code, text := get(mine, line); code != 200 || !strings.HasPrefix(text, want) {
		b.Errorf("the page: %d %q, want %q", code, text, want)
	}
	if code, text := get(other, line); code != 403 || strings.Contains(text, nasAddress) {
		b.Errorf("another browser: %d %q", code, text)
	}
	if code := stop(); code != 130 {
		b.Errorf("interrupted: %d", code)
	}
}

// TestSES4_TerminalInATerminal has a person's terminal: raw while it lasts and
// as before afterwards, with the question about the host key, the size, and
// the way out.
func TestSES4_TerminalInATerminal(t *testing.T) {
	b := newBehind(t)
	b.login()
	b.good("target", "add", "nas", "--kind", "ssh", "--address", nasAddress)
	b.good("target", "credential", "nas", "--user", "root", "--key", "file:"+b.key)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	// script gives it a terminal, as a person has one.
	cmd := b.before(ctx, "script", "-qfec", "stty rows 31 cols 97; stty -g; "+b.toolPath()+" connect nas; echo code=$?; stty -g", "/dev/null")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	screen := &screen{t: t, more: make(chan struct{}, 1)}
	cmd.Stdout, cmd.Stderr = screen, screen
	b.machine.Do(t, cmd.Start)
	defer cmd.Wait()
	screen.until("Type yes, no or the fingerprint")
	if !strings.Contains(screen.text(), b.host) {
		t.Errorf("the question does not show %s:\n%s", b.host, screen.text())
	}
	io.WriteString(in, "yes\n")
	screen.until("# ")
	io.WriteString(in, "stty size; echo to$((40+2)) \x1b; tty\r")
	screen.until("31 97")
	screen.until("to42")
	io.WriteString(in, "sleep 1000\r")
	screen.until("sleep 1000")
	io.WriteString(in, "\x03") // for the target, not for the tool
	io.WriteString(in, "echo still $((40+3))\r")
	screen.until("still 43")
	io.WriteString(in, "\r~.")
	screen.until("Left nas.")
	screen.until("code=0")
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	modes := regexp.MustCompile(`(?m)^[0-9a-f]+(?::[0-9a-f]+){10,}\r?$`).FindAllString(screen.text(), -1)
	if len(modes) != 2 || strings.TrimSpace(modes[0]) != strings.TrimSpace(modes[1]) {
		t.Errorf("the terminal was not given back as it was: %q", modes)
	}
	// Pinned now: nobody is asked, and a shell's own end is the program's.
	out, code := b.whole("exit 9\n", b.toolPath(), "connect", "nas")
	if code != 9 || strings.Contains(out, "fingerprint") {
		t.Errorf("the shell's end: %d\n%s", code, out)
	}
}

// screen is what a terminal has shown.
type screen struct {
	t    *testing.T
	more chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
	seen int
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	n, err := s.buf.Write(p)
	s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return n, err
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// until waits for a text after the last one that was waited for.
func (s *screen) until(want string) {
	s.t.Helper()
	end := time.After(patience)
	for {
		if i := strings.Index(s.text()[s.seen:], want); i >= 0 {
			s.seen += i + len(want)
			return
		}
		select {
		case <-s.more:
		case <-end:
			s.t.Fatalf("waited in vain for %q; the screen:\n%q", want, s.text())
		}
	}
}
