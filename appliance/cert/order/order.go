// Package order gets certificates from an ACME server (RFC 8555), and gives them back.
//
// The server is chosen by the owner and is still not trusted with more than
// its answer: every answer is bounded in size, number and time, no address but
// the server's own is asked, and a certificate counts only once it is judged.
package order

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme"

	"gatehouse/appliance/cert/pair"
)

// LetsEncrypt is the directory that is offered when none is given.
const LetsEncrypt = acme.LetsEncryptURL

// The challenges.
const (
	HTTP01    = "http-01"
	TLSALPN01 = "tls-alpn-01"
)

// timeout is for a whole order; maxTries for one request that the server asks
// to repeat.
const (
	timeout  = 3 * time.Minute
	maxTries = 5
	maxWait  = 10 * time.Second
)

// Config is what an order needs.
type Config struct {
	Directory string // https
	Roots     []byte // PEM that vouches for the server; none: the public authorities
	Email     string // "" for none
	Key       crypto.Signer
	Names     []string // host names and addresses
	Challenge string

	// Put has port 80 answer a token with a text until Drop.
	Put  func(ctx context.Context, token, text string) error
	Drop func(ctx context.Context, token string) error
	// Present has port 443 show a certificate to acme-tls/1 under a server
	// name; nil ends it.
	Present func(name string, c *tls.Certificate)
	// Settle is how long a challenge takes to be in place everywhere.
	Settle time.Duration
	Now    func() time.Time
}

// Check judges what a person typed.
func (c Config) Check() error {
	u, err := url.Parse(c.Directory)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || len(c.Directory) > 500:
		return fmt.Errorf("the directory of an ACME server is an address that begins with https://, not %.80q", c.Directory)
	case c.Challenge != HTTP01 && c.Challenge != TLSALPN01:
		return fmt.Errorf("the challenge is %s or %s, not %.40q", HTTP01, TLSALPN01, c.Challenge)
	case len(c.Names) == 0:
		return errors.New("name at least one host name that leads to this box from where the ACME server is")
	case len(c.Names) > 10:
		return errors.New("at most ten names go into one certificate")
	case c.Email != "" && (len(c.Email) > 254 || !strings.Contains(c.Email, "@") || strings.ContainsAny(c.Email, " \t\r\n,?&")):
		return fmt.Errorf("%.80q is not an e-mail address", c.Email)
	case len(c.Roots) > pair.MaxChainBytes:
		return fmt.Errorf("the authorities of the ACME server have %d bytes: at most %d are taken", len(c.Roots), pair.MaxChainBytes)
	}
	if len(c.Roots) > 0 {
		if _, err := pair.ParseChain(c.Roots); err != nil {
			return fmt.Errorf("the authorities of the ACME server: %w", err)
		}
	}
	for _, n := range c.Names {
		if err := checkName(n); err != nil {
			return err
		}
	}
	return nil
}

func checkName(n string) error {
	if a, err := netip.ParseAddr(n); err == nil {
		if a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%s is not a plain address", n)
		}
		return nil
	}
	if strings.HasPrefix(n, "*.") {
		return fmt.Errorf("%.80q: certificates for wildcards need the challenge dns-01, which is not done here: name each host", n)
	}
	labels := strings.Split(n, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("%.80q is not a host name such as gate.example.net", n)
		}
	}
	if len(labels) < 2 || len(n) > 253 || strings.HasSuffix(n, ".local") || strings.HasSuffix(n, ".invalid") {
		return fmt.Errorf("%.80q is a name that no ACME server can look up: use one that leads here from the Internet, or from where your own ACME server is", n)
	}
	return nil
}

// NewKey makes a key for an account or a certificate.
func NewKey() (*ecdsa.PrivateKey, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return k, nil
}

// client is an acme.Client that is held to the bounds; end frees its connections.
func (c Config) client() (client *acme.Client, end func(), err error) {
	pool, err := Authorities(c.Roots)
	if err != nil {
		return nil, nil, err
	}
	u, err := url.Parse(c.Directory)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the directory's address: %w", err)
	}
	transport := &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, Time: c.Now},
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           2,
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
	}
	return &acme.Client{
		Key: c.Key, DirectoryURL: c.Directory, UserAgent: "gatehouse",
		HTTPClient: &http.Client{
			Transport:     &bounded{inner: transport, host: u.Host},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		RetryBackoff: func(n int, _ *http.Request, _ *http.Response) time.Duration {
			if n >= maxTries {
				return 0
			}
			return min(time.Duration(n)*time.Second, maxWait)
		},
	}, transport.CloseIdleConnections, nil
}

