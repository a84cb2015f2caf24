package browser

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

func certificateKey(c tls.Certificate) session.Key { return sha256.Sum256(c.Certificate[0]) }

// bench is an organisation with a gateway, an agent, and a browser's certificate.
type bench struct {
	t       testing.TB
	signer  ed25519.PrivateKey
	relay   *relay.Relay
	address netip.AddrPort
	agent   tls.Certificate
	browser tls.Certificate
	grant   session.Grant
	session *Session
	paths   chan string
	served  chan wire.Stream
	signals uint64
}

func newBench(t testing.TB, change func(*Config)) *bench {
	t.Helper()
	public, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, signer: signer, agent: certtest.Self(t), browser: certtest.Self(t), paths: make(chan string, 100), served: make(chan wire.Stream, 100)}
	b.relay, err = relay.New(relay.Config{
		Certificate: certtest.Self(t), Organisation: func() ed25519.PublicKey { return public },
		Now: time.Now, Log: slog.New(slog.DiscardHandler), MaxWaiting: 100, MaxJoined: 100, Idle: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.listen()
	now := time.Now().Truncate(time.Second)
	id, err := session.NewID(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b.grant = session.Grant{
		ID: id, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.WebRTC,
		Key: certificateKey(b.browser), Agent: certificateKey(b.agent), Target: session.Target{Name: "x", Kind: session.SSH, Host: "192.0.2.1", Port: 22},
		Functions: right.RemoteControl, Recording: session.RecordingOff, From: now, Until: now.Add(time.Hour),
		Gateways: []session.Gateway{{Address: b.address.String(), Key: b.relay.Key()}},
	}
	cfg := Config{
		Grant: b.grant, Certificate: b.agent, Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", b.address.String())
		},
		Serve: func(_ context.Context, s wire.Stream) {
			b.served <- s
			if _, err := io.Copy(s, s); err == nil {
				s.CloseWrite()
				io.Copy(io.Discard, s)
			}
		},
		OnPath: func(p string) { b.paths <- p },
	}
	if change != nil {
		change(&cfg)
	}
	if b.session, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.session.Close)
	return b
}

// listen is a gateway's port: what begins like TLS is an agent, the rest a browser.
func (b *bench) listen() {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	b.address = netip.MustParseAddrPort(l.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				first := make([]byte, 1, relay.MaxBinding)
				if _, err := io.ReadFull(c, first); err != nil {
					return
				}
				if first[0] == 22 {
					b.relay.Handle(ctx, c.(*net.TCPConn), first, func() {})
					return
				}
				for {
					if done, err := relay.FirstICE(first); err != nil {
						return
					} else if done {
						break
					}
					n, err := c.Read(first[len(first):cap(first)])
					if err != nil {
						return
					}
					first = first[:len(first)+n]
				}
				b.relay.HandleBrowser(ctx, c.(*net.TCPConn), first, func() {})
			})
		}
	})
	b.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
}

// signal is what the hub passes on of an offer, with tickets.
func (b *bench) signal(sdp string) attend.Signal {
	b.t.Helper()
	b.signals++
	s := attend.Signal{Session: b.grant.ID, Number: b.signals, SDP: sdp, Hosts: []string{b.address.Addr().String()}, Port: b.address.Port()}
	for range 2 {
		meeting, err := session.NewID(rand.Reader)
		if err != nil {
			b.t.Fatal(err)
		}
		ticket := b.grant.Ticket(meeting, session.AgentSide, b.relay.Key(), time.Now())
		ticket.Key = session.KeyOf(b.agent.Leaf)
		signed, err := ticket.Sign(b.signer)
		if err != nil {
			b.t.Fatal(err)
		}
		s.Tickets = append(s.Tickets, signed)
	}
	return s
}

// page is a browser, by another implementation of WebRTC.
type page struct {
	t  testing.TB
	pc *webrtc.PeerConnection
	dc *webrtc.DataChannel
}

