package console

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/handover"
)

// How long the box waits for a visitor. The gateway waits 5 s for the
// ClientHello; with these no connection that only pretends to be busy is open
// 15 s later (docs/gateway.md has the table).
const (
	firstRequest = 9 * time.Second  // TLS handshake and the headers of the first request
	wholeRequest = 10 * time.Second // headers and body of any request
	wholeAnswer  = 13 * time.Second // until the visitor has taken the answer
	changeAnswer = 45 * time.Second // the same, to what changes something: see patient
	anyByte      = 10 * time.Second // HTTP/2: until it takes a byte of anything
	stillThere   = 8 * time.Second  // HTTP/2: silent so long, it is asked; and has so long to answer
	answerPing   = 5 * time.Second
)

// Resets of HTTP/2 requests that a connection may make: a browser that leaves a
// page resets a few, and that is the end of it.
const (
	resetsAtOnce    = 100
	resetsPerSecond = 10
)

// caller is a connection and what it has done.
type caller struct {
	conn  *handover.Conn
	asked atomic.Bool

	mu     sync.Mutex
	resets float64 // more than it may have
	at     time.Time
}

type callerKey struct{}

// meet notes the connection for its requests, and ends it if none comes.
func meet(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	passed, ok := c.(*handover.Conn)
	if !ok {
		return ctx
	}
	v := &caller{conn: passed}
	time.AfterFunc(firstRequest, func() {
		if !v.asked.Load() {
			v.conn.Close()
		}
	})
	return context.WithValue(shell.Connected(ctx, passed), callerKey{}, v)
}

// reset notes that a request was abandoned, and says whether that was one too many.
func (v *caller) reset(now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.resets = max(0, v.resets-now.Sub(v.at).Seconds()*resetsPerSecond) + 1
	v.at = now
	return v.resets > resetsAtOnce
}

// patient stands before all handlers: it sees who asks and who abandons. A
// request that was reset before it began costs nothing more, and a connection
// that does little else is closed. Those that were reset while they waited for
// a place never come here; net/http closes a connection with more than four
// times MaxConcurrentStreams of them.
//
// The time for an answer begins with the request, so that the box's own work is in
// it. A change may be work: passwords are hashed slowly on purpose, and a small box
// with much to do once took longer than a visitor has. The owner was made, and the
// browser was told that the connection had broken. Answers to changes are short, and
// lie in the kernel's buffer whether somebody reads or not: waiting costs nothing.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			// One that cannot be set has the shorter time.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(changeAnswer))
		}
		v, _ := r.Context().Value(callerKey{}).(*caller)
		if v == nil {
			next.ServeHTTP(w, r)
			return
		}
		v.asked.Store(true)
		if r.Context().Err() == nil {
			next.ServeHTTP(w, r)
		}
		if r.ProtoMajor == 2 && r.Context().Err() != nil && v.reset(time.Now()) {
			v.conn.Close()
		}
	})
}
