package browser

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/datachannel"
	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"github.com/pion/ice/v4"
	"github.com/pion/logging"
	"github.com/pion/sctp"

	"gatehouse/appliance/session"
)

// What ICE takes for lost, and SCTP for its part of a packet.
const (
	quietTime = 5 * time.Second // without a packet: the browser may be gone
	lostTime  = 8 * time.Second // and after so long more it is
	aliveTime = 2 * time.Second
	partTime  = 500 * time.Millisecond
	sctpMTU   = 1191
	inbound   = 1 << 20 // bytes of SCTP that no stream has taken: the windows of all streams
)

// peer is one connection with the browser.
type peer struct {
	s               *Session
	offer           offer
	ufrag, password string
	ice             *ice.Agent
	v4, v6          *gateway
	direct          []face
	log             *slog.Logger

	ctx     context.Context // until the connection ends
	end     context.CancelCauseFunc
	expects context.Context // until no further connection through the gateway is waited for
	enough  context.CancelFunc
	relayed atomic.Bool // the way that is used goes through the gateway
}

// unrouted stands in ICE for the gateway's address of a family that it has no
// address of. No browser is told.
var unrouted = [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:9"), netip.MustParseAddrPort("[2001:db8::1]:9")}

func newPeer(s *Session, o offer, hosts []netip.AddrPort) (*peer, error) {
	p := &peer{s: s, offer: o, log: s.cfg.Log}
	p.ufrag, p.password = names()
	p.ctx, p.end = context.WithCancelCause(s.ctx)
	p.expects, p.enough = context.WithCancel(p.ctx)
	logs := silent{s.cfg.Log}
	var err error
	p.ice, err = ice.NewAgentWithOptions(
		ice.WithLocalCredentials(p.ufrag, p.password), ice.WithNet(nowhere{}), ice.WithMulticastDNSMode(ice.MulticastDNSModeDisabled),
		ice.WithNetworkTypes([]ice.NetworkType{ice.NetworkTypeTCP4, ice.NetworkTypeTCP6, ice.NetworkTypeUDP4, ice.NetworkTypeUDP6}),
		ice.WithCandidateTypes([]ice.CandidateType{ice.CandidateTypeHost}), ice.WithDisableActiveTCP(), ice.WithIncludeLoopback(),
		ice.WithDisconnectedTimeout(quietTime), ice.WithFailedTimeout(lostTime), ice.WithKeepaliveInterval(aliveTime), ice.WithLoggerFactory(logs),
	)
	if err != nil {
		p.end(err)
		return nil, fmt.Errorf("beginning with ICE: %w", err)
	}
	local := unrouted
	for _, h := range hosts {
		i := 0
		if h.Addr().Is6() {
			i = 1
		}
		if local[i] == unrouted[i] {
			local[i] = h
		}
	}
	p.v4, p.v6 = newGateway(local[0], p.gone), newGateway(local[1], p.gone)
	err = errors.Join(p.local("tcp", local[0], p.v4), p.local("tcp", local[1], p.v6), p.lookDirect(),
		p.ice.OnConnectionStateChange(func(c ice.ConnectionState) {
			if c == ice.ConnectionStateFailed {
				p.end(errors.New("the browser is gone"))
			}
		}),
		p.ice.OnSelectedCandidatePairChange(func(local, _ ice.Candidate) {
			p.relayed.Store(local.NetworkType().IsTCP())
			p.s.changed(p, p.way())
		}))
	if err != nil {
		p.end(err)
		p.close()
		return nil, fmt.Errorf("beginning with ICE: %w", err)
	}
	return p, nil
}

// local has ICE use a socket.
func (p *peer) local(network string, a netip.AddrPort, c net.PacketConn) error {
	cfg := &ice.CandidateHostConfig{Network: network, Address: a.Addr().String(), Port: int(a.Port()), Component: ice.ComponentRTP}
	if network == "tcp" {
		cfg.TCPType = ice.TCPTypePassive
	}
	candidate, err := ice.NewCandidateHost(cfg)
	if err != nil {
		return err
	}
	return p.ice.AddVirtualCandidate(candidate, c)
}

// lookDirect opens a socket of the agent's own towards the technician's
// address, where that is allowed. The ports are the browser's; the addresses in
// its offer are not followed, since they could be anybody's.
func (p *peer) lookDirect() error {
	source := p.s.cfg.Source
	if !source.IsValid() {
		return nil
	}
	// Nothing is sent: the kernel says which of our addresses it would be sent from.
	route, err := net.Dial("udp", netip.AddrPortFrom(source, 9).String())
	if err != nil {
		p.log.Debug("no direct way to the technician", "to", source, "err", err)
		return nil
	}
	own, ok := route.LocalAddr().(*net.UDPAddr)
	if err := route.Close(); err != nil || !ok {
		return err
	}
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: own.IP})
	if err != nil {
		return fmt.Errorf("opening a socket for the direct way: %w", err)
	}
	bound, ok := c.LocalAddr().(*net.UDPAddr)
	if !ok {
		return c.Close()
	}
	at := netip.AddrPortFrom(bound.AddrPort().Addr().Unmap().WithZone(""), bound.AddrPort().Port())
	if err := p.local("udp", at, only{c, source}); err != nil {
		return errors.Join(err, c.Close())
	}
	p.direct = append(p.direct, face{false, at})
	for _, port := range p.offer.ports {
		remote, err := ice.NewCandidateHost(&ice.CandidateHostConfig{Network: "udp", Address: source.String(), Port: int(port), Component: ice.ComponentRTP})
		if err != nil {
			return err
		}
		if err := p.ice.AddRemoteCandidate(remote); err != nil {
			return err
		}
	}
	return nil
}

