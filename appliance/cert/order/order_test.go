package order

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// liar is an ACME server that says what the test wants.
type liar struct {
	*httptest.Server
	t       *testing.T
	csr     *x509.CertificateRequest
	lies    map[string]http.HandlerFunc // by path
	names   []string
	asked   int
	leafKey *ecdsa.PrivateKey // in place of the requested one
	chain   func(leaf, root []byte) [][]byte
	leaf    func(*x509.Certificate)
}

func newLiar(t *testing.T, names ...string) *liar {
	l := &liar{t: t, lies: map[string]http.HandlerFunc{}, names: names}
	l.Server = httptest.NewTLSServer(http.HandlerFunc(l.serve))
	t.Cleanup(l.Close)
	return l
}

func (l *liar) serve(w http.ResponseWriter, r *http.Request) {
	l.asked++
	w.Header().Set("Replay-Nonce", fmt.Sprint("nonce", l.asked))
	if lie := l.lies[r.URL.Path]; lie != nil {
		lie(w, r)
		return
	}
	say := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	order := func(status string) map[string]any {
		var authz []string
		ids := []map[string]string{}
		for i, n := range l.names {
			authz = append(authz, fmt.Sprint(l.URL, "/authz/", i))
			ids = append(ids, map[string]string{"type": "dns", "value": n})
		}
		return map[string]any{"status": status, "identifiers": ids, "authorizations": authz, "finalize": l.URL + "/finalize", "certificate": l.URL + "/certificate"}
	}
	switch {
	case r.URL.Path == "/directory":
		say(200, map[string]any{"newNonce": l.URL + "/nonce", "newAccount": l.URL + "/account", "newOrder": l.URL + "/order", "revokeCert": l.URL + "/revoke", "meta": map[string]any{"termsOfService": l.URL + "/terms"}})
	case r.URL.Path == "/account":
		w.Header().Set("Location", l.URL+"/account/1")
		say(201, map[string]any{"status": "valid"})
	case r.URL.Path == "/order":
		w.Header().Set("Location", l.URL+"/order/1")
		say(201, order("pending"))
	case r.URL.Path == "/order/1":
		say(200, order(map[bool]string{true: "ready", false: "valid"}[l.csr == nil]))
	case strings.HasPrefix(r.URL.Path, "/authz/"):
		var i int
		fmt.Sscanf(r.URL.Path, "/authz/%d", &i)
		say(200, map[string]any{"status": "valid", "identifier": map[string]string{"type": "dns", "value": l.names[i]}})
	case r.URL.Path == "/finalize":
		var jws struct{ Payload string }
		json.NewDecoder(r.Body).Decode(&jws)
		b, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
		var q struct{ CSR string }
		json.Unmarshal(b, &q)
		b, _ = base64.RawURLEncoding.DecodeString(q.CSR)
		l.csr, _ = x509.ParseCertificateRequest(b)
		w.Header().Set("Location", l.URL+"/order/1")
		say(200, order("valid"))
	case r.URL.Path == "/certificate":
		for _, der := range l.certificate() {
			pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: der})
		}
	}
}

func (l *liar) certificate() [][]byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		l.t.Error(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "liar"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		l.t.Error(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: l.csr.DNSNames}
	if l.leaf != nil {
		l.leaf(leaf)
	}
	var public any = l.csr.PublicKey
	if l.leafKey != nil {
		public = l.leafKey.Public()
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, public, key)
	if err != nil {
		l.t.Error(err)
	}
	if l.chain != nil {
		return l.chain(leafDER, rootDER)
	}
	return [][]byte{leafDER, rootDER}
}

func (l *liar) config() Config {
	key, err := NewKey()
	if err != nil {
		l.t.Fatal(err)
	}
	return Config{Directory: l.URL + "/directory", Roots: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: l.Certificate().Raw}), Key: key,
		Names: l.names, Challenge: HTTP01, Now: time.Now,
		Put:     func(context.Context, string, string) error { return nil },
		Drop:    func(context.Context, string) error { return nil },
		Present: func(string, *tls.Certificate) {}}
}

func TestNET10_AnHonestServerOfTheTestIsTaken(t *testing.T) {
	l := newLiar(t, "gate.example.net")
	c, err := Obtain(t.Context(), l.config())
	if err != nil || len(c.Certificate) != 2 || c.Leaf.VerifyHostname("gate.example.net") != nil {
		t.Fatalf("%v", err)
	}
	if terms, err := Terms(t.Context(), l.config()); err != nil || terms != l.URL+"/terms" {
		t.Errorf("%q, %v", terms, err)
	}
}

