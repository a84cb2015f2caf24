package work

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/session/wire"
)

func TestSES4_ResumedWithNothingLost(t *testing.T) {
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(ch, "%08d\n", i); err != nil {
				return
			}
			if i == 3000 {
				break
			}
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		echo(ch, "")
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	if e.reply.Terminal == "" || e.reply.At != 0 {
		t.Fatalf("reply %+v", e.reply)
	}
	name := e.reply.Terminal
	var all []byte
	for len(all) < 2000 {
		_, out, err := e.frame()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	for range 3 {
		e.Close() // without a goodbye
		next := b.open(wire.Open{Do: wire.Terminal, Resume: name, Seen: uint64(len(all)), Width: 90, Height: 20})
		if next.reply.At != uint64(len(all)) || next.reply.Terminal != name {
			t.Fatalf("seen %d, reply %+v", len(all), next.reply)
		}
		e = next
		_, out, err := e.frame()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, out...)
	}
	all = append(all, e.until("ready\r\n")...)
	for i, line := range strings.Split(string(all), "\n")[:3001] {
		if line != fmt.Sprintf("%08d", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	e.typed("exit")
	if ended, _, _ := e.end(); ended.Status != 5 {
		t.Errorf("ended %+v", ended)
	}
	e.Close()
	<-e.served
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: name}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: "guess"}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
}

// Nobody is there: the terminal goes on, and who comes back learns how much of
// its output is gone.
func TestSES4_TerminalGoesOnAlone(t *testing.T) {
	done := make(chan struct{})
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		_, _ = io.WriteString(ch, "begin")
		b := make([]byte, 1)
		_, _ = ch.Read(b)
		_, _ = ch.Write(bytes.Repeat([]byte("0123456789"), 100_000))
		_, _ = io.WriteString(ch, "the end")
		close(done)
		_, _ = io.Copy(io.Discard, ch)
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("begin")
	e.typed("x")
	e.Close()
	<-e.served
	<-done
	var next *end
	for range 100 { // the last of it is on its way
		next = b.open(wire.Open{Do: wire.Terminal, Resume: e.reply.Terminal, Seen: 5})
		if next.reply.At == 5+1_000_000+7-(256<<10) {
			break
		}
		next.Close()
		<-next.served
		time.Sleep(20 * time.Millisecond)
	}
	if next.reply.At != 5+1_000_000+7-(256<<10) {
		t.Fatalf("from %d on", next.reply.At)
	}
	if got := next.until("the end"); len(got) != (256<<10) || got[0] != "0123456789"[(next.reply.At-5)%10] {
		t.Errorf("%d bytes, from %q on", len(got), got[:20])
	}
}

func TestSES4_WhoComesNextTakesOver(t *testing.T) {
	s := startTarget(t, echo)
	b := begin(t, s.address, s.with)
	first := b.open(wire.Open{Do: wire.Terminal})
	first.until("ready")
	second := b.open(wire.Open{Do: wire.Terminal, Resume: first.reply.Terminal, Seen: first.seen})
	if ended, _, _ := first.end(); !strings.Contains(ended.Reason, "hold") {
		t.Errorf("ended %+v", ended)
	}
	_ = wire.WriteFrame(first, wire.Input, []byte("from the first"))
	second.typed("from the second")
	if got := second.until("<from the second>"); strings.Contains(got, "first") {
		t.Errorf("came: %q", got)
	}
}

// Goodbye is a frame: the terminal is gone with its stream then.
func TestSES4_Goodbye(t *testing.T) {
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		_, _ = io.WriteString(ch, "ready")
		_, _ = io.Copy(io.Discard, ch)
		_, _ = io.WriteString(ch, "no more input")
		select {}
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	e.until("ready")
	e.send(wire.EOF, "")
	e.until("no more input")
	e.Close()
	<-e.served
	if r := b.refused(wire.Open{Do: wire.Terminal, Resume: e.reply.Terminal}); r.Code != wire.NotFound {
		t.Errorf("%s %s", r.Code, r.Text)
	}
	eventually(t, func() bool { return strings.HasSuffix(strings.Join(b.whats(), ","), "closed terminal") })
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 200 {
		if f() {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Error("it did not come to be")
}

// A target that never stops, and a reader that never reads: the agent holds
// what its windows hold, and no more.
func TestSES4_EndlessOutputToASlowReader(t *testing.T) {
	var sent atomic.Int64
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		b := bytes.Repeat([]byte("x"), 32<<10)
		for {
			n, err := ch.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	last := int64(-1)
	eventually(t, func() bool {
		now := sent.Load()
		still := now == last && now > 0
		last = now
		time.Sleep(100 * time.Millisecond)
		return still
	})
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 8<<20 || sent.Load() > 8<<20 {
		t.Errorf("%d bytes more are held, the target wrote %d", held, sent.Load())
	}
	// It is alive all the same.
	was := sent.Load()
	for sent.Load() < was+4<<20 {
		if _, _, err := e.frame(); err != nil {
			t.Fatal(err)
		}
	}
	b.End("enough")
	for {
		k, out, err := e.frame()
		if err != nil {
			t.Fatal("cut without a word")
		}
		if k == wire.Exit {
			if !strings.Contains(string(out), "enough") {
				t.Errorf("%s", out)
			}
			break
		}
	}
}

// A slow reader gets every byte, in order.
func TestSES4_SlowReaderLosesNothing(t *testing.T) {
	const lines = 200_000
	s := startTarget(t, func(ch ssh.Channel, _ string) {
		var b bytes.Buffer
		for i := range lines {
			fmt.Fprintf(&b, "%09d\n", i)
			if b.Len() > 50_000 {
				_, _ = b.WriteTo(ch)
			}
		}
		_, _ = b.WriteTo(ch)
		exit(ch, 0)
	})
	b := begin(t, s.address, s.with)
	e := b.open(wire.Open{Do: wire.Terminal})
	time.Sleep(500 * time.Millisecond)
	_, out, _ := e.end()
	if len(out) != lines*10 {
		t.Fatalf("%d bytes", len(out))
	}
	for i := range lines {
		if line := out[i*10 : i*10+10]; line != fmt.Sprintf("%09d\n", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// One connection for all, until the target allows no more on it.
func TestSES4_OneConnectionWhereAllowed(t *testing.T) {
	for _, limit := range []int{0, 2} {
		s := startTarget(t, echo, func(s *target) { s.channels = limit })
		b := begin(t, s.address, s.with)
		for range 4 {
			b.open(wire.Open{Do: wire.Terminal}).until("ready")
		}
		if n, want := s.conns.Load(), map[int]int32{0: 1, 2: 3}[limit]; n != want {
			t.Errorf("with %d channels: %d connections, want %d", limit, n, want)
		}
	}
}
