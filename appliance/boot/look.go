package boot

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/update"
)

// arch is the architecture as releases name it.
const arch = runtime.GOARCH

// event is one of the audit log.
type event = control.Event

// answerTime is how long the box's own page may take to answer.
const answerTime = 10 * time.Second

// look is what can be seen of the box now, for the gate of an update: before it
// and in the trial the same.
func (b *box) look(ctx context.Context, m *monitor.Monitor) update.Look {
	s := m.Status()
	l := make(update.Look)
	set := func(name string, good bool, format string, a ...any) {
		l[name] = update.Seen{Good: good, Detail: fmt.Sprintf(format, a...)}
	}
	switch {
	case b.keys == nil:
		set(update.CheckVault, false, "the data are not open")
	case s.State != control.StateReady && s.State != control.StateUnclaimed:
		set(update.CheckVault, false, "the box is %s: %s", s.State, s.Reason)
	case s.Volume.Problem != "" && !b.mounted:
		set(update.CheckVault, false, "%s", s.Volume.Problem)
	default:
		set(update.CheckVault, true, "the data are open")
	}
	set(update.CheckLink, false, "no link has a carrier")
	set(update.CheckAddress, false, "no link has an address")
	set(update.CheckRouter, false, "there is no router")
	set(update.CheckHTTPS, false, "there is no address to answer on")
	for _, link := range s.Links {
		if link.Carrier && !l[update.CheckLink].Good {
			set(update.CheckLink, true, "%s has a carrier", link.Name)
		}
		for _, a := range link.Addresses {
			if !a.Addr().IsLinkLocalUnicast() && !l[update.CheckAddress].Good {
				set(update.CheckAddress, true, "%s has %s by %s", link.Name, a, link.Source)
			}
		}
		for _, g := range link.Gateways {
			if l[update.CheckRouter].Good {
				break
			}
			if there, err := b.machine.Neighbour(withZone(g, link.Name)); err != nil || !there {
				set(update.CheckRouter, false, "the router %s on %s does not answer", g, link.Name)
			} else {
				set(update.CheckRouter, true, "the router %s on %s answers", g, link.Name)
			}
		}
	}
	if a, ok := ownAddress(s.Links); ok {
		if err := answers(ctx, a, s.HTTPSPort, s.Certificate.SHA256); err != nil {
			set(update.CheckHTTPS, false, "%v", err)
		} else {
			set(update.CheckHTTPS, true, "%s answers", monitor.URL(a, s.HTTPSPort))
		}
	}
	if m.HubLine() {
		set(update.CheckHub, true, "the line to the hub stands")
	} else {
		set(update.CheckHub, false, "there is no line to the hub")
	}
	set(update.CheckRoles, true, "all processes run")
	var bad []string
	for _, r := range s.Roles {
		if r.State != "running" && r.State != "finished" {
			bad = append(bad, fmt.Sprintf("%s is %s %s", r.Name, r.State, r.LastEnd))
		}
	}
	if len(bad) > 0 || len(s.Roles) == 0 {
		set(update.CheckRoles, false, "%s", strings.Join(bad, ", "))
	}
	return l
}

func withZone(a netip.Addr, link string) netip.Addr {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return a.WithZone(link)
	}
	return a
}

// ownAddress is one that others reach the box by.
func ownAddress(links []control.Link) (netip.Addr, bool) {
	for _, link := range links {
		for _, p := range link.Addresses {
			if a := p.Addr(); link.Carrier && a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// answers speaks to the box's own page as anybody would: through the gateway, by
// its own address, and it has to be the certificate that the console shows.
func answers(ctx context.Context, a netip.Addr, port uint16, fingerprint string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	seen := ""
	d := tls.Dialer{Config: &tls.Config{
		// Whose certificate it is, is what is asked here; it is compared below.
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("it shows no certificate")
			}
			sum := sha256.Sum256(s.PeerCertificates[0].Raw)
			seen = hex.EncodeToString(sum[:])
			return nil
		},
	}}
	at := net.JoinHostPort(a.String(), strconv.Itoa(int(port)))
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", at, err)
	}
	_ = c.Close()
	if want := strings.ToLower(strings.ReplaceAll(fingerprint, ":", "")); want == "" || want != seen {
		return fmt.Errorf("%s answers with another certificate than the console shows", at)
	}
	return nil
}
