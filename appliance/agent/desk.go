package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"gatehouse/appliance/admission"
	"gatehouse/appliance/agent/attending"
	"gatehouse/appliance/agent/browser"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/agent/work"
	"gatehouse/appliance/control"
	"gatehouse/appliance/direct"
	"gatehouse/appliance/files/remote"
	"gatehouse/appliance/files/serve"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
	"gatehouse/netfilter/allowlist"
)

// leaveFree is what recordings that wait for the hub leave of the data volume, in bytes.
const leaveFree = 64 << 20

// desk is the agent's sessions, with the tasks that they need.
type desk struct {
	*attending.Desk
	lists     *admission.Watch
	leftovers *spool.Leftovers
}

// openDesk makes it of what the box is.
func (s *site) openDesk(env control.Environment, c *control.Client) (*desk, error) {
	own, err := endCertificate(s.id.device)
	if err != nil {
		return nil, err
	}
	d := &desk{lists: admission.Open(env.Admission, s.log)}
	d.leftovers = &spool.Leftovers{Folder: filepath.Join(env.State, "recordings"), Log: s.log}
	server := &server{control: c, own: own, lists: d.lists, spool: d.leftovers.Folder, log: s.log}
	// The one gateway there is is this box's own, whatever names people reach it by.
	gateway := func(ctx context.Context, _ session.Gateway) (net.Conn, error) {
		m, err := control.OpMeeting.Call(ctx, c, control.None{})
		if err != nil {
			return nil, err
		}
		return dialOwn(ctx, m.Listens)
	}
	browsers := &browser.Desk{Certificate: own, Gateway: gateway, Log: s.log}
	d.Desk, err = attending.New(attending.Config{
		Site: s.id.site, Certificate: own, Now: time.Now, Log: s.log, Kept: d.leftovers.Kept, Serve: server.serve,
		Gateway: gateway, Browser: browsers.Answer,
	})
	if err != nil {
		return nil, err
	}
	d.leftovers.Tell = d.Desk.Tell
	return d, nil
}

// dialOwn connects to a listener of this machine.
func dialOwn(ctx context.Context, listens string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(listens)
	if err != nil {
		return nil, fmt.Errorf("the gateway has not said where it listens: %w", err)
	}
	if to.Addr().IsUnspecified() {
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
	}
	var dial net.Dialer
	return dial.DialContext(ctx, "tcp", to.String())
}

// server makes what serves a session.
type server struct {
	control *control.Client
	own     tls.Certificate
	lists   *admission.Watch
	spool   string
	claims  remote.Claims // on the parts of files that sessions write to
	log     *slog.Logger
}

func (s *server) serve(one attending.Session) (attending.Work, error) {
	ways, err := s.ways(one)
	if err != nil {
		return nil, err
	}
	g := one.Grant
	return work.New(work.Config{
		Direct: ways,
		Grant:  g, Material: one.Material, Tell: one.Tell, Spool: s.spool, Leave: leaveFree, Now: time.Now, Log: s.log,
		Dial: (&net.Dialer{}).DialContext, Own: direct.LinkAddresses, Idle: time.Duration(one.Material.Idle) * time.Minute,
		Audit: s.audit, Files: serve.Over(serve.Config{
			Session: g.ID, Technician: g.Technician, Address: one.Material.Source, Target: g.Target.Name, Functions: g.Functions, Audit: s.audit, Tell: one.Tell,
			At: net.JoinHostPort(g.Target.Host, strconv.Itoa(int(g.Target.Port))), Claims: &s.claims,
		}),
		Box: work.Box{
			Status: func(ctx context.Context) (control.Status, error) {
				return control.OpStatus.Call(ctx, s.control, control.None{})
			},
			Log: func(ctx context.Context, q control.LogQuery) (control.LogLines, error) {
				return control.OpLog.Call(ctx, s.control, q)
			},
			Resolve: func(ctx context.Context, name string) ([]netip.Addr, error) {
				return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
			},
			Connect: (&net.Dialer{}).DialContext,
		},
	})
}

func (s *server) audit(ctx context.Context, e control.Event) error {
	_, err := control.OpAudit.Call(ctx, s.control, e)
	return err
}

// ways looks for ways without the gateway, to where the lists let a technician
// come from. A browser's session has ways of its own.
func (s *server) ways(one attending.Session) (func(context.Context, wire.Stream, wire.Open) error, error) {
	if one.Attach == nil || !one.Material.Direct {
		return nil, nil
	}
	seen, err := netip.ParseAddr(one.Material.Source)
	if err != nil {
		seen = netip.Addr{} // the hub does not say
	}
	search, err := direct.New(direct.Config{
		Side: session.AgentSide, Grant: one.Grant, Certificate: s.own, Addresses: direct.LinkAddresses, Seen: seen, Attach: one.Attach,
		Admitted: func(a netip.Addr) bool { return s.lists.Scopes(a)&allowlist.Console != 0 },
		Log:      s.log,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, st wire.Stream, _ wire.Open) error { return search.Run(ctx, st) }, nil
}

// endCertificate holds the device key, by which ends pin this one. Nothing
// else of it counts, so it is made at each start.
func endCertificate(key *ecdsa.PrivateKey) (tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gatehouse agent"},
		NotBefore: time.Unix(1500000000, 0), NotAfter: time.Unix(4000000000, 0), // clocks are not what is judged
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the certificate of the agent's end: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the certificate of the agent's end: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