func newPage(t testing.TB, own tls.Certificate, direct bool) *page {
	t.Helper()
	var e webrtc.SettingEngine
	e.DetachDataChannels()
	e.SetIncludeLoopbackCandidate(true)
	e.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	e.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4})
	if direct {
		e.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4, webrtc.NetworkTypeUDP4})
	}
	cert := webrtc.CertificateFromX509(own.PrivateKey, own.Leaf)
	pc, err := webrtc.NewAPI(webrtc.WithSettingEngine(e)).NewPeerConnection(webrtc.Configuration{Certificates: []webrtc.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	p := &page{t: t, pc: pc}
	p.dc = p.channel(nil)
	return p
}

func (p *page) channel(init *webrtc.DataChannelInit) *webrtc.DataChannel {
	p.t.Helper()
	dc, err := p.pc.CreateDataChannel("stream", init)
	if err != nil {
		p.t.Fatal(err)
	}
	return dc
}

func (p *page) offer() string {
	p.t.Helper()
	if d := p.pc.LocalDescription(); d != nil {
		return d.SDP
	}
	offer, err := p.pc.CreateOffer(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	gathered := webrtc.GatheringCompletePromise(p.pc)
	if err := p.pc.SetLocalDescription(offer); err != nil {
		p.t.Fatal(err)
	}
	<-gathered
	return p.pc.LocalDescription().SDP
}

// open waits for a channel and makes it a stream of the page's side.
func (p *page) open(dc *webrtc.DataChannel) *stream {
	p.t.Helper()
	opened := make(chan *stream, 1)
	dc.OnOpen(func() {
		d, err := dc.Detach()
		if err != nil {
			p.t.Error(err)
			return
		}
		s := newStream(d.(channel))
		go s.pump()
		opened <- s
	})
	select {
	case s := <-opened:
		return s
	case <-time.After(20 * time.Second):
		p.t.Fatal("the channel does not open")
		return nil
	}
}

// connect has a page's offer answered and taken.
func (b *bench) connect(p *page) *stream {
	b.t.Helper()
	answer, err := b.session.Answer(b.t.Context(), b.signal(p.offer()))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := p.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		b.t.Fatalf("%v\n%s", err, answer)
	}
	return p.open(p.dc)
}

func (b *bench) path(want string) {
	b.t.Helper()
	for {
		select {
		case got := <-b.paths:
			if got == want {
				return
			}
		case <-time.After(20 * time.Second):
			b.t.Fatalf("the way is not %q", want)
		}
	}
}

func echo(t testing.TB, s *stream, n int) {
	t.Helper()
	sent := make([]byte, n)
	rand.Read(sent)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if _, err := s.Write(sent); err != nil {
			t.Error(err)
		}
	})
	got := make([]byte, n)
	if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back otherwise: %v", n, err)
	}
}

func TestSES4_BrowserThroughTheGateway(t *testing.T) {
	b := newBench(t, nil)
	p := newPage(t, b.browser, true) // it could speak UDP; the agent does not offer it
	s := b.connect(p)
	b.path("relay")
	echo(t, s, 1000)
	echo(t, s, 3<<20)
	if c := b.relay.Counts(); c.Joined == 0 {
		t.Errorf("it did not go through the gateway: %+v", c)
	}
	// The end of one direction is told, and the other goes on.
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(s); err != nil || len(rest) > 0 {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("written after the end")
	}
	// A browser that goes away is known at once.
	other := p.open(p.channel(nil))
	echo(t, other, 10)
	p.pc.Close()
	b.path("")
}

func TestSES4_BrowserDirectly(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Source = netip.MustParseAddr("127.0.0.1") })
	p := newPage(t, b.browser, true)
	s := b.connect(p)
	echo(t, s, 1000)
	b.path("udp")
	echo(t, s, 1<<20)
	b.session.Close()
	if _, err := io.ReadAll(s); err == nil {
		t.Error("the session is over, and the stream ended well")
	}
}

// Where the technician's address may not be reached directly the agent opens
// nothing, and what the browser offers is not followed.
func TestSES4_NoDirectWayUnasked(t *testing.T) {
	b := newBench(t, nil)
	p := newPage(t, b.browser, true)
	answer, err := b.session.Answer(t.Context(), b.signal(p.offer()))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(answer, "udp") || strings.Count(answer, "a=candidate") != 1 {
		t.Errorf("the answer offers more than the gateway:\n%s", answer)
	}
}

func TestSES4_BrowserReconnects(t *testing.T) {
	b := newBench(t, nil)
	first := newPage(t, b.browser, false)
	s := b.connect(first)
	echo(t, s, 100)
	// The gateway is cut: the agent knows it at once.
	b.relay.Cut(func(netip.Addr) bool { return false })
	b.path("")
	first.pc.Close() // its own ICE may not know yet
	second := newPage(t, b.browser, false)
	again := b.connect(second)
	b.path("relay")
	echo(t, again, 100)
	// A third one takes the place of the second, which is alive.
	third := newPage(t, b.browser, false)
	echo(t, b.connect(third), 100)
	if _, err := io.ReadAll(again); err == nil {
		t.Error("the one before ended as if it were meant")
	}
}

