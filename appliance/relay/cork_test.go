package relay

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
)

// writes counts the writes to a connection.
type writes struct {
	net.Conn
	n int
}

func (w *writes) Write(b []byte) (int, error) {
	w.n++
	return w.Conn.Write(b)
}

// What an end holds back goes out whole, in order and at once.
func TestCork(t *testing.T) {
	b := newBench(t, nil)
	g := b.grant()
	here, there := tcpPair(t)
	defer here.Close()
	defer there.Close()
	below := &writes{Conn: here}
	var wg sync.WaitGroup
	got := make(chan []byte, 1)
	wg.Go(func() {
		c, err := Agent(context.Background(), there, g, b.agent)
		if err != nil {
			t.Error(err)
			return
		}
		all, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		got <- all
	})
	c, err := Technician(t.Context(), below, g, b.techn)
	if err != nil {
		t.Fatal(err)
	}
	cork := c.NetConn().(interface {
		Cork()
		Uncork() error
	})
	want := bytes.Repeat([]byte("0123456789abcdef"), 20000) // 320,000 bytes, some 20 records
	rest := want
	write := func(n int) {
		if _, err := c.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	write(10) // the first records are small (crypto/tls), the handshake's last among them
	before := below.n
	cork.Cork()
	write(60000)
	if below.n != before {
		t.Errorf("%d writes while corked", below.n-before)
	}
	if err := cork.Uncork(); err != nil {
		t.Fatal(err)
	}
	if below.n != before+1 {
		t.Errorf("%d writes for what was held back", below.n-before)
	}
	cork.Cork()
	write(200000) // more than it holds back
	if n := below.n - before; n != 2 {
		t.Errorf("%d writes, of more than is held back", n)
	}
	if err := cork.Uncork(); err != nil {
		t.Fatal(err)
	}
	write(len(rest))
	c.Close()
	wg.Wait()
	if all := <-got; !bytes.Equal(all, want) {
		t.Errorf("%d bytes came of %d", len(all), len(want))
	}
}
