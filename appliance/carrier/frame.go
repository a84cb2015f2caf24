package carrier

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"gatehouse/appliance/session/wire"
)

// Every frame is a head and a content, and is no longer than what one TLS
// record holds.
const (
	headSize   = 16
	maxFrame   = 16 << 10
	maxContent = maxFrame - headSize
	maxText    = 1 << 10 // of a reason
	version    = 1
)

// what a frame is.
type what byte

const (
	// Of a path, not numbered.
	hello   what = 1 // the first of a path, each way
	ping    what = 2 // number: anything, comes back
	pong    what = 3
	ack     what = 4 // number: of the last numbered frame that came
	credit  what = 5 // number: how many bytes the stream may have in all
	goodbye what = 6 // content: why

	// Numbered: they come once and in order, whatever becomes of the paths.
	open  what = 16
	data  what = 17
	fin   what = 18 // no more comes from here
	shut  what = 19 // no more comes from here, and none is read
	reset what = 20 // content: why
)

// frame is a head, read.
type frame struct {
	what   what
	length int
	stream uint32
	number uint64

	stopped bool // there is more of the stream than its window lets through
}

func (f frame) numbered() bool { return f.what >= open }

// put writes a head.
func (f frame) put(b []byte) {
	b[0], b[1] = byte(f.what), 0
	if f.stopped {
		b[1] = 1
	}
	binary.BigEndian.PutUint16(b[2:], uint16(f.length))
	binary.BigEndian.PutUint32(b[4:], f.stream)
	binary.BigEndian.PutUint64(b[8:], f.number)
}

// parse reads a head and judges what it can without knowing the session.
func parse(b []byte) (frame, error) {
	f := frame{what(b[0]), int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:]), b[1] == 1}
	least, most, stream, number := 0, 0, false, false
	switch f.what {
	case hello:
		least, most = helloSize, helloSize
	case ping, pong:
		number = true
	case ack:
		number = true
	case credit:
		stream, number = true, true
	case goodbye:
		most = maxText
	case data:
		least, most, stream, number = 1, maxContent, true, true
	case open, fin, shut:
		stream, number = true, true
	case reset:
		most, stream, number = maxText, true, true
	default:
		return frame{}, broken("a frame of kind %d, which there is not", f.what)
	}
	switch {
	case b[1] != 0 && !(f.what == data && f.stopped):
		return frame{}, broken("a frame of kind %d whose second byte is %d", f.what, b[1])
	case f.length < least || f.length > most:
		return frame{}, broken("a frame of kind %d with %d bytes: it has %d to %d", f.what, f.length, least, most)
	case stream != (f.stream != 0):
		return frame{}, broken("a frame of kind %d of stream %d", f.what, f.stream)
	case f.number != 0 && !number || f.number == 0 && f.numbered():
		return frame{}, broken("a frame of kind %d with the number %d", f.what, f.number)
	}
	return f, nil
}

// greeting is the content of a hello: who speaks, whom it takes the other for,
// and how far it has come.
type greeting struct {
	side     Side
	id       instance
	known    instance // of the other end; zero if it has not been heard yet
	received uint64   // number of the last numbered frame that came
	streams  uint32   // how many the other end may have open
	window   uint32   // what each of them may have on its way at first
}

// instance tells a carrier from any other, also from one that was started anew.
type instance [16]byte

const helloSize = 2 + 16 + 16 + 8 + 4 + 4

func (g greeting) append(b []byte) []byte {
	b = append(b, version, byte(g.side))
	b = append(b, g.id[:]...)
	b = append(b, g.known[:]...)
	b = binary.BigEndian.AppendUint64(b, g.received)
	b = binary.BigEndian.AppendUint32(b, g.streams)
	return binary.BigEndian.AppendUint32(b, g.window)
}

func parseGreeting(b []byte) (greeting, error) {
	if len(b) != helloSize {
		return greeting{}, broken("a greeting of %d bytes", len(b))
	}
	if b[0] != version {
		return greeting{}, broken("version %d of the carrier, this end speaks %d", b[0], version)
	}
	g := greeting{side: Side(b[1]), received: binary.BigEndian.Uint64(b[34:]), streams: binary.BigEndian.Uint32(b[42:]), window: binary.BigEndian.Uint32(b[46:])}
	copy(g.id[:], b[2:])
	copy(g.known[:], b[18:])
	if g.side != Technician && g.side != Agent || g.id == (instance{}) {
		return greeting{}, broken("a greeting without side or name")
	}
	return g, nil
}

// ErrProtocol is the end of a session whose other end says what it must not.
var ErrProtocol = errors.New("the other end of the session does not keep to the protocol")

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// chunk is a frame in memory: its head lies before its content, so that it is
// written as it is. There are two sizes: what is typed does not hold 16 KiB
// until it is acknowledged.
type chunk struct {
	b    []byte // all the room
	end  int    // of what is in it, from headSize on
	at   int    // of what was not read yet
	refs int    // who still needs it
}

const smallChunk = 1 << 10

var (
	largeChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, maxFrame)} }}
	smallChunks = sync.Pool{New: func() any { return &chunk{b: make([]byte, smallChunk)} }}
)

// newChunk has room for content of n bytes at least.
func newChunk(n int) *chunk {
	pool := &largeChunks
	if n <= smallChunk-headSize {
		pool = &smallChunks
	}
	c := pool.Get().(*chunk)
	c.end, c.at, c.refs = headSize, headSize, 1
	return c
}

// free says that one needs it no more; c may be nil.
func (c *chunk) free() {
	if c == nil {
		return
	}
	if c.refs--; c.refs > 0 {
		return
	}
	if len(c.b) == smallChunk {
		smallChunks.Put(c)
	} else {
		largeChunks.Put(c)
	}
}

// text is the content as people may be shown it; c may be nil.
func (c *chunk) text() string {
	if c == nil {
		return ""
	}
	return wire.Printable(string(c.b[headSize:c.end]), maxText)
}

func (c *chunk) len() int { return c.end - c.at }

// add takes what there is room for.
func (c *chunk) add(b []byte) int {
	n := copy(c.b[c.end:], b)
	c.end += n
	return n
}

// queue is a FIFO that gives its room back when it is empty.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int   { return len(q.items) - q.head }
func (q *queue[T]) at(i int) T { return q.items[q.head+i] }
func (q *queue[T]) push(v T) {
	if q.head > 32 && q.head*2 > len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, v)
}

// unpop gives back what was popped last.
func (q *queue[T]) unpop(v T) {
	if q.head > 0 {
		q.head--
		q.items[q.head] = v
		return
	}
	q.items = append(q.items, v)
	copy(q.items[1:], q.items)
	q.items[0] = v
}

func (q *queue[T]) pop() T {
	var none T
	v := q.items[q.head]
	q.items[q.head] = none
	if q.head++; q.head == len(q.items) {
		q.head = 0
		if q.items = q.items[:0]; cap(q.items) > 64 {
			q.items = nil
		}
	}
	return v
}
