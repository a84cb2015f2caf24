package hosted

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/setup/proof"
)

// TestACC1_ManInTheMiddleIsRefused puts a relay with a certificate of its own
// between the tool and the box. It passes on everything, page and all, and
// still learns nothing that it could claim the box with.
func TestACC1_ManInTheMiddleIsRefused(t *testing.T) {
	b := newBox(t)
	s := b.start("unclaimed")
	var ln net.Listener
	b.host.Do(t, func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.1:7443")
		return err
	})
	defer ln.Close()
	mine := tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{certtest.Self(t, certtest.Names("127.0.0.1"))}, NextProtos: []string{"http/1.1"}})
	go func() {
		for {
			conn, err := mine.Accept()
			if err != nil {
				return
			}
			go b.relay(conn)
		}
	}()
	args := func(address string) []string {
		return []string{"setup", address, "--code", b.file("code", s.code), "--name", "Ann", "--email", "ann@example.com", "--password", b.file("password", password), "--no-browser"}
	}
	// Without the proof words the box refuses what was proved to someone else
	// (3, denied); with them the tool sees it before it says anything (7).
	out, code := b.run("", args("127.0.0.1:7443")...)
	if code != 3 {
		t.Errorf("through a man in the middle the tool ended with %d, want 3:\n%s", code, out)
	}
	if out, code := b.run("", append(args("127.0.0.1:7443"), "--proof", b.words())...); code != 7 {
		t.Errorf("with the words of the console it ended with %d, want 7:\n%s", code, out)
	}
	if got := b.now(); got.state != "unclaimed" {
		t.Errorf("the box is %s", got.state)
	}
	// The code was not used up by it: the honest way still works.
	if out, code := b.run("", args("127.0.0.1")...); code != 0 {
		t.Fatalf("without the man in the middle: exit %d\n%s", code, out)
	}
	b.await("ready")
}

// words are the proof words on the console, made of the box's real key.
func (b *box) words() string {
	b.Helper()
	return proof.Words(sha256.Sum256(b.certificate("127.0.0.1:443").RawSubjectPublicKeyInfo))
}

// relay passes on what the tool says and what the box answers, over two
// channels, as someone in the middle can.
func (b *box) relay(conn net.Conn) {
	defer conn.Close()
	raw, err := b.dial(b.Context(), "tcp", "127.0.0.1:443")
	if err != nil {
		return
	}
	box := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	defer box.Close()
	go func() {
		io.Copy(box, conn)
		box.Close()
	}()
	io.Copy(conn, box)
}

// raw sends bytes as they are and gives the status of the answer: clients of
// the standard library would clean the path first.
func (b *box) raw(request string) (int, error) {
	conn, err := b.dial(b.Context(), "tcp", "127.0.0.1:443")
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	r.Body.Close()
	return r.StatusCode, nil
}

// variants are ways in which one path has been written to slip past a check.
func variants(path string) []string {
	last := path[strings.LastIndexByte(path, '/'):]
	return []string{
		path, path + "/", path + "//", "/" + path, "//" + path, path + "/.", path + "/x/..", "/x/.." + path, "/." + path,
		"/assets/.." + path, "/assets/../" + path[1:], "/sign-in/.." + path, path + "?x=1", path + "?", path + ";x", path + ".aspx", path + ".php",
		path + "%20", path + "%00", path + "%2f", path + "%5c", path + "/%2e", path + "/%2e%2e" + path, strings.ToUpper(path), strings.Replace(path, "s", "S", 1),
		strings.Replace(path, "/", "/%2e/", 1), strings.Replace(path, "e", "%65", 1), strings.Replace(path, "s", "%73", 1), strings.Replace(path, "s", "%2573", 1),
		strings.Replace(path, "/", "%2f", 1), strings.Replace(path, "/", "\\", 1), "/%2e%2e" + path, "/..%2f" + path[1:], "/..;" + path, "/sign-in/..;" + path,
		path + last, "/index.html" + path, "http://127.0.0.1" + path, "https://127.0.0.1" + path, path + "#x", path + "/index", path + "..", path + "*",
	}
}

func TestACC1_SetupIsGoneOnTheWire(t *testing.T) {
	b := newBox(t)
	b.start("unclaimed")
	routes := []string{"/setup", "/api/v1/setup", "/api/v1/setup/proof", "/api/v1/setup/claim"}
	for _, r := range routes[:2] {
		if code, err := b.raw("GET " + r + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil || code != 200 {
			t.Fatalf("before the claim %s answers %d, %v: this test could not fail", r, code, err)
		}
	}
	b.claim()
	count, refused := 0, map[int]int{}
	for _, route := range routes {
		for _, path := range variants(route) {
			for _, method := range []string{"GET", "POST", "HEAD", "PUT", "OPTIONS"} {
				code, err := b.raw(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://127.0.0.1\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 0\r\n\r\n", method, path))
				if err != nil {
					t.Fatalf("%s %q: %v", method, path, err)
				}
				count++
				refused[code]++
				// 400: not a request at all. 405 would tell that there is something.
				if code != http.StatusNotFound && code != http.StatusBadRequest {
					t.Errorf("%s %q answers %d, want 404", method, path, code)
				}
			}
		}
	}
	t.Logf("%d requests, answers %v", count, refused)
	if count < 800 || refused[404] < 800 {
		t.Errorf("%d requests, %v: too few to mean anything", count, refused)
	}
	b.signIn(b.client()) // people are unchanged
}

// TestACC1_DataFromBeforeTheClaimIsLocked puts the database back to a copy from
// before the claim, as someone who holds the disk can.
func TestACC1_DataFromBeforeTheClaimIsLocked(t *testing.T) {
	b := newBox(t)
	b.start("unclaimed")
	b.stop()
	before := filepath.Join(t.TempDir(), "before")
	copyTree(t, filepath.Join(b.state, "console"), before)
	b.start("unclaimed")
	b.claim()
	b.stop()
	after := filepath.Join(t.TempDir(), "after")
	copyTree(t, filepath.Join(b.state, "console"), after)

	swap := func(from string) {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(b.state, "console")); err != nil {
			t.Fatal(err)
		}
		copyTree(t, from, filepath.Join(b.state, "console"))
	}
	swap(before)
	s := b.start("locked")
	if s.code != "-" {
		t.Error("a locked box shows a claim code")
	}
	for _, route := range []string{"/setup", "/api/v1/setup"} {
		if code, _ := b.get(b.client(), route); code != http.StatusNotFound {
			t.Errorf("%s answers %d on a locked box", route, code)
		}
	}
	if _, body := b.get(b.client(), "/"); !strings.Contains(body, "owner") {
		t.Errorf("the page does not say why:\n%s", body)
	}
	b.stop()
	swap(after)
	b.start("ready")
	b.signIn(b.client())
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copying %s: %v: %s", from, err, bytes.TrimSpace(out))
	}
}
