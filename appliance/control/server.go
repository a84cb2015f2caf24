package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What one caller can hold. The numbers bound the memory of the privileged
// process: roles × connections × (requests + 1) × maxQuestion at the very worst.
const (
	requestsPerConnection = 32
	connectionsPerRole    = 4
	stall                 = 10 * time.Second // to finish a message once begun, either way
	linesPerSecond        = 5                // of the log about one role, or about strangers
)

type operation struct {
	mayAsk func(Role) bool
	serve  func(ctx context.Context, from Role, body json.RawMessage) (any, error)
}

// Server answers the roles' requests. Make one with NewServer, give it its
// operations with Handle, then run Serve.
type Server struct {
	log      *slog.Logger
	identify func(pid int, uid uint32) (Role, bool)
	ops      map[string]operation
	stall    time.Duration

	mu   sync.Mutex
	open map[Role]int
	said map[Role]said // "" is no role
}

// said is how many lines of the log there were about a caller, and since when.
type said struct {
	since time.Time
	lines int
}

// NewServer makes a Server that knows its callers by identify: the role of the
// process pid, if it is one that was started and runs under that uid.
func NewServer(log *slog.Logger, identify func(pid int, uid uint32) (Role, bool)) *Server {
	return &Server{log: log, identify: identify, ops: make(map[string]operation), stall: stall, open: make(map[Role]int), said: make(map[Role]said)}
}

// Handle sets the handler of op, before Serve. Its context ends with the
// caller's connection. A handler that cannot leave its work half done must not
// look at the context once it has begun.
func Handle[Req, Resp any](s *Server, op Op[Req, Resp], h func(ctx context.Context, from Role, req Req) (Resp, error)) {
	s.ops[op.name] = operation{
		mayAsk: op.MayAsk,
		serve: func(ctx context.Context, from Role, body json.RawMessage) (any, error) {
			var req Req
			if len(body) == 0 {
				return nil, &Error{CodeInvalid, op.name + ": the question has no body"}
			}
			if err := strict(body, &req); err != nil {
				return nil, &Error{CodeInvalid, fmt.Sprintf("%s: the question is malformed: %v", op.name, err)}
			}
			return h(ctx, from, req)
		},
	}
}

// strict decodes one JSON value: no field that v lacks, nothing after it.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// Serve answers connections to ln until ctx ends, then closes all of them and
// waits for the handlers.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait: connections end with the context
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return ctx.Err()
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serving the control socket: %w", err)
		case err != nil:
			// Out of descriptors or memory: it passes, and without this
			// socket the roles are lost.
			s.log.Error("control socket: accept failed, trying again", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		wg.Go(func() { s.connection(ctx, conn) })
	}
}

// caller reads who is at the other end, as the kernel knows it.
func (s *Server) caller(conn net.Conn) (cred unix.Ucred, err error) {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return cred, fmt.Errorf("a %T has no credentials", conn)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return cred, err
	}
	var got *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		got, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cred, cerr
	}
	if err != nil {
		return cred, err
	}
	return *got, nil
}

// warn writes a line about a caller, unless there were some a moment ago: one
// that asks what it may not, over and over, must not turn the log over.
func (s *Server) warn(about Role, text string, args ...any) {
	s.mu.Lock()
	now, n := time.Now(), s.said[about]
	if now.Sub(n.since) >= time.Second {
		n = said{since: now}
	}
	n.lines++
	s.said[about] = n
	s.mu.Unlock()
	if n.lines <= linesPerSecond {
		s.log.Warn(text, args...)
	}
}

func (s *Server) enter(r Role) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[r] >= connectionsPerRole {
		return false
	}
	s.open[r]++
	return true
}

func (s *Server) leave(r Role) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[r]--
}

