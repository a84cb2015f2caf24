package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
)

func TestSES5_ConnectRefusals(t *testing.T) {
	denied := func(_ wire.Open, st wire.Stream) {
		defer st.Close()
		wire.WriteRefusal(st, wire.Refuse(wire.Denied, "this session has no right to it"))
	}
	h := newHubBox(t, nas, denied)
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"a public address": {[]string{"connect", "nas-s-d", "--forward", "0.0.0.0:22"}, exitUsage, "loopback"},
		"another host":     {[]string{"connect", "nas-s-d", "--forward", "8080:10.0.0.1:80"}, exitUsage, "loopback"},
		"no port":          {[]string{"connect", "nas-s-d", "--forward", "ssh"}, exitUsage, "0 to 65535"},
		"both":             {[]string{"connect", "nas-s-d", "--forward", "0", "--stdio"}, exitUsage, "do not go together"},
		"stdin twice":      {[]string{"connect", "nas-s-d", "--stdio", "--email", "a", "--password", "-", "--code", "file:code"}, exitUsage, "belongs to the target"},
		"nothing to run":   {[]string{"exec", "nas-s-d"}, exitUsage, "requires at least 2"},
	} {
		if code, _, diag := h.run(nil, c.args...); code != c.want || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q, want %d and %q", name, code, diag, c.want, c.say)
		}
	}
	h.login()
	for name, c := range map[string]struct {
		args []string
		want exitCode
		say  string
	}{
		"no such target":    {[]string{"connect", "printer.gatehouse", "--stdio"}, exitNotFound, "no target printer"},
		"denied, stdio":     {[]string{"connect", "nas-s-d.gatehouse", "--stdio"}, exitDenied, "no right to it"},
		"denied, terminal":  {[]string{"connect", "NAS Süd"}, exitDenied, "no right to it"},
		"denied, exec":      {[]string{"exec", "7", "--", "id"}, exitDenied, "no right to it"},
		"pages of a server": {[]string{"open", "7"}, exitUsage, "no web pages"},
	} {
		if code, out, diag := h.run(strings.NewReader(""), c.args...); code != c.want || !strings.Contains(diag, c.say) || out != "" {
			t.Errorf("%s: %d %q %q, want %d and %q", name, code, out, diag, c.want, c.say)
		}
	}
	for _, q := range h.site.Asked() {
		if len(q.Functions) == 0 || len(q.Functions) > 2 {
			t.Errorf("asked for more than is needed: %+v", q)
		}
	}
	h.site.Refuse(errors.New("You have no right to this target."))
	if code, _, diag := h.run(strings.NewReader(""), "connect", "7"); code != exitDenied || !strings.Contains(diag, "no right to this target") {
		t.Errorf("%d %s", code, diag)
	}
}

func TestSES5_StdioPassesBothEnds(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	text := strings.Repeat("every byte of it\n", 20000)
	code, out, diag := h.run(strings.NewReader(text), "connect", "nas-s-d.gatehouse", "--stdio")
	if code != 0 || out != strings.ToUpper(text) || diag != "" {
		t.Errorf("%d, %d bytes back of %d, %s", code, len(out), len(text), diag)
	}
}