// Terms is the address of the server's terms, "" if it has none.
func Terms(ctx context.Context, c Config) (string, error) {
	client, end, err := c.client()
	if err != nil {
		return "", err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	dir, err := client.Discover(ctx)
	if err != nil {
		return "", c.explain("asking the ACME server for its directory", err)
	}
	return say(dir.Terms), nil
}

// Obtain gets a certificate for c.Names with a new key. The owner has accepted
// the server's terms before it is called.
func Obtain(ctx context.Context, c Config) (tls.Certificate, error) {
	var none tls.Certificate
	if err := c.Check(); err != nil {
		return none, err
	}
	client, end, err := c.client()
	if err != nil {
		return none, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.register(ctx, client); err != nil {
		return none, err
	}
	var ids []acme.AuthzID
	for _, n := range c.Names {
		kind := "dns"
		if _, err := netip.ParseAddr(n); err == nil {
			kind = "ip"
		}
		ids = append(ids, acme.AuthzID{Type: kind, Value: n})
	}
	o, err := client.AuthorizeOrder(ctx, ids)
	if err != nil {
		return none, c.explain("ordering a certificate", err)
	}
	if len(o.AuthzURLs) > len(c.Names) {
		return none, fmt.Errorf("the ACME server asks for %d proofs for %d names", len(o.AuthzURLs), len(c.Names))
	}
	for _, u := range o.AuthzURLs {
		if err := c.authorize(ctx, client, u); err != nil {
			return none, err
		}
	}
	ready, err := client.WaitOrder(ctx, o.URI)
	if err != nil {
		return none, c.explain("waiting for the order", err)
	}
	return c.finalize(ctx, client, ready)
}

func (c Config) register(ctx context.Context, client *acme.Client) error {
	if _, err := client.Discover(ctx); err != nil {
		return c.explain("asking the ACME server for its directory", err)
	}
	a := &acme.Account{}
	if c.Email != "" {
		a.Contact = []string{"mailto:" + c.Email}
	}
	if _, err := client.Register(ctx, a, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return c.explain("opening an account at the ACME server", err)
	}
	return nil
}

// authorize proves one name.
func (c Config) authorize(ctx context.Context, client *acme.Client, at string) error {
	z, err := client.GetAuthorization(ctx, at)
	if err != nil {
		return c.explain("reading what is to be proved", err)
	}
	name := z.Identifier.Value
	if !slices.Contains(c.Names, name) {
		return fmt.Errorf("the ACME server asks for a proof of %.80q, which was not ordered", name)
	}
	if z.Status == acme.StatusValid {
		return nil // proved a short while ago
	}
	at = z.URI
	i := slices.IndexFunc(z.Challenges, func(ch *acme.Challenge) bool { return ch.Type == c.Challenge })
	if i < 0 {
		return fmt.Errorf("the ACME server does not offer the challenge %s for %s: choose the other one", c.Challenge, name)
	}
	ch := z.Challenges[i]
	undo, err := c.answer(ctx, client, name, ch.Token)
	if err != nil {
		return err
	}
	defer undo()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(c.Settle):
	}
	if _, err := client.Accept(ctx, ch); err != nil {
		return c.explain("telling the ACME server to look", err)
	}
	if _, err := client.WaitAuthorization(ctx, at); err != nil {
		return c.explain("proving that "+name+" is this box", err)
	}
	return nil
}

// answer puts the answer to a challenge in place, and says how to take it away.
func (c Config) answer(ctx context.Context, client *acme.Client, name, token string) (undo func(), err error) {
	if c.Challenge == TLSALPN01 {
		crt, err := client.TLSALPN01ChallengeCert(token, name)
		if err != nil {
			return nil, fmt.Errorf("answering the challenge for %s: %w", name, err)
		}
		sni := serverName(name)
		c.Present(sni, &crt)
		return func() { c.Present(sni, nil) }, nil
	}
	text, err := client.HTTP01ChallengeResponse(token)
	if err != nil {
		return nil, fmt.Errorf("answering the challenge for %s: %w", name, err)
	}
	if err := c.Put(ctx, token, text); err != nil {
		return nil, fmt.Errorf("answering the challenge for %s: %w", name, err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		c.Drop(ctx, token) // it also ends by itself
	}, nil
}

// serverName is what a server asks by TLS for a name; addresses go by their
// reverse name (RFC 8738, 6).
func serverName(name string) string {
	a, err := netip.ParseAddr(name)
	if err != nil {
		return name
	}
	if a.Is4() {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
	}
	var s strings.Builder
	b := a.As16()
	for i := range b {
		fmt.Fprintf(&s, "%x.%x.", b[15-i]&0xF, b[15-i]>>4)
	}
	return s.String() + "ip6.arpa"
}

// finalize asks for the certificate and judges it.
func (c Config) finalize(ctx context.Context, client *acme.Client, o *acme.Order) (tls.Certificate, error) {
	var none tls.Certificate
	key, err := NewKey()
	if err != nil {
		return none, err
	}
	t := &x509.CertificateRequest{}
	for _, n := range c.Names {
		if a, err := netip.ParseAddr(n); err == nil {
			t.IPAddresses = append(t.IPAddresses, a.AsSlice())
		} else {
			t.DNSNames = append(t.DNSNames, n)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, t, key)
	if err != nil {
		return none, fmt.Errorf("making the request: %w", err)
	}
	der, _, err := client.CreateCertFromOrder(ctx, o, csr, true)
	if err != nil {
		return none, c.explain("fetching the certificate", err)
	}
	var chain []*x509.Certificate
	for i, d := range der {
		crt, err := x509.ParseCertificate(d)
		if err != nil {
			return none, fmt.Errorf("the ACME server sent a chain whose certificate %d cannot be read: %w", i+1, err)
		}
		chain = append(chain, crt)
	}
	crt, err := pair.Join(chain, key, c.Now())
	if err != nil {
		return none, fmt.Errorf("the ACME server sent a certificate that cannot be used: %w", err)
	}
	for _, n := range c.Names {
		if err := crt.Leaf.VerifyHostname(n); err != nil {
			return none, fmt.Errorf("the ACME server sent a certificate that is not for %s", n)
		}
	}
	return crt, nil
}

// Revoke tells the server that a certificate of this account is not to be
// trusted any more.
func Revoke(ctx context.Context, c Config, der []byte) error {
	client, end, err := c.client()
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := client.RevokeCert(ctx, nil, der, acme.CRLReasonUnspecified); err != nil {
		return c.explain("revoking the certificate", err)
	}
	return nil
}
