package netns

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// scanner sends to every port and sees every frame that comes back, so that an
// answer of any kind counts, not only those that a scanner thinks of.
type scanner struct {
	from, to netip.Addr
	link     uint32 // of a link-local target
	raw      int    // raw TCP socket
	udp      int
	wire     *packet.Conn
}

func newScanner(link, from, to string) (*scanner, error) {
	s := &scanner{}
	var err error
	if s.from, err = netip.ParseAddr(from); err != nil {
		return nil, err
	}
	if s.to, err = netip.ParseAddr(to); err != nil {
		return nil, err
	}
	ifi, err := net.InterfaceByName(link)
	if err != nil {
		return nil, err
	}
	if s.wire, err = packet.Listen(ifi, packet.Datagram, unix.ETH_P_ALL, nil); err != nil {
		return nil, err
	}
	rc, err := s.wire.SyscallConn()
	if err != nil {
		return nil, err
	}
	if cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20)
	}); cerr != nil || err != nil {
		return nil, errors.Join(cerr, err)
	}
	family := unix.AF_INET
	if s.to.Is6() {
		family = unix.AF_INET6
	}
	if s.raw, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err != nil {
		return nil, err
	}
	if s.udp, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if s.to.Is6() && s.to.IsLinkLocalUnicast() {
		// A link has link-local addresses of its own; the sender must be the one
		// that the checksum is made for.
		s.link = uint32(ifi.Index)
		if err := unix.Bind(s.raw, &unix.SockaddrInet6{Addr: s.from.As16(), ZoneId: s.link}); err != nil {
			return nil, fmt.Errorf("sending from %s: %w", from, err)
		}
	}
	return s, nil
}

func (s *scanner) close() {
	s.wire.Close()
	unix.Close(s.raw)
	unix.Close(s.udp)
}

func (s *scanner) sockaddr(port uint16) unix.Sockaddr {
	if s.to.Is6() {
		return &unix.SockaddrInet6{Port: int(port), Addr: s.to.As16(), ZoneId: s.link}
	}
	return &unix.SockaddrInet4{Port: int(port), Addr: s.to.As4()}
}

func (s *scanner) syn(sport, dport uint16) error {
	p := make([]byte, 20)
	binary.BigEndian.PutUint16(p[0:], sport)
	binary.BigEndian.PutUint16(p[2:], dport)
	binary.BigEndian.PutUint32(p[4:], 0x67617465)
	p[12], p[13] = 5<<4, 0x02
	binary.BigEndian.PutUint16(p[14:], 1024)
	sum := uint32(unix.IPPROTO_TCP) + uint32(len(p))
	for _, b := range [][]byte{s.from.AsSlice(), s.to.AsSlice(), p} {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[16:], ^uint16(sum))
	return unix.Sendto(s.raw, p, 0, s.sockaddr(0))
}

func routeGone(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENOBUFS)
}

// capture calls seen for every packet from the target until the socket closes.
func (s *scanner) capture(seen func(kind string, port uint16)) {
	b := make([]byte, 2048)
	for {
		n, _, err := s.wire.ReadFrom(b)
		if err != nil {
			return
		}
		if kind, port := answer(b[:n], s.to); kind != "" {
			seen(kind, port)
		}
	}
}

// answer says what a packet from the target is: syn-ack, rst, tcp, udp,
// unreachable (with the port that was asked), or else its protocol.
func answer(p []byte, target netip.Addr) (string, uint16) {
	var proto byte
	var body []byte
	var to netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && target.Is4():
		if netip.AddrFrom4([4]byte(p[12:16])) != target || len(p) < int(p[0]&15)*4 {
			return "", 0
		}
		to = netip.AddrFrom4([4]byte(p[16:20]))
		proto, body = p[9], p[int(p[0]&15)*4:]
	case len(p) >= 40 && p[0]>>4 == 6 && target.Is6():
		if netip.AddrFrom16([16]byte(p[8:24])) != target {
			return "", 0
		}
		to = netip.AddrFrom16([16]byte(p[24:40]))
		proto, body = p[6], p[40:]
		if proto == 0 && len(body) >= 8 { // hop-by-hop options, RFC 8200, 4.3
			proto, body = body[0], body[min(len(body), 8*(int(body[1])+1)):]
		}
	default:
		return "", 0
	}
	if len(body) < 8 {
		return fmt.Sprintf("short protocol %d", proto), 0
	}
	port := binary.BigEndian.Uint16(body)
	switch proto {
	case unix.IPPROTO_TCP:
		if len(body) < 14 {
			return "short tcp", port
		}
		switch flags := body[13]; {
		case flags&0x12 == 0x12:
			return "syn-ack", port
		case flags&0x04 != 0:
			return "rst", port
		}
		return "tcp", port
	case unix.IPPROTO_UDP:
		if to.IsLinkLocalMulticast() && binary.BigEndian.Uint16(body[2:]) == 5353 {
			return "", 0 // tells its name to the group by mDNS, a named exception; an answer goes to the asker
		}
		return "udp", port
	case unix.IPPROTO_ICMP:
		if body[0] == 3 && len(body) >= 8+20+4 {
			return "unreachable", binary.BigEndian.Uint16(body[8+int(body[8]&15)*4+2:])
		}
	case unix.IPPROTO_IGMP:
		if body[0] == 0x16 || body[0] == 0x17 || body[0] == 0x22 {
			return "", 0 // multicast membership, as below
		}
	case unix.IPPROTO_ICMPV6:
		switch {
		case body[0] >= 133 && body[0] <= 137, body[0] == 143:
			return "", 0 // neighbour discovery and multicast membership, named exceptions
		case body[0] == 1 && len(body) >= 8+40+4:
			return "unreachable", binary.BigEndian.Uint16(body[8+40+2:])
		}
	}
	return fmt.Sprintf("protocol %d type %d", proto, body[0]), 0
}