func TestSES2_AnotherBrowserIsRefused(t *testing.T) {
	b := newBench(t, nil)
	evil := newPage(t, certtest.Self(t), false)
	if _, err := b.session.Answer(t.Context(), b.signal(evil.offer())); !errors.Is(err, session.ErrOther) {
		t.Errorf("an offer with another certificate: %v", err)
	}
	// A hub's line that lies: the offer says the right certificate, and who comes has another.
	honest := newPage(t, b.browser, false)
	text := evil.offer()
	right := fingerprint(honest.offer())
	answer, err := b.session.Answer(t.Context(), b.signal(strings.ReplaceAll(text, fingerprint(text), right)))
	if err != nil {
		t.Fatal(err)
	}
	if err := evil.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: answer}); err != nil {
		t.Fatal(err)
	}
	opened := make(chan struct{})
	evil.dc.OnOpen(func() { close(opened) })
	failed, once := make(chan struct{}), sync.Once{}
	evil.pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) {
		if s == webrtc.PeerConnectionStateFailed || s == webrtc.PeerConnectionStateClosed {
			once.Do(func() { close(failed) })
		}
	})
	select {
	case <-opened:
		t.Fatal("who does not hold the key has a stream")
	case <-failed:
	case <-time.After(20 * time.Second):
		t.Error("it is not refused, only silent")
	}
	select {
	case <-b.served:
		t.Fatal("a stream was served")
	default:
	}
}

func fingerprint(sdp string) string {
	_, rest, _ := strings.Cut(sdp, "a=fingerprint:sha-256 ")
	line, _, _ := strings.Cut(rest, "\r\n")
	return line
}

func TestSES5_StreamsAreBounded(t *testing.T) {
	b := newBench(t, nil)
	p := newPage(t, b.browser, false)
	s := b.connect(p)
	echo(t, s, 10)
	unordered, no := false, uint16(0)
	for name, init := range map[string]*webrtc.DataChannelInit{"unordered": {Ordered: &unordered}, "unreliable": {MaxRetransmits: &no}} {
		bad := p.open(p.channel(init))
		if _, err := bad.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: served", name)
		}
	}
	var open []*stream
	for range MaxStreams - 1 {
		next := p.open(p.channel(nil))
		echo(t, next, 10)
		open = append(open, next)
	}
	more := p.open(p.channel(nil))
	if _, err := more.Read(make([]byte, 1)); err == nil {
		t.Error("one too many is served")
	}
	open[0].Close()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		next := p.open(p.channel(nil))
		next.Write([]byte("x"))
		// Now and then the page's implementation misses that a channel was closed at once.
		giveUp := time.AfterFunc(time.Second, func() { next.Close() })
		_, err := next.Read(make([]byte, 1))
		giveUp.Stop()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a place that was given back is not given again")
		}
	}
}

func TestSES1_SessionsThatAreNone(t *testing.T) {
	b := newBench(t, nil)
	good := b.session.cfg
	for name, change := range map[string]func(*Config){
		"a tool's session":    func(c *Config) { c.Grant.Transport = session.TLS },
		"another certificate": func(c *Config) { c.Certificate = certtest.Self(t) },
		"no certificate":      func(c *Config) { c.Certificate = tls.Certificate{} },
		"no gateway":          func(c *Config) { c.Grant.Gateways = nil },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(t.Context(), cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	p := newPage(t, b.browser, false)
	offer := p.offer()
	for name, change := range map[string]func(*attend.Signal){
		"another session": func(s *attend.Signal) { s.Session[0]++ },
		"no tickets":      func(s *attend.Signal) { s.Tickets = nil },
		"used tickets":    func(s *attend.Signal) { s.Tickets = [][]byte{[]byte("{}")} },
		"no address":      func(s *attend.Signal) { s.Hosts = []string{"gateway.example"} },
		"no hosts":        func(s *attend.Signal) { s.Hosts = nil },
		"no port":         func(s *attend.Signal) { s.Port = 0 },
	} {
		s := b.signal(offer)
		change(&s)
		if answer, err := b.session.Answer(t.Context(), s); err == nil {
			t.Errorf("%s: answered %s", name, answer)
		}
	}
	b.session.Close()
	if _, err := b.session.Answer(t.Context(), b.signal(offer)); err == nil {
		t.Error("answered after the end")
	}
}

// The reason of an end is said on the streams before the connection goes.
func TestSES7_LastWordsArrive(t *testing.T) {
	over := make(chan struct{})
	said := make(chan struct{})
	b := newBench(t, func(c *Config) {
		c.Serve = func(_ context.Context, s wire.Stream) {
			<-over
			s.Write(bytes.Repeat([]byte("x"), 10<<10))
			s.Write([]byte("the owner has ended it"))
			close(said)
		}
	})
	s := b.connect(newPage(t, b.browser, false))
	close(over)
	<-said
	b.session.Close()
	text, _ := io.ReadAll(s)
	if !bytes.HasSuffix(text, []byte("xthe owner has ended it")) {
		t.Errorf("%d bytes came", len(text))
	}
}
