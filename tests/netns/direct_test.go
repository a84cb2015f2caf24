package netns

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/carrier"
	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/direct"
	"gatehouse/appliance/relay"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
	"gatehouse/netfilter"
)

// pass is what a part of a session is given.
type pass struct {
	Key, Ticket  []byte
	Certificate  []byte
	Organisation []byte
	Grant        []byte // signed
	Side         session.Side
	Gateway      string // where the end dials it
	Seen         string
	Admitted     []netip.Prefix // none: everywhere
	Copy         int            // bytes that the technician's end sends once there is a direct way
	Lies         []string       // offers of a technician's end that is hostile
}

func (p pass) certificate() (tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(p.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(p.Certificate)
	return tls.Certificate{Certificate: [][]byte{p.Certificate}, PrivateKey: key, Leaf: leaf}, err
}

// meetPart is a gateway on port 443.
func meetPart(args []string, w io.Writer) error {
	var p pass
	if err := json.Unmarshal([]byte(args[0]), &p); err != nil {
		return err
	}
	own, err := p.certificate()
	if err != nil {
		return err
	}
	r, err := relay.New(relay.Config{
		Certificate: own, Organisation: func() ed25519.PublicKey { return p.Organisation }, Now: time.Now,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), MaxWaiting: 8, MaxJoined: 8, Idle: time.Minute,
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":443")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			r.Handle(context.Background(), c.(*net.TCPConn), nil, func() {})
		}()
	}
}

// endPart is one end of a session. It writes which path carries, each time that
// this changes, and what became of a copy.
func endPart(args []string, w io.Writer) error {
	var p pass
	if err := json.Unmarshal([]byte(args[0]), &p); err != nil {
		return err
	}
	own, err := p.certificate()
	if err != nil {
		return err
	}
	g, err := session.OpenGrant(p.Organisation, p.Grant, time.Now())
	if err != nil {
		return err
	}
	ctx := context.Background()
	t, side, err := p.meet(ctx, g, own)
	if err != nil {
		return err
	}
	begun := time.Now()
	better := make(chan struct{})
	var once sync.Once
	s := carrier.New(side, carrier.Config{OnPath: func(best carrier.Kind, _ bool) {
		fmt.Fprintf(w, "path %s %d\n", best, time.Since(begun).Milliseconds())
		if best > carrier.Relay {
			once.Do(func() { close(better) })
		}
	}})
	if err := s.Attach(ctx, t, carrier.Relay); err != nil {
		return err
	}
	d, err := p.direct(g, own, s)
	if err != nil {
		return err
	}
	if p.Side == session.AgentSide {
		return serveEnd(ctx, s, d)
	}
	st, err := s.Open(ctx)
	if err != nil {
		return err
	}
	if p.Copy > 0 {
		go func() {
			<-better
			fmt.Fprintln(w, "copy", sendCopy(ctx, s, p.Copy))
		}()
	}
	if len(p.Lies) > 0 {
		return lie(st, p.Lies, w)
	}
	return d.Run(ctx, st)
}

// meet joins the end with the other at the gateway.
func (p pass) meet(ctx context.Context, g session.Grant, own tls.Certificate) (net.Conn, carrier.Side, error) {
	c, err := net.Dial("tcp", p.Gateway)
	if err != nil {
		return nil, 0, err
	}
	if c, err = relay.Meet(ctx, c, g.Gateways[0].Key, own, p.Ticket); err != nil {
		return nil, 0, err
	}
	side, finish := carrier.Agent, relay.Agent
	if p.Side == session.TechnicianSide {
		side, finish = carrier.Technician, relay.Technician
	}
	t, err := finish(ctx, c, g, own)
	if err != nil {
		return nil, 0, err
	}
	return t, side, nil
}

// lie says where to look, and what it is answered with.
func lie(st *carrier.Stream, offers []string, w io.Writer) error {
	if err := wire.WriteOpen(st, wire.Open{Do: wire.Direct}); err != nil {
		return err
	}
	if _, err := wire.ReadReply(st); err != nil {
		return err
	}
	for _, o := range offers {
		if _, err := st.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(o))), o...)); err != nil {
			return err
		}
		b := make([]byte, 4096)
		n, err := st.Read(b)
		fmt.Fprintln(w, "answer", n > 0, err)
		if err != nil {
			return nil
		}
	}
	fmt.Fprintln(w, "answer waits")
	select {} // until the test closes standard input
}