// TestNET10_HostileACMEAnswersAreBounded meets a server that lies at each step.
func TestNET10_HostileACMEAnswersAreBounded(t *testing.T) {
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("another server was asked") }))
	defer elsewhere.Close()
	endless := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"status":"`)
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat("a", 64<<10)); err != nil {
				return
			}
		}
	}
	garbage := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "\x00\xff<html>{") }
	answer := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Location", "https://"+w.Header().Get("x")+"/order/1")
			w.WriteHeader(status)
			io.WriteString(w, text)
		}
	}
	for name, lie := range map[string]struct {
		do   func(*liar)
		want string
	}{
		"directory is garbage": {func(l *liar) { l.lies["/directory"] = garbage }, "directory"},
		"directory never ends": {func(l *liar) { l.lies["/directory"] = endless }, "more than"},
		"account never ends":   {func(l *liar) { l.lies["/account"] = endless }, ""},
		"order is garbage":     {func(l *liar) { l.lies["/order"] = answer(201, "}{") }, "ordering"},
		"order never ends":     {func(l *liar) { l.lies["/order"] = endless }, "ordering"},
		"another server":       {func(l *liar) { l.lies["/order"] = redirectTo(elsewhere.URL) }, "another server"},
		"a redirect": {func(l *liar) {
			l.lies["/directory"] = func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }
		}, "directory"},
		"too many proofs": {func(l *liar) { l.names = append(l.names, "other.example.net", "third.example.net") }, "proofs for"},
		"a proof of another": {func(l *liar) {
			l.lies["/authz/0"] = answer(200, `{"status":"valid","identifier":{"type":"dns","value":"bank.example"}}`)
		}, "was not ordered"},
		"no challenge of ours": {func(l *liar) {
			l.lies["/authz/0"] = answer(200, `{"status":"pending","identifier":{"type":"dns","value":"gate.example.net"},"challenges":[{"type":"dns-01","url":"https://x/","token":"t"}]}`)
		}, "does not offer"},
		"another's key":          {func(l *liar) { l.leafKey = other }, "does not belong"},
		"chain in wrong order":   {func(l *liar) { l.chain = func(leaf, root []byte) [][]byte { return [][]byte{root, leaf} } }, "certificate 2"},
		"chain of strangers":     {func(l *liar) { l.chain = func(leaf, _ []byte) [][]byte { return [][]byte{leaf, leaf} } }, "not signed by"},
		"certificate is garbage": {func(l *liar) { l.chain = func(_, _ []byte) [][]byte { return [][]byte{[]byte("x")} } }, "cannot be read"},
		"chain never ends":       {func(l *liar) { l.lies["/certificate"] = endless }, "fetching"},
		"another's name":         {func(l *liar) { l.leaf = func(c *x509.Certificate) { c.DNSNames = []string{"bank.example"} } }, "not for gate.example.net"},
		"expired":                {func(l *liar) { l.leaf = func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) } }, "expired"},
		"words for a terminal": {func(l *liar) {
			l.lies["/order"] = answer(403, `{"type":"urn:ietf:params:acme:error:rejectedIdentifier","detail":"\u001b[2J`+strings.Repeat("x", 5000)+`"}`)
		}, "the ACME server says"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLiar(t, "gate.example.net")
			c := l.config()
			lie.do(l)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := Obtain(ctx, c)
			if err == nil || !strings.Contains(err.Error(), lie.want) {
				t.Fatalf("%v, want %q", err, lie.want)
			}
			if ctx.Err() != nil {
				t.Error("only the clock ended it")
			}
			if len(err.Error()) > 800 || strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("the words are the server's: %q", err)
			}
			if l.asked > maxRequests+1 {
				t.Errorf("%d requests", l.asked)
			}
		})
	}
}

// redirectTo is an order whose addresses lie on another server.
func redirectTo(at string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", at+"/order/1")
		w.WriteHeader(201)
		fmt.Fprintf(w, `{"status":"pending","authorizations":["%s/authz/0"],"finalize":"%[1]s/finalize"}`, at)
	}
}

func TestNET10_UnknownAuthorityOfTheServer(t *testing.T) {
	l := newLiar(t, "gate.example.net")
	c := l.config()
	c.Roots = nil
	if _, err := Obtain(t.Context(), c); err == nil || !strings.Contains(err.Error(), "as PEM") {
		t.Errorf("%v", err)
	}
}

func TestNET10_PublicAuthoritiesArePartOfTheProgram(t *testing.T) {
	t.Setenv("SSL_CERT_FILE", "/nowhere")
	t.Setenv("SSL_CERT_DIR", "/nowhere")
	pool, err := Authorities(nil)
	if err != nil || pool.Equal(x509.NewCertPool()) {
		t.Errorf("no authority without the system's: %v", err)
	}
}

func TestNET10_WhatAnOwnerTypesIsJudged(t *testing.T) {
	good := Config{Directory: LetsEncrypt, Names: []string{"gate.example.net"}, Challenge: HTTP01}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"plain http":   func(c *Config) { c.Directory = "http://ca.example/" },
		"no address":   func(c *Config) { c.Directory = "ca" },
		"password":     func(c *Config) { c.Directory = "https://a:b@ca.example/" },
		"dns-01":       func(c *Config) { c.Challenge = "dns-01" },
		"no name":      func(c *Config) { c.Names = nil },
		"many names":   func(c *Config) { c.Names = strings.Fields(strings.Repeat("a.example ", 11)) },
		"wildcard":     func(c *Config) { c.Names = []string{"*.example.net"} },
		"one label":    func(c *Config) { c.Names = []string{"gate"} },
		"local":        func(c *Config) { c.Names = []string{"gate.local"} },
		"not a name":   func(c *Config) { c.Names = []string{"gate example"} },
		"zone":         func(c *Config) { c.Names = []string{"fe80::1%eth0"} },
		"mail header":  func(c *Config) { c.Email = "a@b.example?subject=x" },
		"garbage root": func(c *Config) { c.Roots = []byte("x") },
	} {
		c := good
		change(&c)
		if err := c.Check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestServerNamesOfAddresses(t *testing.T) {
	for name, want := range map[string]string{
		"gate.example.net": "gate.example.net", "192.0.2.1": "1.2.0.192.in-addr.arpa",
		"2001:db8::1": "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := serverName(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
	if _, err := url.Parse(LetsEncrypt); err != nil {
		t.Error(err)
	}
}
