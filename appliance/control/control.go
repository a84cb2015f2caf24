// Package control is the set of requests a role may make of the privileged process, and who may make them.
//
// The wire is a Unix stream socket. A message is a 4-byte big-endian length,
// at most MaxMessage, and that much JSON. The server knows its callers by
// SO_PEERCRED, never by what they say: the uid must be the role's and the pid
// the one that the supervisor started for it.
package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"gatehouse/appliance/task"
)

// Role names a supervised process.
type Role string

// The roles.
const (
	Init    Role = "init"
	Network Role = "network"
	Gateway Role = "gateway"
	Console Role = "console"
	Agent   Role = "agent"
	Filter  Role = "filter" // runs only while allowlists change
)

// MaxMessage is the longest message on the wire, in bytes: an answer. A
// question has at most maxQuestion, twice the longest line of the audit log.
const (
	MaxMessage  = 1 << 20
	maxQuestion = 128 << 10
)

// Error is a refusal in words: what was asked, why not, what to do.
type Error struct {
	Code string `json:"code"` // denied, invalid, state, failed
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// The codes of an Error.
const (
	CodeDenied  = "denied"  // this role may not ask this
	CodeInvalid = "invalid" // the question is malformed
	CodeState   = "state"   // not in this state of the box
	CodeFailed  = "failed"  // it was tried and did not work
)

type envelope struct {
	ID    uint64          `json:"id"`
	Op    string          `json:"op,omitempty"`
	Error *Error          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

func writeMessage(w io.Writer, e envelope) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("message of %d bytes is over the limit of %d", len(b), MaxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, limit uint32) (envelope, error) {
	b, err := frame(r, limit)
	if err != nil {
		return envelope{}, err
	}
	var e envelope
	if err := strict(b, &e); err != nil {
		return envelope{}, fmt.Errorf("message is not valid: %w", err)
	}
	return e, nil
}

// Client is a role's connection to the privileged process. Calls may run at
// the same time. When the connection is lost every call fails: a role then
// ends, and is started anew with a fresh one.
type Client struct {
	conn net.Conn
	wmu  sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan envelope
	err     error
}

// Dial connects to the control socket at path.
func Dial(path string) (*Client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to the control socket: %w", err)
	}
	return NewClient(conn), nil
}

// NewClient makes a client of an open connection.
func NewClient(conn net.Conn) *Client {
	c := &Client{conn: conn, waiting: make(map[uint64]chan envelope)}
	go c.read() // ends with the connection
	return c
}

// Close ends the connection and all waiting calls.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) read() {
	for {
		e, err := readMessage(c.conn, MaxMessage)
		c.mu.Lock()
		if err != nil {
			c.err = fmt.Errorf("the control socket is gone: %w", err)
			for id, ch := range c.waiting {
				delete(c.waiting, id)
				close(ch)
			}
			c.mu.Unlock()
			c.conn.Close()
			return
		}
		ch := c.waiting[e.ID]
		delete(c.waiting, e.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- e
		}
	}
}

func (c *Client) call(ctx context.Context, op string, body json.RawMessage) (json.RawMessage, error) {
	ch := make(chan envelope, 1)
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	id := c.next
	c.waiting[id] = ch
	c.mu.Unlock()
	c.wmu.Lock()
	err := writeMessage(c.conn, envelope{ID: id, Op: op, Body: body})
	c.wmu.Unlock()
	if err != nil {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return nil, err
	}
	select {
	case e, ok := <-ch:
		switch {
		case !ok:
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		case e.Error != nil:
			return nil, e.Error
		}
		return e.Body, nil
	case <-ctx.Done():
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
		return nil, ctx.Err()
	}
}

// Call asks the privileged process; a refusal is an *Error.
func (o Op[Req, Resp]) Call(ctx context.Context, c *Client, req Req) (Resp, error) {
	var resp Resp
	b, err := json.Marshal(req)
	if err != nil {
		return resp, fmt.Errorf("asking %s: %w", o.name, err)
	}
	b, err = c.call(ctx, o.name, b)
	if err != nil {
		return resp, fmt.Errorf("asking %s: %w", o.name, err)
	}
	if err := json.Unmarshal(b, &resp); err != nil {
		return resp, fmt.Errorf("reading the answer to %s: %w", o.name, err)
	}
	return resp, nil
}

// Heartbeat is the task by which a role shows every five seconds that it is not frozen.
func (c *Client) Heartbeat() task.Task {
	return task.Func("heartbeat", func(ctx context.Context) error {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			if _, err := OpAlive.Call(ctx, c, None{}); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
		}
	})
}

// IsCode says whether err is a refusal with that code.
func IsCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