func (p pass) direct(g session.Grant, own tls.Certificate, s *carrier.Session) (*direct.Search, error) {
	seen, _ := netip.ParseAddr(p.Seen) // none: the zero one
	return direct.New(direct.Config{
		Side: p.Side, Grant: g, Certificate: own, Addresses: direct.LinkAddresses, Seen: seen, Attach: s.Attach,
		Admitted: func(a netip.Addr) bool {
			return len(p.Admitted) == 0 || slices.ContainsFunc(p.Admitted, func(p netip.Prefix) bool { return p.Contains(a) })
		},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
}

// serveEnd takes streams: a search, and copies, whose hash it answers with.
func serveEnd(ctx context.Context, s *carrier.Session, d *direct.Search) error {
	for {
		st, err := s.Accept(ctx)
		if err != nil {
			return err
		}
		go func() {
			defer st.Close()
			o, err := wire.ReadOpen(st)
			switch {
			case err != nil:
			case o.Do == wire.Direct:
				slog.Error("the search is over", "err", d.Run(ctx, st))
			default:
				h := sha256.New()
				if _, err := io.Copy(h, st); err == nil {
					st.Write(h.Sum(nil))
					st.CloseWrite()
				}
			}
		}()
	}
}

// sendCopy sends n bytes over some seconds and says whether they came.
func sendCopy(ctx context.Context, s *carrier.Session, n int) string {
	st, err := s.Open(ctx)
	if err != nil {
		return err.Error()
	}
	defer st.Close()
	if err := wire.WriteOpen(st, wire.Open{Do: wire.Forward}); err != nil {
		return err.Error()
	}
	h := sha256.New()
	chunk := make([]byte, 256<<10)
	for range n / len(chunk) {
		rand.Read(chunk)
		h.Write(chunk)
		if _, err := st.Write(chunk); err != nil {
			return err.Error()
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := st.CloseWrite(); err != nil {
		return err.Error()
	}
	got, err := io.ReadAll(st)
	switch {
	case err != nil:
		return err.Error()
	case !bytes.Equal(got, h.Sum(nil)):
		return "has another hash"
	}
	return "whole"
}

// meeting is a session whose ends find each other in their namespaces.
type meeting struct {
	gateway, agent, technician pass
}

// newMeeting makes its keys, grant and tickets.
func newMeeting(t *testing.T) *meeting {
	t.Helper()
	public, signer, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var m meeting
	var keys [3]session.Key
	for i, p := range []*pass{&m.gateway, &m.agent, &m.technician} {
		own := certtest.Self(t, certtest.Undated)
		if p.Key, err = x509.MarshalPKCS8PrivateKey(own.PrivateKey); err != nil {
			t.Fatal(err)
		}
		p.Certificate = own.Certificate[0]
		keys[i], p.Organisation = session.KeyOf(own.Leaf), public
	}
	now := time.Now().Truncate(time.Second)
	g := session.Grant{
		ID: session.ID{1}, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: session.TLS,
		Key: keys[2], Agent: keys[1], Target: session.Target{Name: "Server", Kind: session.SSH, Host: "192.0.2.77", Port: 22},
		Functions: right.RemoteControl, Recording: session.RecordingOff, From: now.Add(-time.Minute), Until: now.Add(time.Hour),
		Gateways: []session.Gateway{{Address: "gate.example.com:443", Key: keys[0]}},
	}
	grant, err := g.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for p, side := range map[*pass]session.Side{&m.agent: session.AgentSide, &m.technician: session.TechnicianSide} {
		p.Grant, p.Side = grant, side
		if p.Ticket, err = g.Ticket(session.ID{2}, side, keys[0], now).Sign(signer); err != nil {
			t.Fatal(err)
		}
	}
	return &m
}

func (p pass) String() string {
	b, _ := json.Marshal(p)
	return string(b)
}

// start has the gateway and the agent run on the box, and the technician's end
// elsewhere; what that writes comes line by line.
func (m *meeting) start(t *testing.T, box, elsewhere *Host) *endLines {
	t.Helper()
	waitLine(t, box.Start(t, "meet", m.gateway.String()))
	m.agent.Gateway = "127.0.0.1:443"
	agent := box.Start(t, "end", m.agent.String())
	go io.Copy(io.Discard, agent.Stdout())
	p := elsewhere.Start(t, "end", m.technician.String())
	l := &endLines{t: t, agent: agent, lines: make(chan string, 100)}
	go func() {
		defer close(l.lines)
		for s := bufio.NewScanner(p.Stdout()); s.Scan(); {
			l.lines <- s.Text()
		}
	}()
	return l
}

// endLines is what a technician's end says.
type endLines struct {
	t     *testing.T
	agent *Process
	lines chan string
}

var errQuiet = errors.New("nothing was said")

func (l *endLines) within(d time.Duration) (string, error) {
	select {
	case s, ok := <-l.lines:
		if !ok {
			return "", io.ErrUnexpectedEOF
		}
		l.t.Log(s)
		return s, nil
	case <-time.After(d):
		return "", errQuiet
	}
}

// until skips lines up to one that begins so, and returns the rest of it.
func (l *endLines) until(begin string) string {
	l.t.Helper()
	for {
		s, err := l.within(40 * time.Second)
		if err != nil {
			l.t.Fatalf("waiting for %q: %v", begin, err)
		}
		if rest, ok := strings.CutPrefix(s, begin); ok {
			return strings.TrimSpace(rest)
		}
	}
}

// took is the time from the first path to this one, in milliseconds.
func (l *endLines) took(kind string) time.Duration {
	l.t.Helper()
	var ms int
	if _, err := fmt.Sscan(l.until("path "+kind), &ms); err != nil {
		l.t.Fatal(err)
	}
	return time.Duration(ms) * time.Millisecond
}

// rules loads an nft script.
func rules(t *testing.T, h *Host, script string) {
	t.Helper()
	h.Command(t, "nft", script)
}

// neighbours are a box with its packet filter and a technician on one network.
func neighbours(t *testing.T) lab {
	t.Helper()
	l := newLab(t)
	l.apply(t, netfilter.State{Phase: control.StateReady})
	return l
}

func TestSES3_OneNetworkTakesOverInTwoSeconds(t *testing.T) {
	l, m := neighbours(t), newMeeting(t)
	m.technician.Gateway, m.technician.Seen = boxV4+":443", boxV4
	m.agent.Seen = nearV4
	end := m.start(t, l.box, l.near)
	end.took("relay")
	if d := end.took("tcp"); d > 2*time.Second {
		t.Errorf("the direct path took over after %s", d)
	}
}

// A technician's own packet filter lets nobody call it.
func TestSES3_OneNetworkByUDP(t *testing.T) {
	for name, also := range map[string]string{"IPv4": "add rule inet t in meta nfproto ipv6 udp dport != 443 drop", "IPv6": "add rule inet t in meta nfproto ipv4 meta l4proto udp drop"} {
		t.Run(name, func(t *testing.T) {
			l, m := neighbours(t), newMeeting(t)
			rules(t, l.near, "add table inet t; add chain inet t in { type filter hook input priority 0; policy accept; }; "+
				"add rule inet t in meta l4proto { tcp, udp } ct state new drop; "+also)
			m.technician.Gateway, m.technician.Seen = boxV4+":443", boxV4
			m.agent.Seen = nearV4
			end := m.start(t, l.box, l.near)
			end.took("relay")
			if d := end.took("udp"); d > 2*time.Second {
				t.Errorf("the direct path took over after %s", d)
			}
		})
	}
}

func TestSES3_CutDirectPathLosesNoByte(t *testing.T) {
	l, m := neighbours(t), newMeeting(t)
	m.technician.Gateway, m.technician.Copy = boxV4+":443", 128<<20
	end := m.start(t, l.box, l.near)
	end.took("relay")
	end.took("tcp")
	time.Sleep(500 * time.Millisecond) // of the copy
	rules(t, l.near, "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy accept; }; add chain inet cut out { type filter hook output priority 0; policy accept; }; "+
		"add rule inet cut in iifname lan tcp sport != 443 drop; add rule inet cut in iifname lan meta l4proto udp drop; "+
		"add rule inet cut out oifname lan tcp dport != 443 drop; add rule inet cut out oifname lan meta l4proto udp drop")
	end.took("relay")
	if got := end.until("copy "); got != "whole" {
		t.Errorf("a copy over the cut %s", got)
	}
	rules(t, l.near, "delete table inet cut")
	if got := end.until("path "); strings.HasPrefix(got, "relay") { // and a way is found again: by either, the round may be under way
		t.Errorf("after the cut: %s", got)
	}
}

// TestSES3_HostileCandidates has the agent told to look where it must not. What
// leaves the box but to the technician and the gateway is counted.
func TestSES3_HostileCandidates(t *testing.T) {
	offer := func(tcp, udp int, addresses ...string) string {
		b, err := json.Marshal(struct {
			Round     int      `json:"round"`
			Addresses []string `json:"addresses"`
			TCP       int      `json:"tcp"`
			UDP       int      `json:"udp"`
			Secret    []byte   `json:"secret"`
		}{1, addresses, tcp, udp, make([]byte, 32)})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	others := slices.Repeat([]string{"192.0.2.77"}, 8)
	for name, test := range map[string]struct {
		offer string
		taken bool // as an offer, though not one of its addresses is tried
		sent  bool // something: the count would show it
	}{
		"the technician":      {offer(8080, 8080, nearV4), true, true},
		"the box itself":      {offer(8080, 8080, boxV4, boxV6, "127.0.0.1", "::1", "0.0.0.0"), true, false},
		"other people":        {offer(8080, 8080, "192.0.2.77", farV4, "2001:db8:1::77", farV6), true, false},
		"groups":              {offer(8080, 8080, "224.0.0.251", "ff02::fb", "255.255.255.255", "192.0.2.255", "169.254.169.254"), true, false},
		"port 22":             {offer(22, 8080, nearV4), false, false},
		"port 53":             {offer(8080, 53, nearV4), false, false},
		"thousands":           {offer(8080, 8080, slices.Repeat(others, 9)...), false, false},
		"not an offer at all": {"GET / HTTP/1.1\r\n\r\n", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, m := neighbours(t), newMeeting(t)
			rules(t, l.box, "add table inet seen; add chain inet seen out { type filter hook output priority 0; }; "+
				"add rule inet seen out ip protocol icmp accept; add rule inet seen out meta l4proto ipv6-icmp accept; "+
				"add rule inet seen out tcp sport 443 accept; add rule inet seen out tcp dport 443 accept; "+
				"add rule inet seen out meta l4proto { tcp, udp } counter")
			m.technician.Gateway, m.technician.Lies = boxV4+":443", []string{test.offer}
			m.agent.Admitted = []netip.Prefix{netip.MustParsePrefix(nearV4 + "/32"), netip.MustParsePrefix("192.0.2.255/32"), netip.MustParsePrefix(boxV4 + "/32"),
				netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("224.0.0.0/4")}
			end := m.start(t, l.box, l.near)
			end.took("relay")
			if got := end.until("answer "); strings.HasPrefix(got, "true") != test.taken {
				t.Errorf("the agent answered: %s", got)
			}
			time.Sleep(1500 * time.Millisecond) // the pings and calls of a round that is taken
			if got := l.box.Command(t, "nft", "list table inet seen"); strings.Contains(got, "counter packets 0 ") == test.sent {
				t.Errorf("what left the box is not what may:\n%s", got)
			}
		})
	}
}

// apart are a box and a technician, each behind a NAT, with two providers between.
type apart struct {
	box, technician, boxNAT, technicianNAT, boxProvider, provider *Host
}

const (
	boxPublic        = "203.0.113.1"
	technicianPublic = "198.51.100.1"
)

// newApart makes them. A NAT that is open says of a datagram too much that
// nobody is here, and remembers it; one that is not drops it.
func newApart(t *testing.T, open bool) apart {
	t.Helper()
	a := apart{New(t, "box"), New(t, "technician"), New(t, "box NAT"), New(t, "technician NAT"), New(t, "box provider"), New(t, "provider")}
	Connect(t, a.box, "eth0", a.boxNAT, "lan")
	Connect(t, a.technician, "eth0", a.technicianNAT, "lan")
	Connect(t, a.boxNAT, "wan", a.boxProvider, "client")
	Connect(t, a.technicianNAT, "wan", a.provider, "client")
	Connect(t, a.boxProvider, "peer", a.provider, "peer")
	a.box.Up(t, "eth0", "10.1.0.5/24")
	a.boxNAT.Up(t, "lan", "10.1.0.1/24")
	a.boxNAT.Up(t, "wan", boxPublic+"/24")
	a.boxProvider.Up(t, "client", "203.0.113.254/24")
	a.boxProvider.Up(t, "peer", "192.0.2.1/24")
	a.provider.Up(t, "peer", "192.0.2.2/24")
	a.provider.Up(t, "client", "198.51.100.254/24")
	a.technicianNAT.Up(t, "wan", technicianPublic+"/24")
	a.technicianNAT.Up(t, "lan", "10.2.0.1/24")
	a.technician.Up(t, "eth0", "10.2.0.5/24")
	a.box.Route(t, "0.0.0.0/0", "10.1.0.1", 0)
	a.technician.Route(t, "0.0.0.0/0", "10.2.0.1", 0)
	a.boxNAT.Route(t, "0.0.0.0/0", "203.0.113.254", 0)
	a.technicianNAT.Route(t, "0.0.0.0/0", "198.51.100.254", 0)
	a.boxProvider.Route(t, "0.0.0.0/0", "192.0.2.2", 0)
	a.provider.Route(t, "0.0.0.0/0", "192.0.2.1", 0)
	for _, h := range []*Host{a.boxNAT, a.technicianNAT, a.boxProvider, a.provider} {
		h.Forward(t)
	}
	input := "drop"
	if open {
		input = "accept"
	}
	for _, h := range []*Host{a.boxNAT, a.technicianNAT} {
		rules(t, h, "add table ip nat; add chain ip nat out { type nat hook postrouting priority srcnat; }; add rule ip nat out oifname wan masquerade; "+
			"add chain ip nat in { type nat hook prerouting priority dstnat; }; add chain ip nat own { type filter hook input priority 0; policy "+input+"; }; "+
			"add chain ip nat through { type filter hook forward priority 0; policy accept; }; add rule ip nat through ct status dnat accept; add rule ip nat through iifname wan ct state new drop")
	}
	rules(t, a.boxNAT, "add rule ip nat in iifname wan tcp dport 443 dnat to 10.1.0.5")
	lab{box: a.box}.apply(t, netfilter.State{Phase: control.StateReady})
	return a
}

func (a apart) meet(t *testing.T) *endLines {
	t.Helper()
	m := newMeeting(t)
	m.technician.Gateway, m.technician.Seen = boxPublic+":443", boxPublic
	m.agent.Seen = technicianPublic
	return m.start(t, a.box, a.technician)
}

func TestSES3_TwoNATsByUDP(t *testing.T) {
	for name, open := range map[string]bool{"that drop strangers": false, "that answer strangers": true} {
		t.Run(name, func(t *testing.T) {
			end := newApart(t, open).meet(t)
			end.took("relay")
			if d := end.took("udp"); d > 10*time.Second {
				t.Errorf("the direct path took over after %s", d)
			}
		})
	}
}

// The box's NAT gives out ports that nobody can foresee; the technician has none.
func TestSES3_OneNATOfRandomPorts(t *testing.T) {
	a := newApart(t, false)
	rules(t, a.boxNAT, "flush chain ip nat out; add rule ip nat out oifname wan masquerade random")
	rules(t, a.provider, "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in meta l4proto tcp ct state new drop")
	m := newMeeting(t)
	m.technician.Gateway, m.technician.Seen = boxPublic+":443", boxPublic
	m.agent.Seen = "198.51.100.254"
	end := m.start(t, a.box, a.provider)
	end.took("relay")
	end.took("udp")
}

func TestSES3_FilteredUDPStaysOnTheRelay(t *testing.T) {
	a := newApart(t, false)
	rules(t, a.provider, "add table ip t; add chain ip t f { type filter hook forward priority 0; policy accept; }; add rule ip t f meta l4proto udp drop")
	end := a.meet(t)
	end.took("relay")
	if s, err := end.within(13 * time.Second); !errors.Is(err, errQuiet) {
		t.Errorf("without a way by UDP it says %q, %v", s, err)
	}
}