// connection serves one caller until it goes, misbehaves, or ctx ends.
func (s *Server) connection(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	cred, err := s.caller(conn)
	if err != nil {
		s.warn("", "control socket: the caller is unknown, refused", "err", err)
		return
	}
	role, ok := s.identify(int(cred.Pid), cred.Uid)
	if !ok {
		s.warn("", "control socket: the caller is no role, refused", "pid", cred.Pid, "uid", cred.Uid)
		return
	}
	if !s.enter(role) {
		s.warn(role, "control socket: too many connections, refused", "role", role, "limit", connectionsPerRole)
		return
	}
	defer s.leave(role)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var (
		wg    sync.WaitGroup
		wmu   sync.Mutex
		slots = make(chan struct{}, requestsPerConnection)
	)
	defer wg.Wait()
	defer cancel()
	for {
		e, err := s.read(conn)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, io.EOF) {
				s.warn(role, "control socket: connection ended", "role", role, "err", err)
			}
			return
		}
		// A full connection is not read: its own caller waits, nobody else.
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			answer := s.answer(ctx, role, cred, e)
			wmu.Lock()
			defer wmu.Unlock()
			if err := s.write(conn, answer); err != nil {
				cancel() // a caller that does not read its answers is of no use
			}
		})
	}
}

// read waits without limit for a message to begin, but not for it to end.
func (s *Server) read(conn net.Conn) (envelope, error) {
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return envelope{}, err
	}
	var first [1]byte
	if _, err := io.ReadFull(conn, first[:]); err != nil {
		return envelope{}, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(s.stall)); err != nil {
		return envelope{}, err
	}
	return readMessage(io.MultiReader(bytes.NewReader(first[:]), conn), maxQuestion)
}

func (s *Server) write(conn net.Conn, e envelope) error {
	if err := conn.SetWriteDeadline(time.Now().Add(s.stall)); err != nil {
		return err
	}
	return writeMessage(conn, e)
}

// answer never fails: what goes wrong is the answer.
func (s *Server) answer(ctx context.Context, role Role, cred unix.Ucred, e envelope) (out envelope) {
	out.ID = e.ID
	refuse := func(code, format string, args ...any) envelope {
		return envelope{ID: e.ID, Error: &Error{code, fmt.Sprintf(format, args...)}}
	}
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("control socket: a handler panicked", "op", e.Op, "role", role, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			out = refuse(CodeFailed, "%s: internal error, see the log", e.Op)
		}
	}()
	op, ok := s.ops[e.Op]
	if !ok {
		return refuse(CodeInvalid, "there is no operation %q", e.Op)
	}
	// Asked anew for each request: a descriptor that outlived the process it
	// was made by (passed on, or kept by a child) has no rights left.
	if now, ok := s.identify(int(cred.Pid), cred.Uid); !ok || now != role {
		return refuse(CodeDenied, "%s: the %s that opened this connection has ended", e.Op, role)
	}
	if !op.mayAsk(role) {
		s.warn(role, "control socket: refused", "op", e.Op, "role", role)
		return refuse(CodeDenied, "%s may not ask %s", role, e.Op)
	}
	resp, err := op.serve(ctx, role, e.Body)
	if err != nil {
		var known *Error
		if errors.As(err, &known) {
			return refuse(known.Code, "%s", err)
		}
		return refuse(CodeFailed, "%s", err)
	}
	b, err := json.Marshal(resp)
	if err != nil {
		return refuse(CodeFailed, "%s: the answer cannot be written: %v", e.Op, err)
	}
	if len(b) > MaxMessage-answerOverhead {
		return refuse(CodeFailed, "%s: the answer of %d bytes is over the limit of %d; ask for less", e.Op, len(b), MaxMessage)
	}
	out.Body = b
	return out
}

// answerOverhead is the most that the envelope adds around a body.
const answerOverhead = 128

// frame reads one length and that many bytes. The buffer grows with what
// arrives, so that a length alone takes no memory.
func frame(r io.Reader, limit uint32) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > limit {
		return nil, fmt.Errorf("message of %d bytes is over the limit of %d", size, limit)
	}
	var b bytes.Buffer
	if got, err := io.CopyN(&b, r, int64(size)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("message ended after %d of %d bytes: %w", got, size, err)
	}
	return b.Bytes(), nil
}