// Scan is what a scan is asked: every port of To, from an address of the link.
type Scan struct {
	Link, From, To string
	Proto          string // tcp or udp
	Source         uint16 // port; a fresh one continues no old connection
	// Settled returns when the target has had all that was sent. Without it that
	// is at once; an emulated machine may have a queue in front of it.
	Settled func() `json:"-"`
}

// Found is, per kind of answer, the ports that gave it, sorted.
type Found map[string][]uint16

// Scan asks every port once and returns whatever came back.
func (h *Host) Scan(t testing.TB, ask Scan) (got Found) {
	t.Helper()
	s := h.scanner(t, ask.Link, ask.From, ask.To)
	defer s.close()
	got, err := s.scan(ask)
	if err != nil {
		t.Fatalf("%s: scanning %s: %v", h.Name, ask.To, err)
	}
	return got
}

// scanner opens one inside the namespace; it can be used from outside.
func (h *Host) scanner(t testing.TB, link, from, to string) (s *scanner) {
	t.Helper()
	h.Do(t, func() (err error) {
		s, err = newScanner(link, from, to)
		return err
	})
	return s
}

func scanPart(args []string, w io.Writer) error {
	var ask Scan
	if err := json.Unmarshal([]byte(args[0]), &ask); err != nil {
		return err
	}
	s, err := newScanner(ask.Link, ask.From, ask.To)
	if err != nil {
		return err
	}
	defer s.close()
	got, err := s.scan(ask)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(got)
}

func (s *scanner) scan(ask Scan) (Found, error) {
	var mu sync.Mutex
	got := make(Found)
	last := time.Now()
	go s.capture(func(kind string, port uint16) {
		mu.Lock()
		defer mu.Unlock()
		last = time.Now()
		if !slices.Contains(got[kind][max(0, len(got[kind])-64):], port) {
			got[kind] = append(got[kind], port)
		}
	})
	for port := uint32(1); port <= 65535; port++ {
		var err error
		if ask.Proto == "tcp" {
			err = s.syn(ask.Source, uint16(port))
		} else {
			err = unix.Sendto(s.udp, []byte("anyone?"), 0, s.sockaddr(uint16(port)))
		}
		if err != nil {
			return nil, fmt.Errorf("port %d: %w", port, err)
		}
		if port%64 == 0 { // the queue of a virtual cable holds a thousand
			time.Sleep(50 * time.Microsecond)
		}
	}
	if ask.Settled != nil {
		ask.Settled()
	}
	for quiet := time.Duration(0); quiet < 400*time.Millisecond; {
		time.Sleep(100 * time.Millisecond)
		mu.Lock()
		quiet = time.Since(last)
		mu.Unlock()
	}
	mu.Lock()
	defer mu.Unlock()
	out := make(Found)
	for kind, ports := range got {
		slices.Sort(ports)
		out[kind] = slices.Compact(ports)
	}
	return out, nil
}

// An Answer is a packet that came back to a Knocker.
type Answer struct {
	Kind string
	Port uint16
	At   time.Time
}

// Knock sends a SYN to each port every fifty milliseconds, whether somebody is
// there or not, until stop is called, which returns the first answer of each
// kind and port.
func (h *Host) Knock(t testing.TB, link, from, to string, ports ...uint16) (stop func() []Answer) {
	t.Helper()
	s := h.scanner(t, link, from, to)
	var mu sync.Mutex
	var got []Answer
	go s.capture(func(kind string, port uint16) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.ContainsFunc(got, func(a Answer) bool { return a.Kind == kind && a.Port == port }) {
			got = append(got, Answer{kind, port, time.Now()})
		}
	})
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := uint16(0); ; n++ {
			for _, port := range ports {
				if err := s.syn(20000+n%20000, port); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !routeGone(err) {
					ended <- err
					return
				}
			}
			select {
			case <-end:
				ended <- nil
				return
			case <-tick.C:
			}
		}
	}()
	stopped := sync.OnceValue(func() []Answer {
		close(end)
		if err := <-ended; err != nil {
			t.Errorf("%s: knocking at %s: %v", h.Name, to, err)
		}
		s.close()
		mu.Lock()
		defer mu.Unlock()
		return got
	})
	t.Cleanup(func() { stopped() })
	return stopped
}
