// Package wire is what the two ends of a session say to each other on its streams: how a stream is opened, and the frames of a terminal.
//
// A stream is one ordered flow of bytes each way, whatever carries it: a
// carrier of the tool, or a data channel of a browser. The technician opens it
// and says in an Open what it is for; the agent answers with a Reply, and what
// follows belongs to the function that was opened. docs/sessions.md has the
// bytes.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// Stream is one flow of bytes each way. Close ends both ways at once; CloseWrite
// says that no more comes from this side.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Do is what a stream is for.
type Do string

// The functions that are there. Each needs rights of the session's grant.
const (
	Terminal Do = "terminal" // of the target, by SSH; frames: remote-control
	Exec     Do = "exec"     // one command at the target, by SSH; frames: scripts
	Forward  Do = "forward"  // the target's port as it is, opaque: remote-control
	Web      Do = "web"      // a connection to the target's web pages, opaque: urls
	Files    Do = "files"    // files of the target, by SFTP (package files): file-manager, send-files, receive-files
	Console  Do = "console"  // the maintenance console of the site's box; frames: system-info
	Direct   Do = "direct"   // the ends look for a way without the gateway (package direct): no right of its own
)

// Open is the first message of a stream, by the technician's end.
type Open struct {
	Do      Do              `json:"do"`
	Width   int             `json:"width,omitempty"`   // columns of a terminal
	Height  int             `json:"height,omitempty"`  // rows
	Term    string          `json:"term,omitempty"`    // what TERM says, xterm-256color if empty
	Command string          `json:"command,omitempty"` // of exec
	Resume  string          `json:"resume,omitempty"`  // the terminal that was left without a goodbye, as Reply named it
	Seen    uint64          `json:"seen,omitempty"`    // bytes of its output that came
	Args    json.RawMessage `json:"args,omitempty"`    // of a function with messages of its own
}

// Reply is the agent's answer. A refusal is a Reply with an Error, and the end
// of the stream.
type Reply struct {
	Error    string          `json:"error,omitempty"`    // in words, for the person
	Code     Code            `json:"code,omitempty"`     // what kind of error
	Terminal string          `json:"terminal,omitempty"` // the name under which this terminal can be resumed
	At       uint64          `json:"at,omitempty"`       // bytes of output before the first that follows
	Recorded bool            `json:"recorded,omitempty"`
	Args     json.RawMessage `json:"args,omitempty"`
}

// Code tells refusals apart for programs.
type Code string

// The kinds of refusal.
const (
	Denied      Code = "denied"      // the grant does not have the right
	Unreachable Code = "unreachable" // the target does not answer, or not in time
	HostKey     Code = "host-key"    // the target shows another key than the pinned one
	Credential  Code = "credential"  // the target does not take the credentials, or there are none
	Invalid     Code = "invalid"     // the request is not one
	NotFound    Code = "not-found"   // there is no such file, or terminal
	Failed      Code = "failed"      // anything else
	Forced      Code = "recording"   // the recording that is forced cannot be made
)

// Refusal is an error that the other end sent, or is to be sent.
type Refusal struct {
	Code Code
	Text string
}

func (r *Refusal) Error() string { return r.Text }

// Refuse makes a Refusal.
func Refuse(c Code, format string, args ...any) *Refusal {
	return &Refusal{c, fmt.Sprintf(format, args...)}
}

// maxMessage is the longest Open or Reply, in bytes.
const maxMessage = 32 << 10

// WriteOpen opens a stream.
func WriteOpen(w io.Writer, o Open) error { return writeMessage(w, o) }

// ReadOpen reads what a stream is for.
func ReadOpen(r io.Reader) (Open, error) {
	var o Open
	err := readMessage(r, &o)
	return o, err
}

// WriteReply answers an Open.
func WriteReply(w io.Writer, p Reply) error { return writeMessage(w, p) }

