package hosted

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
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
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/control"
)

const pebbleAddress = friend + ":14000"

// pebble runs Pebble, the test server of Let's Encrypt, on the machine beside
// the box: it looks at ports 80 and 443 over the wire as the real one does.
func (l *lan) pebble() (directory, roots string) {
	l.Helper()
	dir := l.TempDir()
	exe := filepath.Join(dir, "pebble")
	build := exec.CommandContext(l.Context(), "go", "build", "-o", exe, "./pebble")
	if out, err := build.CombinedOutput(); err != nil {
		l.Fatalf("building Pebble: %v\n%s", err, out)
	}
	chain, key := certtest.PEM(l.T, certtest.Self(l.T, certtest.Names(friend)))
	for name, b := range map[string][]byte{"chain.pem": chain, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			l.Fatal(err)
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(exe, pebbleAddress, filepath.Join(dir, "chain.pem"), filepath.Join(dir, "key.pem"))
	cmd.Stdout, cmd.Stderr = &said, &said
	l.machine.Do(l.T, cmd.Start)
	l.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if l.Failed() {
			l.Logf("Pebble said:\n%s", said.String())
		}
	})
	l.eventually("Pebble", func() bool {
		var err error
		l.machine.Do(l.T, func() error {
			var c net.Conn
			if c, err = net.DialTimeout("tcp", pebbleAddress, time.Second); err == nil {
				c.Close()
			}
			return nil
		})
		return err == nil
	})
	return "https://" + pebbleAddress + "/dir", string(chain)
}

// sees is the certificate under a server name, "" as browsers ask for an address.
func (l *lan) sees(name string) *x509.Certificate {
	l.Helper()
	raw, err := l.dialFrom(stranger, patience)
	if err != nil {
		l.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: name})
	if err := c.HandshakeContext(l.Context()); err != nil {
		l.Fatal(err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

func hash(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":")
}

func (l *lan) certificates() (v keeper.View) {
	l.Helper()
	code, text := l.open(l.from(stranger), "/api/v1/certificates")
	if err := json.Unmarshal([]byte(text), &v); code != 200 || err != nil {
		l.Fatalf("%d %v: %s", code, err, text)
	}
	return v
}

// ask does one of the verbs of the API.
func (l *lan) ask(verb string, question any) {
	l.Helper()
	if code, text := l.api(l.from(stranger), "/api/v1/certificates/"+verb, question, nil); code != 200 {
		l.Fatalf("%s: %d %s\n%s", verb, code, text, l.output())
	}
}

// printed says that the line for automation names what a browser sees.
func (l *lan) printed() {
	l.Helper()
	l.eventually("the console to say what browsers see", func() bool {
		return l.now().fingerprint == hash(l.sees("")) && strings.Contains(l.now().url, boxAddress)
	})
}

// lists puts who may come in in force for good, asked for from an address that stays in.
func (l *lan) lists(enabled bool, text string) {
	l.Helper()
	var r control.ListsReport
	document := map[string]any{"enabled": enabled, "lists": []list{office(text)}}
	if code, said := l.api(l.from(stranger), "/api/v1/allowlists/try", map[string]any{"document": document}, &r); code != 200 || r.Candidate == nil {
		l.Fatalf("%d %s", code, said)
	}
	if code, said := l.api(l.from(stranger), "/api/v1/allowlists/keep", map[string]string{"id": r.Candidate.ID}, nil); code != 200 {
		l.Fatalf("%d %s", code, said)
	}
}

// TestNET10_ACMEOverTheWire has Pebble look at the real gateway and console:
// issued by both challenges, closed out by a list, renewed, revoked.
func TestNET10_ACMEOverTheWire(t *testing.T) {
	l := newLAN(t)
	l.own()
	directory, roots := l.pebble()
	l.printed()
	identity := hash(l.sees(""))
	use := func(challenge string) {
		l.ask("use", keeper.Choice{Source: keeper.ACME, ACME: keeper.ACMESettings{Directory: directory, Roots: roots, Names: []string{boxAddress}, Challenge: challenge, Agreed: true}})
	}
	for _, challenge := range []string{"http-01", "tls-alpn-01"} {
		use(challenge)
		if challenge == "tls-alpn-01" {
			l.ask("renew", struct{}{})
		}
		l.eventually("a certificate by "+challenge, func() bool {
			v := l.certificates()
			if v.Trouble.Text != "" {
				t.Fatal(v.Trouble.Text)
			}
			return v.Serving && !v.Busy
		})
		if c := l.sees(""); !strings.Contains(c.Issuer.CommonName, "Pebble") || c.VerifyHostname(boxAddress) != nil {
			t.Errorf("%s: %s is shown", challenge, c.Issuer)
		}
		l.printed()
	}
	// Who pinned the box at the claim still finds it.
	if out, code := l.run("", "status", "127.0.0.1"); code != 0 || !strings.Contains(out, "ready") {
		t.Errorf("the tool that pinned the box: %d %s", code, out)
	}
	use("http-01")
	l.lists(true, stranger+"\n")
	last := hash(l.sees(""))
	l.ask("renew", struct{}{})
	l.eventually("the failure", func() bool { return l.certificates().Trouble.Failures > 0 })
	for _, want := range []string{"could not reach port 80 of " + boxAddress, "allowlists are on"} {
		if v := l.certificates(); !strings.Contains(v.Trouble.Text, want) || !v.Serving {
			t.Errorf("%q is not in %q", want, v.Trouble.Text)
		}
	}
	if hash(l.sees("")) != last {
		t.Error("a renewal that failed took the certificate away")
	}
	l.lists(false, stranger+"\n")
	l.ask("renew", struct{}{})
	l.eventually("the renewal", func() bool { return hash(l.sees("")) != last && l.certificates().Trouble.Text == "" })
	l.ask("revoke", struct{}{})
	if hash(l.sees("")) != identity {
		t.Error("the revoked certificate is served")
	}
	l.printed()
	// What port 80 says to those who ask for no challenge.
	var resp *http.Response
	l.machine.Do(t, func() (err error) {
		c := &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			l.machine.Do(t, func() error { conn, err = new(net.Dialer).DialContext(ctx, network, address); return err })
			return conn, err
		}}}
		resp, err = c.Get("http://" + boxAddress + "/.well-known/acme-challenge/LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0")
		return err
	})
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 404 || strings.Contains(string(b), "LoqX") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
}

