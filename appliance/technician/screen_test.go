package technician

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/session/wire"
)

// pipe is two ends of a stream in memory.
func pipe(t *testing.T) (near wire.Stream, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); a.Close() })
	c.SetDeadline(time.Now().Add(patient))
	a.SetDeadline(time.Now().Add(patient))
	return c.(*net.TCPConn), a
}

func put(t *testing.T, w io.Writer, k wire.Kind, v any) {
	t.Helper()
	b, ok := v.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := wire.WriteFrame(w, k, b); err != nil {
		t.Error(err)
	}
}

func take(t *testing.T, r io.Reader) (wire.Kind, string) {
	t.Helper()
	k, b, err := wire.ReadFrame(r, make([]byte, wire.MaxFrame))
	if err != nil {
		t.Error(err)
	}
	return k, string(b)
}

var question = wire.Question{Target: "nas\x1b[2J", Algorithm: "ssh-ed25519", Fingerprint: "SHA256:abc"}

func TestAttendRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		frames func(io.Writer)
		want   string
	}{
		"a cut":                  {func(w io.Writer) { put(t, w, wire.Output, []byte("x")) }, "EOF"},
		"a frame that is ours":   {func(w io.Writer) { put(t, w, wire.Input, []byte("x")) }, "does not send"},
		"an end that is none":    {func(w io.Writer) { put(t, w, wire.Exit, []byte("x")) }, "cannot be read"},
		"a question that is not": {func(w io.Writer) { put(t, w, wire.Ask, []byte("x")) }, "cannot be read"},
		"nobody to ask":          {func(w io.Writer) { put(t, w, wire.Ask, question) }, ErrHostKey.Error()},
		"a long frame":           {func(w io.Writer) { w.Write([]byte{'o', 0xff, 0xff}) }, "the limit is"},
	} {
		near, far := pipe(t)
		go func() {
			c.frames(far)
			far.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, far)
		}()
		end, err := Attend(near, Screen{Out: io.Discard, Err: io.Discard})
		if err == nil || !strings.Contains(err.Error(), c.want) || end.Status != -1 {
			t.Errorf("%s: %+v, %v; want %q", name, end, err, c.want)
		}
	}
}

func TestAttendShowsAndAsks(t *testing.T) {
	near, far := pipe(t)
	in, typing := io.Pipe()
	var out, diag bytes.Buffer
	sizes := make(chan Size, 1)
	asked := make(chan wire.Question, 1)
	go func() {
		put(t, far, wire.Ask, question)
		if k, b := take(t, far); k != wire.Confirm || b != "\x01" {
			t.Errorf("the answer is %q %q", k, b)
		}
		put(t, far, wire.Output, []byte("hello"))
		put(t, far, wire.Stderr, []byte("oops"))
		go io.WriteString(typing, "ls\r")
		if k, b := take(t, far); k != wire.Input || b != "ls\r" {
			t.Errorf("typed: %q %q", k, b)
		}
		sizes <- Size{-1, 70000}
		sizes <- Size{300, 50}
		if k, b := take(t, far); k != wire.Size || b != "\x01\x2c\x00\x32" {
			t.Errorf("the size: %q %q", k, b)
		}
		typing.Close()
		if k, b := take(t, far); k != wire.EOF || b != "" {
			t.Errorf("the end of what is typed: %q %q", k, b)
		}
		put(t, far, wire.Exit, wire.Ended{Status: 7, Reason: "bye\x1b[2J"})
	}()
	end, err := Attend(near, Screen{In: in, Out: &out, Err: &diag, Sizes: sizes, Typed: true, Question: func(q wire.Question, typed <-chan []byte) (bool, error) {
		asked <- q
		go io.WriteString(typing, "yes\n")
		return string(<-typed) == "yes\n", nil
	}})
	if err != nil || end.Status != 7 || strings.ContainsRune(end.Reason, 0x1b) || out.String() != "hello" || diag.String() != "oops" {
		t.Errorf("%+v, %v, %q, %q", end, err, &out, &diag)
	}
	if q := <-asked; strings.ContainsRune(q.Target, 0x1b) || q.Fingerprint != "SHA256:abc" {
		t.Errorf("asked: %+v", q)
	}
}

func TestAttendAnswersNo(t *testing.T) {
	near, far := pipe(t)
	answer := make(chan string, 1)
	go func() {
		put(t, far, wire.Ask, question)
		_, b := take(t, far)
		answer <- b
	}()
	own := errors.New("another key than the one that was given")
	_, err := Attend(near, Screen{Out: io.Discard, Err: io.Discard, Question: func(wire.Question, <-chan []byte) (bool, error) { return false, own }})
	if !errors.Is(err, own) || <-answer != "\x00" {
		t.Errorf("%v", err)
	}
}

func TestAttendLeaves(t *testing.T) {
	near, far := pipe(t)
	_, err := Attend(near, Screen{In: strings.NewReader("abc"), Out: io.Discard, Err: io.Discard, Filter: func(b []byte) ([]byte, bool) { return b[:1], true }})
	if !errors.Is(err, ErrLeft) {
		t.Error(err)
	}
	if k, b := take(t, far); k != wire.Input || b != "a" {
		t.Errorf("%q %q", k, b)
	}
}

// What is meant for a command goes to no target that is still in question, and
// does not answer the question.
func TestAttendHoldsWhatIsForTheCommand(t *testing.T) {
	near, far := pipe(t)
	go func() {
		put(t, far, wire.Ask, question)
		if k, b := take(t, far); k != wire.Confirm || b != "\x01" {
			t.Errorf("the answer is %q %q", k, b)
		}
		far.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if k, b, err := wire.ReadFrame(far, make([]byte, wire.MaxFrame)); err == nil {
			t.Errorf("before it has begun: %q %q", k, b)
		}
		far.SetReadDeadline(time.Now().Add(patient))
		put(t, far, wire.Output, []byte{})
		if k, b := take(t, far); k != wire.Input || b != "no\n" {
			t.Errorf("%q %q", k, b)
		}
		if k, _ := take(t, far); k != wire.EOF {
			t.Errorf("%q", k)
		}
		put(t, far, wire.Exit, wire.Ended{})
	}()
	_, err := Attend(near, Screen{In: strings.NewReader("no\n"), Out: io.Discard, Err: io.Discard, Hold: true,
		Question: func(_ wire.Question, typed <-chan []byte) (bool, error) { return typed == nil, nil }})
	if err != nil {
		t.Error(err)
	}
}
