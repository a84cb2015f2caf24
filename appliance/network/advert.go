package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Names by router advertisements, RFC 8106. The kernel checks an advertisement
// (hop limit 255, from the link) and hands on the options that it has no use
// for; anyone on the link can be a router, so they are bounded as leases are.

// timed is a value with its end.
type timed[T comparable] struct {
	Value T
	End   time.Time
}

// advertised is what routers said of names on one link.
type advertised struct {
	resolvers []timed[netip.Addr]
	search    []timed[string]
}

func values[T comparable](list []timed[T]) []T {
	var out []T
	for _, v := range list {
		out = append(out, v.Value)
	}
	return out
}

// hear takes an option. A lifetime of 0 takes its names away.
func (a *advertised) hear(o advice, now time.Time) {
	life := min(o.Life, longestLease)
	if life != 0 {
		life = max(life, shortestLease) // or a router could have them set and removed all the time
	}
	a.resolvers = renewed(a.resolvers, o.Resolvers, now, life, mostResolvers)
	a.search = renewed(a.search, o.Search, now, life, mostSearch)
}

// renewed puts values into a list, in a new one: what is known keeps its
// place, and of too many the one goes that ends first (RFC 8106, 6.2).
func renewed[T comparable](list []timed[T], add []T, now time.Time, life time.Duration, most int) []timed[T] {
	list = slices.Clone(list)
	for _, v := range add {
		i := slices.IndexFunc(list, func(t timed[T]) bool { return t.Value == v })
		switch {
		case i >= 0 && life == 0:
			list = slices.Delete(list, i, i+1)
		case i >= 0:
			list[i].End = now.Add(life)
		case life > 0:
			list = append(list, timed[T]{v, now.Add(life)})
		}
	}
	for len(list) > most {
		first := 0
		for i := range list {
			if list[i].End.Before(list[first].End) {
				first = i
			}
		}
		list = slices.Delete(list, first, first+1)
	}
	return list
}

// expire takes away what has ended.
func (a *advertised) expire(now time.Time) {
	a.resolvers = slices.DeleteFunc(slices.Clone(a.resolvers), func(t timed[netip.Addr]) bool { return !now.Before(t.End) })
	a.search = slices.DeleteFunc(slices.Clone(a.search), func(t timed[string]) bool { return !now.Before(t.End) })
}

// advice is one option of an advertisement.
type advice struct {
	Life      time.Duration
	Resolvers []netip.Addr
	Search    []string
}

// struct nduseroptmsg, include/uapi/linux/rtnetlink.h, and the options of RFC 8106.
const (
	userOptionHead = 16
	typeAdvert     = 134
	optionRDNSS    = 25
	optionDNSSL    = 31
	forEver        = 0xffffffff
)

var errOtherOption = errors.New("an option that is not of names")

// parseUserOption reads one message of the kernel: which link, and what.
func parseUserOption(b []byte) (index int, o advice, err error) {
	if len(b) < userOptionHead {
		return 0, o, fmt.Errorf("a message of %d bytes about router advertisements", len(b))
	}
	size := int(binary.NativeEndian.Uint16(b[2:]))
	index = int(int32(binary.NativeEndian.Uint32(b[4:])))
	if b[0] != unix.AF_INET6 || b[8] != typeAdvert || b[9] != 0 || index <= 0 {
		return 0, o, errOtherOption
	}
	if size < 8 || size > len(b)-userOptionHead {
		return 0, o, fmt.Errorf("an option of %d bytes in a message of %d", size, len(b))
	}
	option := b[userOptionHead:][:size]
	if int(option[1])*8 != size {
		return 0, o, fmt.Errorf("an option that says it has %d bytes, and has %d", int(option[1])*8, size)
	}
	if option[0] != optionRDNSS && option[0] != optionDNSSL {
		return 0, o, errOtherOption
	}
	o.Life = longestLease
	if life := binary.BigEndian.Uint32(option[4:]); life != forEver {
		o.Life = time.Duration(life) * time.Second
	}
	if option[0] == optionRDNSS {
		o.Resolvers, err = parseRDNSS(option[8:])
	} else {
		o.Search, err = parseDNSSL(option[8:])
	}
	return index, o, err
}

func parseRDNSS(b []byte) ([]netip.Addr, error) {
	if len(b) < 16 || len(b)%16 != 0 {
		return nil, fmt.Errorf("addresses of resolvers in %d bytes", len(b))
	}
	var ips []net.IP
	for ; len(b) > 0; b = b[16:] {
		if netip.AddrFrom16([16]byte(b)).Is4In6() {
			continue // no address of IPv6, and hosts would make one of IPv4 of it
		}
		ips = append(ips, net.IP(b[:16]))
	}
	return hosts(ips, mostResolvers), nil
}

