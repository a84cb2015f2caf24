package direct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/direct/probe"
	"gatehouse/appliance/relay"
)

const (
	callTime  = 5 * time.Second       // to connect, and to prove who calls
	callEvery = 50 * time.Millisecond // between two calls
	maxCalls  = 32                    // that a technician's end takes in a round
	maxAtOnce = 8                     // of them
	lostAfter = 10 * time.Second      // a connection whose bytes nobody acknowledges
)

var errNobody = errors.New("nobody to try: no list admits an address of the other end")

// call is the agent's half: it calls each candidate once, and takes the first
// that holds the technician's key.
func (r *round) call(ctx context.Context, their offer, claim func() bool) (net.Conn, error) {
	targets := r.targets(their, their.TCP)
	if len(targets) == 0 {
		return nil, errNobody
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan found, len(targets))
	for i, at := range targets {
		go func() { // ends with ctx; counted below
			if err := pause(ctx, time.Duration(i)*callEvery); err != nil {
				results <- found{err: err}
				return
			}
			c, err := r.callOne(ctx, at)
			results <- found{Conn: c, err: err}
		}()
	}
	var first net.Conn
	var errs []error
	for range targets {
		f := <-results
		switch {
		case f.err != nil:
			errs = append(errs, f.err)
		case first != nil:
			f.Close()
		default:
			first = f.Conn
			cancel()
		}
	}
	if first == nil {
		return nil, errors.Join(errs...)
	}
	claim()
	return first, nil
}

func (r *round) callOne(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: callTime}
	c, err := d.DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	if err := ready(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	// Whoever is there learns no more than these bytes until the key is proved.
	if _, err := c.Write(r.own.Secret.Call()); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	t, err := relay.Agent(ctx, c, r.Grant, r.Certificate)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// answer is the technician's half: it takes the agent's call, and no other.
func (r *round) answer(outer context.Context, their offer, claim func() bool) (net.Conn, error) {
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	defer context.AfterFunc(ctx, func() { r.tcp.Close() })()
	called := make(chan net.Conn, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	turns := make(chan struct{}, maxAtOnce)
	var accepted error
	for range maxCalls {
		select {
		case turns <- struct{}{}:
		case <-ctx.Done():
		}
		c, err := r.tcp.AcceptTCP()
		if err != nil {
			accepted = err
			break
		}
		if at := c.RemoteAddr().(*net.TCPAddr).AddrPort(); !r.may(at.Addr().Unmap().WithZone("")) {
			c.Close()
			<-turns
			continue
		}
		wg.Go(func() {
			defer func() { <-turns }()
			if r.isAgent(ctx, c, their) != nil || !claim() {
				c.Close()
				return
			}
			select {
			case called <- c:
				cancel() // no more calls
			default:
				c.Close()
			}
		})
	}
	wg.Wait()
	select {
	case c := <-called:
		return r.greet(outer, c)
	default:
		return nil, because(ctx, errors.Join(accepted, errors.New("too many strangers called")))
	}
}

// isAgent reads what the agent proves itself with, and not a byte of what follows.
func (r *round) isAgent(ctx context.Context, c net.Conn, their offer) error {
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if err := errors.Join(ready(c), c.SetDeadline(time.Now().Add(callTime))); err != nil {
		return err
	}
	got := make([]byte, probe.CallSize)
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !their.Secret.Called(got) {
		return errors.New("a stranger calls")
	}
	return nil
}

func (r *round) greet(ctx context.Context, c net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if err := c.SetDeadline(time.Time{}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	t, err := relay.Technician(ctx, c, r.Grant, r.Certificate)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// ready has the kernel find out soon that a way is cut in silence.
func ready(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("not a TCP connection: %T", c)
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(lostAfter.Milliseconds()))
	})
	return errors.Join(err, inner, t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 3 * time.Second, Interval: 2 * time.Second, Count: 3}))
}
