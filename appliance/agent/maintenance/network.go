package maintenance

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"gatehouse/appliance/session"
)

const (
	connectTime  = 5 * time.Second
	maxAddresses = 8
)

func (c *console) resolve(ctx context.Context, words []string) error {
	addresses, err := c.lookup(ctx, words[0])
	if err != nil {
		return err
	}
	for _, a := range addresses {
		c.say("%s", a)
	}
	return nil
}

func (c *console) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	addresses, err := c.Resolve(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%.100s is not found: %w", name, err)
	}
	for i := range addresses {
		addresses[i] = addresses[i].Unmap()
	}
	return addresses[:min(len(addresses), maxAddresses)], nil
}

// connect tries every address of a host. The box's own services are no part of
// the network that is tried.
func (c *console) connect(ctx context.Context, words []string) error {
	port, err := strconv.ParseUint(words[1], 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%.20q is no port: 1 to 65535", words[1])
	}
	secure := port == 443
	if len(words) == 3 {
		if words[2] != "tls" {
			return fmt.Errorf("after the port comes tls, or nothing")
		}
		secure = true
	}
	addresses, err := c.lookup(ctx, words[0])
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !session.Reachable(a) {
			c.say("%s: not tried, it is not the address of a host in the network", a)
			continue
		}
		c.probe(ctx, netip.AddrPortFrom(a, uint16(port)), words[0], secure)
	}
	return nil
}

func (c *console) probe(ctx context.Context, to netip.AddrPort, name string, secure bool) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	begun := time.Now()
	conn, err := c.Connect(ctx, "tcp", to.String())
	if err != nil {
		c.say("%s: %v", to, err)
		return
	}
	defer conn.Close()
	c.say("%s: answers after %d ms", to, time.Since(begun).Milliseconds())
	if secure {
		c.showTLS(ctx, conn, name)
	}
}

// showTLS says what the other side shows. It is shown, not believed: nothing is
// sent over the connection.
func (c *console) showTLS(ctx context.Context, conn net.Conn, name string) {
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10} // see above
	if _, err := netip.ParseAddr(name); err != nil {
		config.ServerName = name
	}
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		c.say("  no TLS: %v", err)
		return
	}
	cs := t.ConnectionState()
	c.say("  %s, %s", tls.VersionName(cs.Version), tls.CipherSuiteName(cs.CipherSuite))
	for i, cert := range cs.PeerCertificates {
		if i == 4 {
			break
		}
		c.say("  certificate of %.200s, by %.200s", cert.Subject, cert.Issuer)
		if i == 0 {
			c.say("    for %.400v %v", cert.DNSNames, cert.IPAddresses)
			c.say("    from %s until %s", cert.NotBefore.UTC().Format(time.DateOnly), cert.NotAfter.UTC().Format(time.DateOnly))
			c.say("    SHA-256 %x", sha256.Sum256(cert.Raw))
		}
	}
}