// TestNET10_CertificateFilesHosted has the operator's files served, changed and broken.
func TestNET10_CertificateFilesHosted(t *testing.T) {
	l := newLAN(t)
	dir := t.TempDir()
	put := func(name string, b []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", b, 0o600); err != nil { // the console itself may not read it
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	chain, key := certtest.PEM(t, certtest.Self(t, certtest.Names(boxAddress, "gate.example.net"), certtest.Until(time.Now().Add(60*24*time.Hour))))
	put("chain.pem", chain)
	put("key.pem", key)
	l.args = append(l.args, "--certificate", filepath.Join(dir, "chain.pem"), "--certificate-key", filepath.Join(dir, "key.pem"))
	l.own()
	block, _ := pem.Decode(chain)
	served := func(der []byte) func() bool { return func() bool { return bytes.Equal(l.sees("").Raw, der) } }
	l.eventually("the file's certificate", served(block.Bytes))
	l.printed()
	// Its name is ours now, others are not.
	for name, want := range map[string]int{"gate.example.net": 200, "evil.example": 421} {
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+boxAddress+"/api/v1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = name
		resp, err := l.from(stranger).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, want)
		}
	}
	put("chain.pem", []byte("not a certificate"))
	l.eventually("the refusal", func() bool { return strings.Contains(l.certificates().Problem, "no certificate in the chain") })
	if !served(block.Bytes)() {
		t.Error("the last good one did not stay")
	}
	chain, key = certtest.PEM(t, certtest.Self(t, certtest.Names(boxAddress), certtest.Until(time.Now().Add(90*24*time.Hour))))
	put("chain.pem", chain)
	put("key.pem", key)
	next, _ := pem.Decode(chain)
	l.eventually("the renewed files", served(next.Bytes))
}