// parseDNSSL reads names as RFC 1035, 3.1 has them, without compression, each
// ended by an empty label, with zeroes behind the last.
func parseDNSSL(b []byte) ([]string, error) {
	var out []string
	for len(b) > 0 && b[0] != 0 {
		var labels []string
		for {
			if len(b) == 0 {
				return nil, errors.New("a domain without an end")
			}
			n := int(b[0])
			if n == 0 {
				b = b[1:]
				break
			}
			if n > 63 || n >= len(b) {
				return nil, errors.New("a label that is longer than what is there")
			}
			labels = append(labels, string(b[1:1+n]))
			b = b[1+n:]
		}
		// A dot within a label would be another name.
		if !slices.ContainsFunc(labels, func(l string) bool { return strings.Contains(l, ".") }) {
			out = append(out, strings.Join(labels, "."))
		}
	}
	for _, pad := range b {
		if pad != 0 {
			return nil, errors.New("something behind the last domain")
		}
	}
	return names(out), nil
}

// mostAdvices is how many options of one link are looked at in a second: a flood
// of advertisements must not become one of requests, nor silence another link.
const mostAdvices = 10

// pace counts what each link has told in this second.
type pace struct {
	second time.Time
	told   map[int]int // by the link's index
}

// take says whether one more is to be looked at.
func (p *pace) take(link int, now time.Time) bool {
	if p.told == nil || now.Sub(p.second) >= time.Second {
		p.second, p.told = now, make(map[int]int)
	}
	p.told[link]++
	return p.told[link] <= mostAdvices
}

// listenAdvertised calls heard for each option of names, until the context ends.
func listenAdvertised(ctx context.Context, heard func(ctx context.Context, index int, o advice)) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_ND_USEROPT)
	if err != nil {
		return fmt.Errorf("listening to what the kernel tells of router advertisements: %w", err)
	}
	defer context.AfterFunc(ctx, s.Close)()
	var p pace
	for {
		messages, from, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR):
			continue // some are lost; routers repeat themselves
		case err != nil:
			return fmt.Errorf("listening to what the kernel tells of router advertisements: %w", err)
		case from.Pid != 0:
			continue // not the kernel
		}
		for _, m := range messages {
			if m.Header.Type != unix.RTM_NEWNDUSEROPT {
				continue
			}
			index, o, err := parseUserOption(m.Data)
			if err != nil {
				continue // a router's mistake, or a liar's
			}
			if p.take(index, time.Now()) {
				heard(ctx, index, o)
			}
		}
	}
}

// advertised hands an option to the worker of its link.
func (m *manager) advertised(ctx context.Context, index int, o advice) {
	m.mu.Lock()
	w := m.workers[index]
	m.mu.Unlock()
	if w != nil {
		w.learn(ctx, false, func(k *learnt) { k.ra.hear(o, time.Now()) })
	}
}

// expire takes away names that no router spoke of again.
func (w *worker) expire(ctx context.Context) {
	w.mu.Lock()
	ended := w.known.ra
	ended.expire(time.Now())
	same := len(ended.resolvers) == len(w.known.ra.resolvers) && len(ended.search) == len(w.known.ra.search)
	w.mu.Unlock()
	if !same {
		w.learn(ctx, false, func(k *learnt) { k.ra.expire(time.Now()) })
	}
}

// advised says whether a router spoke of names.
func (w *worker) advised() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.known.ra.resolvers)+len(w.known.ra.search) > 0
}

// RFC 4861, 10: three questions, four seconds apart.
const (
	mostSolicitations = 3
	solicitEvery      = 4 * time.Second
)

// solicit asks the routers of a link for an advertisement.
func solicit(link *net.Interface, from netip.Addr) error {
	conn, err := icmp.ListenPacket("ip6:ipv6-icmp", from.WithZone(link.Name).String())
	if err != nil {
		return fmt.Errorf("opening a socket for router solicitations on %s: %w", link.Name, err)
	}
	defer conn.Close()
	if err := conn.IPv6PacketConn().SetMulticastHopLimit(255); err != nil {
		return fmt.Errorf("asking the routers of %s: %w", link.Name, err)
	}
	// The option is our address on the link, RFC 4861, 4.1 and 4.6.1.
	body := append(make([]byte, 4), append([]byte{1, 1}, link.HardwareAddr...)...)
	question, err := (&icmp.Message{Type: ipv6.ICMPTypeRouterSolicitation, Body: &icmp.RawBody{Data: body}}).Marshal(nil)
	if err == nil {
		_, err = conn.WriteTo(question, &net.IPAddr{IP: net.IPv6linklocalallrouters, Zone: link.Name})
	}
	if err != nil {
		return fmt.Errorf("asking the routers of %s: %w", link.Name, err)
	}
	return nil
}