// The console hears that its person is at work while something is sent, and
// only then: who leaves a terminal open is signed out as on a page.
func TestSES10_TheConsoleHearsOfWork(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	b, _, err := findBox(t.Context(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	err = b.as(t.Context(), signIn{}, nil, func(ctx context.Context) error {
		s, err := begin(ctx, b, technician.Config{Hub: hub{b, func(*api.Notice) {}}, Dial: (&net.Dialer{}).DialContext, Near: b.address, Patience: patience}, api.Ask{Target: "7"})
		if err != nil {
			return err
		}
		defer s.Close("the test is over")
		h.used.Store(0)
		defer alive(ctx, b, s, 10*time.Millisecond)()
		time.Sleep(100 * time.Millisecond)
		if n := h.used.Load(); n != 0 {
			t.Errorf("told %d times of nothing", n)
		}
		for h.used.Load() < 2 && ctx.Err() == nil {
			st, _, err := s.Open(ctx, wire.Open{Do: wire.Forward})
			if err != nil {
				return err
			}
			st.Close()
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestSES9_RecordAsksForTheRight(t *testing.T) {
	h := newHubBox(t, nas, shell)
	h.login()
	if code, _, diag := h.run(strings.NewReader(""), "exec", "7", "--record", "--", "id"); code != 0 {
		t.Errorf("%d %s", code, diag)
	}
	if q := h.site.Asked(); !q[0].Record || fmt.Sprint(q[0].Functions) != "[scripts record]" && fmt.Sprint(q[0].Functions) != "[record scripts]" {
		t.Errorf("asked for %+v", q[0])
	}
}

func TestSES5_ForwardedPort(t *testing.T) {
	h := newHubBox(t, nas, upper)
	h.login()
	line, stop := outPipe(t, h, "connect", "7", "--forward", "0", "--forward", "127.0.0.2:0")
	address := regexp.MustCompile(`(?m)^(127\.0\.0\.[12]:\d+) leads to NAS Süd, 192\.0\.2\.5:22$`)
	var found []string
	for len(found) < 2 {
		for _, m := range address.FindAllStringSubmatch(line(), -1) {
			found = append(found, m[1])
		}
	}
	for _, at := range found {
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "HELLO" {
			t.Errorf("%q, %v", b, err)
		}
		c.Close()
	}
	if code, diag := stop(); code != exitInterrupted {
		t.Errorf("%d %s", code, diag)
	}
	for _, at := range found {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			t.Errorf("%s is open after the end", at)
		}
	}
	line, stop = outPipe(t, h, "connect", "7", "--forward", "0", "--json")
	var shown []forwarded
	if err := json.Unmarshal([]byte(line()), &shown); err != nil || len(shown) != 1 || shown[0].Target != "NAS Süd" {
		t.Errorf("%+v, %v", shown, err)
	}
	h.site.End("ended by ada@example.org")
	stop()
}

func TestSES4_ExecPassesOnWhatTheCommandDoes(t *testing.T) {
	h := newHubBox(t, nas, shell)
	h.login()
	for name, c := range map[string]struct {
		args []string
		want exitCode
		out  string
		say  string
	}{
		"success":             {[]string{"exec", "7", "--", "tr", "a-z", "A-Z"}, 0, "exec 0x0 tr a-z A-Z\nTYPED", "oops\n"},
		"its status":          {[]string{"exec", "7", "--", "exit", "42"}, 42, "exec 0x0 exit 42\nTYPED", "oops\n"},
		"a status too high":   {[]string{"exec", "7", "--", "exit", "300"}, 255, "exec 0x0 exit 300\nTYPED", "oops\n"},
		"ended at the box":    {[]string{"exec", "7", "--", "reason x"}, exitFailure, "", "idle for 15 minutes"},
		"credential":          {[]string{"exec", "7", "--", "credential"}, exitDenied, "", "does not take the credential"},
		"the right host key":  {[]string{"exec", "7", "--host-key", "SHA256:right", "--", "new-key"}, 0, "exec 0x0 new-key\nTYPED", "oops\n"},
		"another host key":    {[]string{"exec", "7", "--host-key", "SHA256:wrong", "--", "new-key"}, exitVerification, "", "SHA256:right, and not the one of --host-key"},
		"terminal, no screen": {[]string{"connect", "7"}, 0, "terminal 80x24 \nTYPED", "recorded"},
	} {
		code, out, diag := h.run(strings.NewReader("typed"), c.args...)
		if code != c.want || out != c.out || !strings.Contains(diag, c.say) {
			t.Errorf("%s: %d %q %q, want %d %q %q", name, code, out, diag, c.want, c.out, c.say)
		}
	}
}

func TestSES4_EscapeAtTheBeginningOfALine(t *testing.T) {
	for in, want := range map[string]string{
		"~.":             "|",
		"abc~.":          "abc~.",
		"abc\r~.def":     "abc\r|",
		"a\n~.":          "a\n|",
		"~~.":            "~.",
		"~x\r~~\r":       "~x\r~\r",
		"x\r~":           "x\r",
		"ls ~/.ssh\r\n~": "ls ~/.ssh\r\n",
	} {
		for _, size := range []int{1, 100} { // as typed, and as pasted
			e, got := &escape{start: true}, ""
			for part := range slices.Chunk([]byte(in), size) {
				out, leave := e.filter(part)
				got += string(out)
				if leave {
					got += "|"
					break
				}
			}
			if got != want {
				t.Errorf("%q by %d: %q, want %q", in, size, got, want)
			}
		}
	}
}

func TestSES4_HostKeyIsAskedFor(t *testing.T) {
	q := wire.Question{Target: "nas (192.0.2.5:22)", Algorithm: "ssh-ed25519", Fingerprint: "SHA256:right"}
	for typed, want := range map[string]bool{
		"yes\n": true, "SHA256:right\n": true, "no\n": false, "": false, "\n\n\n": false, "y\nyes\n": true, "SHA256:wrong\nno\n": false, "yes": false,
		strings.Repeat("y", 5000): false,
	} {
		in := make(chan []byte, 10)
		for _, part := range strings.SplitAfter(typed, "\n") {
			in <- []byte(part)
		}
		close(in)
		var out bytes.Buffer
		if got := askHostKey(&out, q, in); got != want || !strings.Contains(out.String(), "SHA256:right") {
			t.Errorf("%.20q: %v, want %v\n%s", typed, got, want, &out)
		}
	}
}

// The certificate of an https target is pinned, and another one refused.
func TestSES5_OpenPinsTheCertificate(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "page of "+r.Host) })
	var web *httptest.Server
	start := func() {
		web = httptest.NewUnstartedServer(page)
		web.Config.ErrorLog = log.New(io.Discard, "", 0)
		web.TLS = nil
		c := certtest.Self(t)
		web.StartTLS()
		web.TLS.Certificates[0] = c
		t.Cleanup(web.Close)
	}
	start()
	h := newHubBox(t, targets.Target{Name: "NAS Süd", Kind: targets.HTTPS, Host: "nas.lan", Port: 5001}, func(o wire.Open, st wire.Stream) {
		defer st.Close()
		c, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil || o.Do != wire.Web || wire.WriteReply(st, wire.Reply{}) != nil {
			return
		}
		defer c.Close()
		go func() { io.Copy(c, st); c.(*net.TCPConn).CloseWrite() }()
		io.Copy(st, c)
	})
	h.login()
	visit := func(args ...string) (string, exitCode, string) {
		line, stop := outPipe(t, h, append([]string{"open", "7", "--no-browser"}, args...)...)
		first := strings.TrimSpace(line())
		b := browser(t)
		body := ""
		if strings.HasPrefix(first, "http://nas-s-d-") {
			resp, err := b.Get(first)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			all, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = string(all)
		}
		code, diag := stop()
		return body, code, diag
	}
	if body, code, diag := visit(); body != "page of nas.lan:5001" || code != exitInterrupted || !strings.Contains(diag, "is pinned from now on") {
		t.Fatalf("%q %d %s", body, code, diag)
	}
	if body, _, diag := visit(); body != "page of nas.lan:5001" || strings.Contains(diag, "pinned from now on") {
		t.Errorf("again: %q %s", body, diag)
	}
	web.Close()
	start()
	if code, out, diag := h.run(nil, "open", "7", "--no-browser"); code != exitVerification || out != "" || !strings.Contains(diag, "another certificate") {
		t.Errorf("another certificate: %d %q %s", code, out, diag)
	}
	if body, _, diag := visit("--forget-certificate"); body != "page of nas.lan:5001" || !strings.Contains(diag, "is pinned from now on") {
		t.Errorf("the new one: %q %s", body, diag)
	}
}
