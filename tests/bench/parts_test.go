package bench

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/relay"
	"gatehouse/tests/netns"
)

func TestMain(m *testing.M) {
	netns.Main(m, map[string]func([]string, io.Writer) error{
		"splice": splicePart,
		"relay":  relayPart,
	})
}

// each serves every connection of a listener in a goroutine of its own, for as
// long as the process lives.
func each(l net.Listener, serve func(*net.TCPConn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			serve(c.(*net.TCPConn))
		}()
	}
}

// splicePart is the least that a relay can do: "listen dial".
func splicePart(args []string, stdout io.Writer) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, "ready")
	return each(l, func(c *net.TCPConn) {
		to, err := net.Dial("tcp", args[1])
		if err != nil {
			return
		}
		defer to.Close()
		var wg sync.WaitGroup
		for _, d := range [][2]*net.TCPConn{{to.(*net.TCPConn), c}, {c, to.(*net.TCPConn)}} {
			wg.Go(func() {
				_, _ = io.Copy(d[0], d[1]) // in the kernel
				_ = d[0].CloseWrite()
			})
		}
		wg.Wait()
	})
}

// relayPart is Gatehouse's relay alone: "listen organisation". It says its key.
func relayPart(args []string, stdout io.Writer) error {
	organisation, err := hex.DecodeString(args[1])
	if err != nil {
		return err
	}
	own, err := certtest.New()
	if err != nil {
		return err
	}
	r, err := relay.New(relay.Config{
		Certificate: own, Organisation: func() ed25519.PublicKey { return organisation }, Now: time.Now, Log: slog.New(slog.DiscardHandler),
		MaxWaiting: 4 * crowd, MaxJoined: 4 * crowd, Idle: 10 * time.Minute,
	})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout, r.Key())
	return each(l, func(c *net.TCPConn) { _ = r.Handle(context.Background(), c, nil, func() {}) })
}
