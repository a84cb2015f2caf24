package order

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"gatehouse/appliance/cert/pair"
)

// What an ACME server may send: the largest honest answer is a chain.
const (
	maxAnswer   = 256 << 10 // bytes
	maxRequests = 200       // in one order
)

var (
	errTooMuch   = fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	errElsewhere = errors.New("it sends us to another server, which is not followed")
)

// bounded holds a server to its own address and to the bounds. The addresses
// in its answers are the server's to choose: without this it could have the box
// ask others in its network.
type bounded struct {
	inner http.RoundTripper
	host  string
	count atomic.Int64
}

func (b *bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.Host != b.host {
		return nil, errElsewhere
	}
	if b.count.Add(1) > maxRequests {
		return nil, fmt.Errorf("more than %d requests in one order", maxRequests)
	}
	resp, err := b.inner.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limited{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

// limited is a body that fails beyond its bound, where a cut one could pass for whole.
type limited struct {
	io.ReadCloser
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left < 0 {
		return 0, errTooMuch
	}
	if len(p) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.ReadCloser.Read(p)
	if l.left -= n; l.left < 0 {
		return 0, errTooMuch
	}
	return n, err
}

// Authorities are those that vouch for the server: the given ones alone, else
// the system's, else Mozilla's, which are part of the program since our own
// image has no others.
func Authorities(given []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if len(given) > 0 {
		chain, err := pair.ParseChain(given)
		if err != nil {
			return nil, fmt.Errorf("the authorities of the ACME server: %w", err)
		}
		for _, c := range chain {
			pool.AddCert(c)
		}
		return pool, nil
	}
	if system, err := x509.SystemCertPool(); err == nil && !system.Equal(pool) {
		return system, nil
	}
	for r := range bundle.Roots() {
		c, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return nil, fmt.Errorf("reading the public authorities: %w", err)
		}
		if r.Constraint != nil {
			pool.AddCertWithConstraint(c, r.Constraint)
		} else {
			pool.AddCert(c)
		}
	}
	return pool, nil
}
