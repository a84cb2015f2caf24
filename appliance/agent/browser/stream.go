package browser

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pion/datachannel"
)

// A data channel has neither a way to close one direction nor a way for its
// reader to slow its writer down: a browser takes whatever comes. So a stream is
// binary messages, which carry bytes, and text messages, which say these two
// things: docs/sessions.md.
const (
	wordEnd  = "end"   // no more comes from this side
	wordRead = "read " // and a number: so many bytes were taken in all

	// Window is how many bytes may be on their way that were not taken: of each
	// direction, and so of each buffer here.
	Window     = 128 << 10
	maxMessage = 16 << 10 // bytes of one message
)

var errProtocol = errors.New("the browser does not keep to what streams are")

// channel is what a stream needs of a data channel.
type channel interface {
	ReadDataChannel([]byte) (n int, isString bool, err error)
	WriteDataChannel(p []byte, isString bool) (int, error)
	SetReadDeadline(time.Time) error
	Close() error
}

var _ channel = (*datachannel.DataChannel)(nil)

// stream is a wire.Stream over a data channel.
type stream struct {
	dc    channel
	write sync.Mutex // one message after the other

	mu    sync.Mutex
	moved sync.Cond

	in        bytes.Buffer
	inEnd     bool
	read      uint64 // bytes that were taken
	told      uint64 // of these, what the other side knows
	sent, has uint64 // bytes sent, and taken by the other side
	outEnd    bool
	err       error // why nothing goes any more
}

func newStream(dc channel) *stream {
	s := &stream{dc: dc}
	s.moved.L = &s.mu
	return s
}

// pump takes what comes until the channel ends. Its buffer is bounded by the
// window, which who sends has to keep to.
func (s *stream) pump() {
	b := make([]byte, maxMessage)
	for {
		n, text, err := s.dc.ReadDataChannel(b)
		if err == nil {
			err = s.take(b[:n], text)
		}
		if err != nil {
			s.fail(err)
			if errors.Is(err, errProtocol) {
				s.dc.Close()
			}
			return
		}
	}
}

func (s *stream) take(b []byte, text bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.moved.Broadcast()
	switch {
	case !text && (s.inEnd || s.in.Len()+len(b) > Window):
		return fmt.Errorf("%w: it sends more than it may", errProtocol)
	case !text:
		s.in.Write(b)
	case string(b) == wordEnd && !s.inEnd:
		s.inEnd = true
	case strings.HasPrefix(string(b), wordRead):
		n, err := strconv.ParseUint(string(b[len(wordRead):]), 10, 64)
		if err != nil || n < s.has || n > s.sent {
			return fmt.Errorf("%w: it has read what was not sent", errProtocol)
		}
		s.has = n
	default:
		return fmt.Errorf("%w: it says %.20q", errProtocol, b)
	}
	return nil
}

// fail ends both directions; what has come can still be read.
func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.moved.Broadcast()
}

// Read is io.Reader's. A channel that ends without a word was cut.
func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	for s.in.Len() == 0 && !s.inEnd && s.err == nil {
		s.moved.Wait()
	}
	if s.in.Len() == 0 {
		defer s.mu.Unlock()
		if s.inEnd {
			return 0, io.EOF
		}
		if errors.Is(s.err, io.EOF) {
			return 0, io.ErrUnexpectedEOF
		}
		return 0, s.err
	}
	n, err := s.in.Read(p)
	s.read += uint64(n)
	tell := s.read-s.told >= Window/4 && !s.inEnd && s.err == nil
	if tell {
		s.told = s.read
	}
	total := s.read
	s.mu.Unlock()
	if tell {
		if _, werr := s.dc.WriteDataChannel([]byte(wordRead+strconv.FormatUint(total, 10)), true); werr != nil {
			s.fail(werr)
		}
	}
	return n, err
}

// Write is io.Writer's; it waits for the window.
func (s *stream) Write(p []byte) (int, error) {
	s.write.Lock()
	defer s.write.Unlock()
	done := 0
	for done < len(p) {
		n, err := s.room(min(len(p)-done, maxMessage))
		if err != nil {
			return done, err
		}
		if _, err := s.dc.WriteDataChannel(p[done:done+n], false); err != nil {
			s.fail(err)
			return done, err
		}
		done += n
	}
	return done, nil
}

// room waits until at least a byte may be sent, and takes at most want.
func (s *stream) room(want int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && !s.outEnd && s.sent-s.has >= Window {
		s.moved.Wait()
	}
	switch {
	case s.outEnd:
		return 0, net.ErrClosed
	case errors.Is(s.err, io.EOF):
		return 0, io.ErrClosedPipe
	case s.err != nil:
		return 0, s.err
	}
	n := min(want, int(Window-(s.sent-s.has)))
	s.sent += uint64(n)
	return n, nil
}

// CloseWrite says that no more comes from this side.
func (s *stream) CloseWrite() error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	over := s.outEnd || s.err != nil
	s.outEnd = true
	s.mu.Unlock()
	if over {
		return nil
	}
	_, err := s.dc.WriteDataChannel([]byte(wordEnd), true)
	return err
}

// Close ends both ways at once. What was written before is still sent.
func (s *stream) Close() error {
	s.fail(net.ErrClosed)
	return errors.Join(s.dc.Close(), s.dc.SetReadDeadline(time.Unix(1, 0)))
}
