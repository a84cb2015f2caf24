package script

import (
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
)

// started is the console that a script began, and the way to it.
type started struct {
	t   *testing.T
	box *consoletest.Box
	way *way
}

func startedBy(ts *testscript.TestScript) *started {
	s := ts.Value(started{}).(*started)
	if s.box == nil {
		ts.Fatalf("there is no console yet")
	}
	return s
}

// way passes connections on, and can cut one in its middle.
type way struct {
	to   string
	left atomic.Int64 // bytes until the cut; 0: none is to come
}

// newWay begins one and returns its address.
func newWay(ts *testscript.TestScript, to string) (*way, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	w := &way{to: to}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.pass(c)
		}
	}()
	return w, l.Addr().String()
}

func (w *way) pass(c net.Conn) {
	defer c.Close()
	box, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer box.Close()
	go func() {
		io.Copy(c, box)
		c.Close()
	}()
	b := make([]byte, 32<<10)
	for {
		n, err := c.Read(b)
		if left := w.left.Load(); left > 0 && w.left.Add(-int64(n)) <= 0 {
			w.left.Store(0)
			return
		}
		if _, werr := box.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// cutonce cuts the connection once, after 2.5 MB.
func cutOnce(ts *testscript.TestScript, neg bool, args []string) {
	startedBy(ts).way.left.Store(2_500_000)
}

// systems VERSION FILE gives the console's box two slots, and leaves a release
// of that version, one by another's key, and one that was cut.
func giveSystems(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: systems VERSION FILE")
	}
	s := startedBy(ts)
	r := consoletest.NewReleaser(s.t)
	s.box.GiveSystems(r)
	good := r.Bundle(args[0], 5_000_000)
	for name, b := range map[string][]byte{args[1]: good, "cut.update": good[:len(good)-1000], "other.update": consoletest.NewReleaser(s.t).Bundle(args[0], 5_000_000)} {
		ts.Check(os.WriteFile(ts.MkAbs(name), b, 0o600))
	}
}

// trialends kept|back ends the next trial, a moment after it began.
func trialEnds(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: trialends kept|back")
	}
	s := startedBy(ts)
	go func() {
		for s.box.Systems().Stage != control.UpdateTrial {
			select {
			case <-s.t.Context().Done():
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		time.Sleep(1500 * time.Millisecond) // so that the tool sees it run
		if args[0] == "kept" {
			s.box.EndTrial(true, false, "all is as good as before")
			return
		}
		s.box.EndTrial(false, true, "nothing answered on 443")
	}()
}

// note keeps a console for the commands after it, and returns the address under
// which the script reaches it.
func (s *started) note(ts *testscript.TestScript, t *testing.T, b *consoletest.Box) (address string) {
	s.t, s.box = t, b
	s.way, address = newWay(ts, strings.TrimPrefix(b.URL, "https://"))
	return address
}