// WriteRefusal answers with an error; one that is no Refusal is Failed.
func WriteRefusal(w io.Writer, err error) error {
	var r *Refusal
	if !errors.As(err, &r) {
		r = &Refusal{Failed, err.Error()}
	}
	return WriteReply(w, Reply{Error: Printable(r.Text, 1024), Code: r.Code})
}

// ReadReply reads the answer to an Open. A refusal is its error, a *Refusal.
func ReadReply(r io.Reader) (Reply, error) {
	var p Reply
	if err := readMessage(r, &p); err != nil {
		return p, err
	}
	if p.Error != "" || p.Code != "" {
		return p, &Refusal{p.Code, Printable(p.Error, 1024)}
	}
	return p, nil
}

// writeMessage writes a length (2, big-endian) and JSON in one write.
func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing a message of the session: %w", err)
	}
	if len(b) > maxMessage {
		return fmt.Errorf("writing a message of the session: %d bytes, the limit is %d", len(b), maxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
	return err
}

func readMessage(r io.Reader, v any) error {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > maxMessage {
		return fmt.Errorf("a message of the session has %d bytes, the limit is %d", n, maxMessage)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("a message of the session was cut: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("a message of the session cannot be read: %w", err)
	}
	return nil
}

// Kind is what a frame of a terminal, an exec or a console carries.
type Kind byte

// The kinds of frame.
const (
	Input   Kind = 'i' // technician → agent: what was typed
	Size    Kind = 's' // technician → agent: columns (2), rows (2)
	Confirm Kind = 'y' // technician → agent: the answer to Question: 1 yes, 0 no
	EOF     Kind = 'f' // technician → agent: no more input comes
	Output  Kind = 'o' // agent → technician: what the terminal shows; of exec, an empty one when the command has begun: no Input comes before
	Stderr  Kind = 'e' // agent → technician: what exec says on standard error
	Ask     Kind = 'q' // agent → technician: a Question as JSON, before anything is shown
	Exit    Kind = 'x' // agent → technician: an Ended as JSON; the last frame
)

// MaxFrame is the longest content of a frame, in bytes.
const MaxFrame = 16 << 10

// Question is what the agent asks before it goes on: is this the target?
type Question struct {
	Target      string `json:"target"`
	Algorithm   string `json:"algorithm"`   // ssh-ed25519
	Fingerprint string `json:"fingerprint"` // SHA256:…, as ssh shows it
}

// Ended says how a terminal or a command ended.
type Ended struct {
	Status int    `json:"status"`           // of the command; -1 if it has none
	Reason string `json:"reason,omitempty"` // why it was ended from here, in words
	Code   Code   `json:"code,omitempty"`
}

// WriteFrame writes kind (1), length (2, big-endian) and content in one write.
func WriteFrame(w io.Writer, k Kind, content []byte) error {
	if len(content) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes, the limit is %d", len(content), MaxFrame)
	}
	b := append(make([]byte, 0, 3+len(content)), byte(k), 0, 0)
	binary.BigEndian.PutUint16(b[1:], uint16(len(content)))
	_, err := w.Write(append(b, content...))
	return err
}

// ReadFrame reads one into buf, which has room for MaxFrame, and returns its
// content as a part of it.
func ReadFrame(r io.Reader, buf []byte) (Kind, []byte, error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(head[1:]))
	if n > MaxFrame || n > len(buf) {
		return 0, nil, fmt.Errorf("a frame of %d bytes, the limit is %d", n, MaxFrame)
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("a frame was cut: %w", err)
	}
	return Kind(head[0]), buf[:n], nil
}

// Printable makes a text of the other end harmless for pages, logs and
// terminals: UTF-8, nothing that moves a cursor or turns directions, at most
// limit bytes. Who shows it on a page still escapes it.
func Printable(s string, limit int) string {
	out := make([]byte, 0, min(len(s), limit))
	for _, r := range s {
		if !unicode.IsPrint(r) {
			r = '\ufffd'
		}
		if len(out)+utf8.RuneLen(r) > limit {
			break
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}
