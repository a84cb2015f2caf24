package remote

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"gatehouse/appliance/files"
)

func packet(kind byte, body ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(1+len(body))), append([]byte{kind}, body...)...)
}

// TestSES4_NamesAreCounted reads along in pieces of any size, and changes nothing.
func TestSES4_NamesAreCounted(t *testing.T) {
	var flow []byte
	var want uint64
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		switch body := make([]byte, random.IntN(50)); random.IntN(4) {
		case 0:
			flow = append(flow, packet(103, body...)...)
		case 1:
			flow = append(flow, packet(104, body[:min(len(body), 7)]...)...) // too short to hold a number
		case 2:
			flow = append(flow, packet(2)...)
		case 3:
			n := random.Uint32N(1000)
			want += uint64(n)
			flow = append(flow, packet(104, append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 9}, n), body...)...)...)
		}
	}
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(flow), "bytes": iotest.OneByteReader(bytes.NewReader(flow)), "halves": iotest.HalfReader(bytes.NewReader(flow))} {
		n := &names{r: r}
		n.begin(nil)
		got, err := io.ReadAll(n)
		if err != nil || !bytes.Equal(got, flow) || n.entries != want {
			t.Errorf("%s: %d names of %d, %v", name, n.entries, want, err)
		}
	}
	stopped := 0
	n := &names{r: bytes.NewReader(packet(104, append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 9}, files.MaxEntries+3), make([]byte, 100)...)...))}
	n.begin(func() { stopped++ })
	if _, err := io.ReadAll(n); err != nil || stopped == 0 {
		t.Errorf("too many names did not stop it, %v", err)
	}
}

// silent is a target that never answers.
type silent struct {
	closed chan struct{}
}

func (s *silent) Read([]byte) (int, error) {
	<-s.closed
	return 0, io.EOF
}
func (s *silent) Write(b []byte) (int, error) { return len(b), nil }
func (s *silent) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

func TestSES4_TargetThatNeverGreets(t *testing.T) {
	a := NewAccess(func(context.Context) (io.ReadWriteCloser, error) { return &silent{make(chan struct{})}, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := a.Use(ctx); err == nil {
		t.Error("it was taken for a target")
	}
}

func TestSES4_OperationsAtOnceAreBounded(t *testing.T) {
	refused := errors.New("no")
	a := NewAccess(func(context.Context) (io.ReadWriteCloser, error) { return nil, refused })
	for range 3 * slots { // a target that cannot be reached keeps no slot
		if _, _, err := a.Use(t.Context()); !errors.Is(err, refused) {
			t.Fatal(err)
		}
	}
	for range slots {
		a.slots <- struct{}{}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, _, err := a.Use(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one more: %v", err)
	}
}

// The end of a connection reads as the end of a file, and is none: a copy goes on after it,
// over another connection from the next request on.
func TestSES4_LostIsNoEndOfAFile(t *testing.T) {
	r := &remote{wire: &silent{closed: make(chan struct{})}, gone: make(chan struct{})}
	if err := r.judge(io.EOF); !errors.Is(err, ErrLost) || errors.Is(err, io.EOF) {
		t.Errorf("%v", err)
	}
	if !r.dead() {
		t.Error("it is used again")
	}
}
