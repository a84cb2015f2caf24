package flow

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"gatehouse/appliance/cert/certtest"
	"gatehouse/appliance/session"
)

// pair is a technician's end and an agent's, on loopback.
func pair(t *testing.T) (technician, agent *flow) {
	t.Helper()
	own, other := certtest.Self(t, certtest.Undated), certtest.Self(t, certtest.Undated)
	g := session.Grant{ID: session.ID{1}, Transport: session.TLS, Key: session.KeyOf(own.Leaf), Agent: session.KeyOf(other.Leaf)}
	var sockets [2]*net.UDPConn
	for i := range sockets {
		var err error
		if sockets[i], err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan net.Conn, 1)
	go func() {
		c, err := Answer(t.Context(), sockets[1], sockets[0].LocalAddr().(*net.UDPAddr).AddrPort(), g, other)
		if err != nil {
			t.Error(err)
		}
		answered <- c
	}()
	c, err := Dial(t.Context(), sockets[0], sockets[1].LocalAddr().(*net.UDPAddr).AddrPort(), g, own)
	d := <-answered
	if err != nil || d == nil {
		t.Fatalf("no way: %v", err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*flow), d.(*flow)
}

func TestSES3_CutIsNoEnd(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.socket.Close() // as a power cut would
	b.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := b.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut reads as %v", err)
	}
}

func TestSES3_EndComesAfterEveryByte(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	sent := make([]byte, 4<<20)
	rand.Read(sent)
	go func() {
		a.Write(sent)
		a.Close()
	}()
	got, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came, %v", len(got), len(sent), err)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("what was closed here reads as %v", err)
	}
	if _, err := a.Write([]byte{1}); err == nil {
		t.Error("what was closed here can be written to")
	}
}

func TestSES3_HalfAnEnd(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("half an end reads as %v", err)
	}
	if _, err := b.Write([]byte("still")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(a, got); err != nil || string(got) != "still" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestDeadlines(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.SetReadDeadline(time.Unix(1, 0))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline in the past: %v", err)
	}
	a.SetReadDeadline(time.Time{})
	b.Write([]byte{7})
	if n, err := a.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("after it: %d, %v", n, err)
	}
}