// only is a socket that hears and answers one address.
type only struct {
	net.PacketConn
	source netip.Addr
}

func (o only) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := o.PacketConn.ReadFrom(b)
		if u, ok := from.(*net.UDPAddr); err != nil || ok && u.AddrPort().Addr().Unmap().WithZone("") == o.source {
			return n, from, err
		}
	}
}

func (o only) WriteTo(b []byte, to net.Addr) (int, error) {
	if u, ok := to.(*net.UDPAddr); !ok || u.AddrPort().Addr().Unmap().WithZone("") != o.source {
		return 0, fmt.Errorf("%v is not where the technician is", to)
	}
	return o.PacketConn.WriteTo(b, to)
}

// add takes a connection that came through the gateway.
func (p *peer) add(c net.Conn, from netip.AddrPort) error {
	g := p.v4
	if from.Addr().Is6() {
		g = p.v6
	}
	return g.add(c, from)
}

// gone is told when no connection through the gateway is left: a cut there is
// known at once, and not after ICE has waited for it.
func (p *peer) gone() {
	if p.relayed.Load() {
		p.end(errors.New("the gateway has ended the connection"))
	}
}

// way is the name of the way that is used.
func (p *peer) way() string {
	if p.relayed.Load() {
		return "relay"
	}
	return "udp"
}

// run waits for the browser, agrees with it on keys, and serves its streams.
func (p *peer) run() error {
	defer p.close()
	ctx, cancel := context.WithTimeout(p.ctx, arriveTime)
	defer cancel()
	conn, err := p.ice.Accept(ctx, p.offer.ufrag, p.offer.password)
	if err != nil {
		return fmt.Errorf("waiting for the browser: %w", errors.Join(err, context.Cause(p.ctx)))
	}
	secure, err := p.secure(ctx, conn)
	if err != nil {
		return err
	}
	defer secure.Close()
	association, err := sctp.ClientContext(ctx, sctp.WithNetConn(secure), sctp.WithMTU(sctpMTU), sctp.WithMaxMessageSize(maxMessage),
		sctp.WithMaxReceiveBufferSize(inbound), sctp.WithLoggerFactory(silent{p.log}))
	if err != nil {
		return fmt.Errorf("beginning with SCTP: %w", err)
	}
	defer association.Close()
	parted := make(chan struct{})
	stop := context.AfterFunc(p.ctx, func() {
		defer close(parted)
		part(association, secure)
	})
	defer func() {
		if !stop() {
			<-parted
		}
	}()
	rest := time.AfterFunc(restTime, p.enough)
	defer rest.Stop()
	p.s.connected(p)
	err = p.serve(association)
	if cause := context.Cause(p.ctx); cause != nil {
		return cause
	}
	return err
}

