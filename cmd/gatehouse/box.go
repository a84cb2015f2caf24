package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/control"
	"gatehouse/appliance/setup/proof"
)

// maxAnswer bounds what is read of a box, in bytes. The longest are its lists,
// of which a target takes up to some hundred bytes and a recording as many.
const maxAnswer = 8 << 20

// errOtherKey means that a connection came from another key than the first or the pinned one.
var errOtherKey = errors.New("the certificate is not the box's")

// box is a connection to a box. No authority vouches for it: the first key
// seen, or the one that was pinned, is the only one accepted from then on.
type box struct {
	address string // host:port, the host a literal address
	client  *http.Client
	moved   string // the address before, if it was left for another

	mu  sync.Mutex
	key *[32]byte // SHA-256 of the SubjectPublicKeyInfo
}

// openBox finds the address that a person typed: a literal or a name, with or
// without a port, or the whole URL as the console shows it. Names are resolved
// here, since a box answers to its own names and to literals alone.
func openBox(ctx context.Context, typed string, pin *[32]byte) (*box, error) {
	address, err := resolve(ctx, typed)
	if err != nil {
		return nil, err
	}
	b := &box{address: address, key: pin}
	b.client = &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{
				MinVersion:         tls.VersionTLS13,
				ServerName:         cert.IdentityName, // browsers may be shown another certificate
				InsecureSkipVerify: true,              // the key is checked instead, by the next line and by the proof
				VerifyConnection:   b.verify,
			},
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 10 * time.Second,
			DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return b, nil
}

func resolve(ctx context.Context, typed string) (string, error) {
	t := strings.TrimSpace(typed)
	if u, err := url.Parse(t); err == nil && u.Host != "" {
		if u.Scheme != "https" {
			return "", fail(exitUsage, "%q: a box is reached by https", typed)
		}
		t = u.Host
	}
	host, port, err := net.SplitHostPort(t)
	if err != nil {
		host, port = strings.Trim(t, "[]"), "443"
	}
	if host == "" || strings.ContainsAny(host, "/ ") {
		return "", fail(exitUsage, "%q is not an address: type it as the console shows it, such as 192.168.1.40", typed)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(a.String(), port), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(addrs) == 0 {
		return "", fail(exitUnreachable, "finding the address of %s: %w", host, err)
	}
	return net.JoinHostPort(addrs[0].Unmap().String(), port), nil
}

func (b *box) verify(cs tls.ConnectionState) error {
	key := sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.key == nil {
		b.key = &key
	}
	if *b.key != key {
		return errOtherKey
	}
	return nil
}

// spki is the key of the box as seen on the connections so far.
func (b *box) spki() [32]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return *b.key
}

// refusal is an answer that is not the wanted one.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string {
	if r.text == "" {
		return fmt.Sprintf("the box answered %d %s", r.status, http.StatusText(r.status))
	}
	return r.text
}

// call asks the API and returns what binds the answer to its channel.
func (b *box) call(ctx context.Context, method, path string, question, answer any) (binding []byte, err error) {
	var body io.Reader
	if question != nil {
		j, err := json.Marshal(question)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(j)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+b.address+path, body)
	if err != nil {
		return nil, fail(exitUsage, "the address %s cannot be used: %w", b.address, err)
	}
	req.Header.Set("Accept", "application/json")
	if question != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := b.client.Do(req)
	switch {
	case errors.Is(err, errOtherKey):
		return nil, fail(exitVerification, "%s shows another certificate than before: something may stand between you and the box. Compare with its console", b.address)
	case err != nil:
		return nil, fail(exitUnreachable, "reaching the box at %s: %w", b.address, err)
	}
	defer resp.Body.Close()
	text, err := b.text(resp)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, &refusal{resp.StatusCode, reason(text)}
	}
	if len(text) == 0 && resp.StatusCode == http.StatusNoContent {
		return proof.Binding(resp.TLS)
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return nil, fmt.Errorf("%s does not answer as a Gatehouse does: %w", b.address, err)
	}
	return proof.Binding(resp.TLS)
}

// text reads an answer to its end. One that is too long is none: its beginning
// would look like what the box said.
func (b *box) text(resp *http.Response) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fail(exitUnreachable, "reading the answer of %s: %w", b.address, err)
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("the answer of %s to %s is longer than %d MiB, the most that is read of a box: use its page instead", b.address, resp.Request.URL.Path, maxAnswer>>20)
	}
	return text, nil
}

// reason finds the words in an answer (RFC 9457), safe for a terminal.
func reason(body []byte) string {
	var p struct {
		Detail, Error, Title string
		Problems             []control.Problem
	}
	if json.Unmarshal(body, &p) != nil {
		return ""
	}
	if len(p.Problems) > 0 {
		var lines []string
		for _, q := range p.Problems[:min(len(p.Problems), 20)] {
			lines = append(lines, problemLine(q))
		}
		return strings.Join(lines, "\n")
	}
	for _, s := range []string{p.Detail, p.Error, p.Title} {
		if s != "" {
			return printable(s[:min(len(s), 500)])
		}
	}
	return ""
}

// printable makes what a box says harmless on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= '\u202a' && r <= '\u202e' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
