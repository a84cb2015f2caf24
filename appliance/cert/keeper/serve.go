package keeper

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/cert"
)

// acmeProtocol is asked for alone by an ACME server that validates (RFC 8737).
const acmeProtocol = "acme-tls/1"

// TLSConfig is how the console serves.
func (k *Keeper) TLSConfig(protocols ...string) *tls.Config {
	c := cert.ServerConfig(tls.Certificate{}, protocols...)
	c.Certificates = nil // or GetCertificate would not be asked without a server name
	c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return k.answers(h.ServerName, localOf(h.Conn)), nil
	}
	c.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		if !slices.Equal(h.SupportedProtos, []string{acmeProtocol}) {
			return nil, nil
		}
		return k.acmeConfig(h.ServerName)
	}
	return c
}

func localOf(c net.Conn) netip.Addr {
	if c == nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

var errNoChallenge = errors.New("no ACME challenge waits for that name")

// acmeConfig answers a validation that waits; any other ends the handshake.
func (k *Keeper) acmeConfig(name string) (*tls.Config, error) {
	k.mu.Lock()
	c := k.alpn[strings.ToLower(name)]
	k.mu.Unlock()
	if c == nil {
		return nil, errNoChallenge
	}
	return cert.ServerConfig(*c, acmeProtocol), nil
}

func (k *Keeper) present(name string, c *tls.Certificate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c == nil {
		delete(k.alpn, name)
		return
	}
	k.alpn[name] = c
}

// answers is the certificate for a server name, or without one for the address
// of the box that was dialled: browsers send no name for an address.
func (k *Keeper) answers(name string, local netip.Addr) *tls.Certificate {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pick(name, local)
}

// pick is answers with the lock held.
func (k *Keeper) pick(name string, local netip.Addr) *tls.Certificate {
	c, _ := k.current()
	host := strings.TrimSuffix(strings.ToLower(name), ".")
	if host == "" && local.IsValid() {
		host = local.String()
	}
	if c == nil || host == cert.IdentityName || host == "" || c.Leaf.VerifyHostname(host) != nil || k.unfit(c) != "" {
		return &k.c.Identity
	}
	return c
}

// current is the certificate of the source, good or not.
func (k *Keeper) current() (*tls.Certificate, Source) {
	if k.files.Named {
		return k.fromFile, Files
	}
	return k.chosen, k.kept.Source
}

// unfit says why a certificate is not served now, "" if it is.
func (k *Keeper) unfit(c *tls.Certificate) string {
	now := k.c.Ports.Now()
	switch {
	case now.After(c.Leaf.NotAfter):
		return "It has expired."
	// With a clock that nobody vouches for it is likelier that the clock is
	// behind: a certificate was taken only when it had begun.
	case now.Before(c.Leaf.NotBefore) && k.machine.trusted:
		return "It has not begun yet by the box's clock."
	}
	return ""
}

// due is when a certificate is renewed: after two thirds of its life.
func due(c *x509.Certificate) time.Time {
	return c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) * 2 / 3)
}
