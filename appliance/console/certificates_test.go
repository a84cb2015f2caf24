package console

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// under is the certificate that is shown under a server name.
func under(t *testing.T, b *consoletest.Box, name string) *x509.Certificate {
	t.Helper()
	c, err := tls.Dial("tcp", strings.TrimPrefix(b.URL, "https://"), &tls.Config{InsecureSkipVerify: true, ServerName: name})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0]
}

func sha(c *x509.Certificate) string {
	return cert.Fingerprint(tls.Certificate{Certificate: [][]byte{c.Raw}})
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestNET10_PageRefuses(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	chain, _ := certtest.PEM(t, certtest.Self(t, certtest.Names("gate.example.net")))
	_, key := certtest.PEM(t, certtest.Self(t, certtest.Names("gate.example.net")))
	for name, c := range map[string]struct {
		path   string
		fields []string
		want   string
	}{
		"no source":        {"/certificates/use", nil, "not a source"},
		"terms":            {"/certificates/use", []string{"source", "acme", "names", "gate.example.net", "challenge", "http-01", "directory", "https://127.0.0.1:1/"}, "accepts its terms"},
		"no name":          {"/certificates/use", []string{"source", "acme", "agreed", "yes", "challenge", "http-01"}, "at least one host name"},
		"markup":           {"/certificates/use", []string{"source", "acme", "agreed", "yes", "names", "<script>alert(1)</script>", "challenge", "http-01"}, "is not a host name"},
		"plain http":       {"/certificates/use", []string{"source", "acme", "agreed", "yes", "names", "a.example", "challenge", "http-01", "directory", "http://ca.example"}, "https://"},
		"brought, none":    {"/certificates/use", []string{"source", "brought"}, "was brought yet"},
		"nothing":          {"/certificates/import", nil, "no certificate in the chain"},
		"another's key":    {"/certificates/import", []string{"chain", string(chain), "key", string(key)}, "does not belong"},
		"nothing to renew": {"/certificates/renew", nil, "Nothing here renews"},
		"not meant":        {"/certificates/revoke", nil, "Say that you mean it"},
		"nothing revoked":  {"/certificates/revoke", []string{"sure", "yes"}, "no certificate of an ACME server"},
	} {
		p := br.Send(c.path, c.fields...)
		if p.Status != 422 || !strings.Contains(p.Body, c.want) || strings.Contains(p.Body, "<script>alert") || strings.Contains(p.Body, "PRIVATE KEY-----\n") {
			t.Errorf("%s: %d, want %q in\n%s", name, p.Status, c.want, p.Body)
		}
	}
	for _, path := range []string{"/certificates/root.pem", "/certificates/root.crt", "/certificates/root.mobileconfig", "/api/v1/certificates/root"} {
		if p := br.Open(path); p.Status != 403 || !strings.Contains(p.Body, "no own CA") {
			t.Errorf("%s: %d", path, p.Status)
		}
	}
	for _, bad := range []string{`{"source":"ca"}x`, `{"colour":1}`, `{"source":"acme","acme":{"names":["a.example"],"directory":"https://127.0.0.1:1/"}}`} {
		if p := br.SendJSON("/api/v1/certificates/use", bad); p.Status != 403 {
			t.Errorf("%s: %d", bad, p.Status)
		}
	}
	if p := b.Browser().Open("/api/v1/certificates"); p.Status != 401 {
		t.Errorf("without sign-in: %d", p.Status)
	}
	b.FailAudit(context.DeadlineExceeded)
	if p := br.Send("/certificates/use", "source", "ca"); p.Status < 400 {
		t.Errorf("chosen without an entry: %d", p.Status)
	}
	b.FailAudit(nil)
	if p := br.Open("/certificates"); !strings.Contains(p.Body, "signed itself") || strings.Contains(p.Body, "Root</dt>") {
		t.Errorf("something was changed:\n%s", p.Body)
	}
}

func TestNET10_TheConsoleShowsWhatBrowsersSee(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	identity := b.Ready().Certificate
	if p := br.Send("/certificates/use", "source", "ca"); p.Status != 200 || p.Path != "/certificates" {
		t.Fatalf("%d %s\n%s", p.Status, p.Path, p.Body)
	}
	soon(t, "the leaf", func() bool { return sha(under(t, b, consoletest.Name)) != identity.SHA256 })
	root := br.Open("/certificates/root.pem").Body
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root)) {
		t.Fatalf("no root:\n%s", root)
	}
	leaf := under(t, b, consoletest.Name)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: consoletest.Name + ".local"}); err != nil {
		t.Error(err)
	}
	st, err := net.LookupIP("192.168.1.40")
	if err != nil || leaf.VerifyHostname(st[0].String()) != nil {
		t.Errorf("the leaf is for %v", leaf.IPAddresses)
	}
	soon(t, "the console's block", func() bool { return b.Ready().Certificate.SHA256 == sha(leaf) })
	if now := b.Ready().Certificate; now.Words != identity.Words || now.SPKI != identity.SPKI {
		t.Error("the words are no longer those of the pinned identity")
	}
	if got := sha(under(t, b, cert.IdentityName)); got != identity.SHA256 {
		t.Error("who pinned the identity does not find it")
	}
	var raw bytes.Buffer
	block, _ := pem.Decode([]byte(root))
	raw.Write(block.Bytes)
	if p := br.Open("/certificates/root.crt"); p.Body != raw.String() || !strings.Contains(p.Header.Get("Content-Disposition"), consoletest.Name+"-ca.crt") {
		t.Error("the DER is not the root")
	}
	if p := br.Open("/certificates/trust"); !strings.Contains(p.Body, "gatehouse ca trust") || !strings.Contains(p.Body, "Firefox") {
		t.Errorf("%s", p.Body)
	}
	if p := b.Browser().Open("/api/v1/certificates/root"); p.Status != 200 || !strings.Contains(p.Body, "BEGIN CERTIFICATE") || strings.Contains(p.Body, "PRIVATE") {
		t.Errorf("the root for everybody: %d %s", p.Status, p.Body)
	}
	b.Restart()
	if got := sha(under(t, b, consoletest.Name)); got != sha(leaf) {
		t.Error("another leaf after a restart")
	}
	soon(t, "the console's block after a restart", func() bool { return b.Ready().Certificate.SHA256 == sha(leaf) })
	// Locked: neither leaf nor identity, as before.
	b.Stop()
	b.Lock(true)
	b.Boot()
	if got := sha(under(t, b, consoletest.Name)); got == sha(leaf) || got == identity.SHA256 {
		t.Error("a locked box shows a certificate of its data")
	}
}

