package work

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

var errDeadline = os.ErrDeadlineExceeded

// dialsTo goes where address says at the time.
func dialsTo(address *atomic.Value) func(*Config) {
	return func(c *Config) {
		c.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address.Load().(string))
		}
	}
}

// Nothing but the grant's target is dialed, and bytes pass both ways whole.
func TestSES5_ForwardReachesTheTargetAlone(t *testing.T) {
	address := listen(t, func(c net.Conn) {
		h := sha256.New()
		_, _ = io.Copy(h, c) // to the half close
		_, _ = c.Write(h.Sum(nil))
	})
	b := begin(t, address, kind(session.TCP), resolves("192.0.2.77"))
	sent := make([]byte, 3<<20)
	_, _ = rand.Read(sent)
	want := sha256.Sum256(sent)
	for range 3 {
		e := b.open(wire.Open{Do: wire.Forward})
		go func() {
			_, _ = e.Write(sent)
			_ = e.CloseWrite()
		}()
		got, err := io.ReadAll(e)
		if err != nil || !bytes.Equal(got, want[:]) {
			t.Errorf("%x, %v", got, err)
		}
	}
	if got := strings.Join(b.dialed, " "); got != "192.0.2.77:22 192.0.2.77:22 192.0.2.77:22" {
		t.Errorf("dialed %s", got)
	}
	// Connections come by the hundred; the first is in the log.
	if got := b.audited("open function", "ok"); len(got) != 1 {
		t.Errorf("the log has %+v", got)
	}
}

func TestSES5_TargetThatDoesNotAnswer(t *testing.T) {
	b := begin(t, "127.0.0.1:1", kind(session.TCP))
	for range maxRefused + 1 { // is no misuse
		if r := b.refused(wire.Open{Do: wire.Forward}); r.Code != wire.Unreachable || !strings.Contains(r.Text, "refused") {
			t.Fatalf("%s %s", r.Code, r.Text)
		}
	}
	if b.Reason() != "" {
		t.Errorf("ended: %s", b.Reason())
	}
}

// A connection that breaks is not taken for one that ended.
func TestSES5_BrokenConnectionIsNoEnd(t *testing.T) {
	address := listen(t, func(c net.Conn) {
		_, _ = c.Write([]byte("half of it"))
		_ = c.(*net.TCPConn).SetLinger(0)
		time.Sleep(50 * time.Millisecond)
	})
	b := begin(t, address, kind(session.TCP))
	ours, theirs := pair(t)
	r := &resettable{UnixConn: theirs}
	go func() { _ = b.Serve(context.Background(), r) }()
	_ = wire.WriteOpen(ours, wire.Open{Do: wire.Forward})
	if _, err := wire.ReadReply(ours); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, ours)
	eventually(t, func() bool { return r.reset.Load() })
}

type resettable struct {
	*net.UnixConn
	reset atomic.Bool
}

func (r *resettable) Reset(string) error { r.reset.Store(true); return nil }

func TestSES5_StreamsAreBounded(t *testing.T) {
	address := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	b := begin(t, address, kind(session.TCP))
	for range maxStreams {
		b.open(wire.Open{Do: wire.Forward})
	}
	if r := b.refused(wire.Open{Do: wire.Forward}); r.Code != wire.Failed {
		t.Errorf("%s %s", r.Code, r.Text)
	}
}