// part takes leave: what streams have said before, the reason of an end above
// all, still goes out.
func part(a *sctp.Association, c *dtls.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), partTime)
	defer cancel()
	if a.Shutdown(ctx) != nil {
		a.Abort("the session is over")
	}
	a.Close()
	c.Close()
}

// secure runs DTLS with the browser: by the certificate of the grant, or not at all.
func (p *peer) secure(ctx context.Context, conn net.Conn) (*dtls.Conn, error) {
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(conn), conn.RemoteAddr(),
		dtls.WithCertificates(p.s.cfg.Certificate), dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		// No sound is sent; implementations insist that its protection is agreed on.
		dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80),
		dtls.WithLoggerFactory(silent{p.log}), dtls.WithInsecureSkipVerify(true), // the next line does what counts
		dtls.WithVerifyPeerCertificate(func(shown [][]byte, _ [][]*x509.Certificate) error {
			if len(shown) == 0 || session.Key(sha256.Sum256(shown[0])) != p.s.cfg.Grant.Key {
				return fmt.Errorf("%w: the browser shows another certificate than the session was granted to", session.ErrOther)
			}
			return nil
		}))
	if err == nil {
		err = c.HandshakeContext(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("agreeing on keys with the browser: %w", err)
	}
	return c, nil
}

// serve hands each data channel to the session, and waits for all in the end.
func (p *peer) serve(a *sctp.Association) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	places := make(chan struct{}, MaxStreams)
	for {
		cfg := &datachannel.Config{LoggerFactory: silent{p.log}}
		dc, err := datachannel.Accept(a, cfg)
		if err != nil {
			return fmt.Errorf("the connection with the browser: %w", err)
		}
		select {
		case places <- struct{}{}:
		default:
			dc.Close()
			continue
		}
		if cfg.ChannelType != datachannel.ChannelTypeReliable {
			<-places
			dc.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			st := newStream(dc)
			var pump sync.WaitGroup
			pump.Go(st.pump)
			p.s.cfg.Serve(ctx, st)
			st.Close()
			pump.Wait()
		})
	}
}

// close gives back all sockets. The context has ended, or ends with it.
func (p *peer) close() {
	p.end(net.ErrClosed)
	p.enough()
	if err := p.ice.Close(); err != nil {
		p.log.Debug("a browser's connection was not closed", "err", err)
	}
	if p.v4 != nil {
		p.v4.Close()
		p.v6.Close()
	}
}

// silent is what ICE, DTLS and SCTP log to: their warnings are about packets of
// anybody, and go where they can be looked for.
type silent struct{ log *slog.Logger }

func (s silent) NewLogger(scope string) logging.LeveledLogger { return scoped{s.log, scope} }

type scoped struct {
	log   *slog.Logger
	scope string
}

func (s scoped) Trace(string)          {}
func (s scoped) Tracef(string, ...any) {}
func (s scoped) Debug(string)          {}
func (s scoped) Debugf(string, ...any) {}
func (s scoped) Info(string)           {}
func (s scoped) Infof(string, ...any)  {}
func (s scoped) Warn(msg string)       { s.log.Debug(msg, "of", s.scope) }
func (s scoped) Warnf(format string, args ...any) {
	s.log.Debug(fmt.Sprintf(format, args...), "of", s.scope)
}
func (s scoped) Error(msg string) { s.log.Debug(msg, "of", s.scope) }
func (s scoped) Errorf(format string, args ...any) {
	s.log.Debug(fmt.Sprintf(format, args...), "of", s.scope)
}