func TestNET10_BroughtOnThePage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	chain, key := certtest.PEM(t, certtest.Self(t, certtest.Names("gate.example.net")))
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for field, text := range map[string][]byte{"chain-file": chain, "key-file": key} {
		w, err := form.CreateFormFile(field, field+".pem")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	form.Close()
	host := func(name string) int {
		return request(t, b, "GET", "/api/v1/status", func(r *http.Request) { r.Host = name }).StatusCode
	}
	if code := host("gate.example.net"); code != 421 {
		t.Errorf("a name that is not ours yet: %d", code)
	}
	resp, err := br.Post(br.URL+"/certificates/import", form.FormDataContentType(), &body)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("the upload: %d", resp.StatusCode)
	}
	if under(t, b, "gate.example.net").VerifyHostname("gate.example.net") != nil || sha(under(t, b, consoletest.Name)) != b.Ready().Certificate.SHA256 {
		t.Error("it is not shown under its name, or under another's")
	}
	soon(t, "its name to be ours", func() bool { return host("gate.example.net") == 200 })
	if code := host("other.example.net"); code != 421 {
		t.Errorf("another name: %d", code)
	}
	page := br.Open("/certificates")
	if !strings.Contains(page.Body, "nothing renews it") || strings.Contains(page.Body, "PRIVATE KEY-----\n") {
		t.Errorf("no warning, or the key:\n%s", page.Body)
	}
	if p := br.SendJSON("/api/v1/certificates/use", `{"source":"self"}`); p.Status != 200 || !strings.Contains(p.Body, `"source":"self"`) || strings.Contains(p.Body, "PRIVATE") {
		t.Errorf("%d %s", p.Status, p.Body)
	}
	soon(t, "the name to be nobody's again", func() bool { return host("gate.example.net") == 421 })
	var chosen, imported bool
	for _, e := range b.Events() {
		chosen = chosen || e.Event.Action == "choose certificate source" && e.Event.Actor == "ada@example.org"
		imported = imported || e.Event.Action == "import certificate" && e.Event.Object == "gate.example.net"
		for _, v := range e.Event.Detail {
			if strings.Contains(v, "PRIVATE") {
				t.Error("the audit log has the key")
			}
		}
	}
	if !chosen || !imported {
		t.Error("the audit log misses something")
	}
	b.Stop()
	files, err := filepath.Glob(filepath.Join(b.Dir, "console", "*"))
	if err != nil {
		t.Fatal(err)
	}
	der, _ := pem.Decode([]byte(key))
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && (bytes.Contains(text, der.Bytes) || bytes.Contains(text, []byte("PRIVATE KEY"))) {
			t.Errorf("%s holds the key as it is", f)
		}
	}
	if bytes.Contains(b.Log.Bytes(), []byte("PRIVATE")) {
		t.Error("the log has the key")
	}
}

func TestNET10_ADoubtfulClockPostpones(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	b.DoubtClock()
	b.Restart()
	if p := br.Send("/certificates/use", "source", "ca"); p.Status != 200 {
		t.Fatalf("%d", p.Status)
	}
	soon(t, "the page to say so", func() bool { return strings.Contains(br.Open("/certificates").Body, "postponed until") })
	if b.State() != control.StateReady || sha(under(t, b, consoletest.Name)) != b.Ready().Certificate.SHA256 {
		t.Error("the identity is not served meanwhile")
	}
}
