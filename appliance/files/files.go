// Package files gives files of a target to a technician and takes files from one: listing, transfers both ways with resume and SHA-256, over streams of a session.
//
// One stream is one operation. The technician's end says which in the Args of
// its wire.Open, the agent checks the grant's right for it, and speaks SFTP with
// the target. The protocol is ours and not SFTP end to end, since then the agent
// could neither tell which right a packet needs nor log a transfer with its
// name, size and hash, and since resuming needs hashes that SFTP does not have
// (decision 28). docs/sessions.md has the messages.
//
// This package is the protocol; serve is the agent's side, with remote for the
// target, and copier the technician's.
package files

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/session/wire"
)

// Op is what a stream is for.
type Op string

// The operations, each with the function of the grant that it needs.
const (
	List   Op = "list"   // file-manager: what a folder holds
	Stat   Op = "stat"   // file-manager: what a path is
	Mkdir  Op = "mkdir"  // file-manager: make a folder, or find it there
	Rename Op = "rename" // file-manager: never over another
	Remove Op = "remove" // file-manager: a file, a link, an empty folder
	Get    Op = "get"    // receive-files
	Hash   Op = "hash"   // receive-files: SHA-256 of a file's first bytes
	Put    Op = "put"    // send-files
)

// Request is the Args of an Open. Paths and names are bytes, as the target
// spells them: not all of them are UTF-8.
type Request struct {
	Op      Op     `json:"op"`
	Path    []byte `json:"path"`              // relative ones begin where the target's account does
	To      []byte `json:"to,omitempty"`      // rename
	Name    []byte `json:"name,omitempty"`    // put: what to call it if Path is a folder
	Size    int64  `json:"size,omitempty"`    // put: of the file; hash: how many bytes
	Mode    uint32 `json:"mode,omitempty"`    // put, mkdir: permission bits of what is new
	From    int64  `json:"from,omitempty"`    // get: bytes that are there already
	SHA256  string `json:"sha256,omitempty"`  // get: of these
	Resume  bool   `json:"resume,omitempty"`  // put: go on with what an earlier one left
	NoLinks bool   `json:"noLinks,omitempty"` // get, mkdir: refuse a link, whatever it leads to
}

// Kind is what a name in a folder stands for.
type Kind string

// The kinds.
const (
	File   Kind = "file"
	Folder Kind = "folder"
	Link   Kind = "link"
	Other  Kind = "other" // a device, a pipe, a socket
)

// Entry is one name in a folder, or what a path is.
type Entry struct {
	Name []byte `json:"name"`
	Kind Kind   `json:"kind"`
	Size int64  `json:"size"`
	Mode uint32 `json:"mode"` // permission bits
	Time int64  `json:"time"` // of the last change of its content, Unix seconds
}

// Ready answers a put: where it goes, and how much an earlier one left of it.
type Ready struct {
	Path []byte `json:"path"`
	Part int64  `json:"part"`
}

// Have says what the technician's end has of the bytes that an earlier put left.
type Have struct {
	From   int64  `json:"from"`
	SHA256 string `json:"sha256"`
}

// Begin says from where the content is sent. From is 0 with a Why where both
// ends had a part, and it was not the same.
type Begin struct {
	From int64  `json:"from"`
	Why  string `json:"why,omitempty"`
}

// End closes a transfer or a hash. Its numbers are of the whole file.
type End struct {
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	Changed bool   `json:"changed,omitempty"` // get: the file was written to meanwhile
	Note    string `json:"note,omitempty"`    // put: what is not as it was before
}

// Listed closes a list.
type Listed struct {
	More bool `json:"more,omitempty"` // the folder holds more than is listed
}

// Limits.
const (
	MaxPath    = 4096   // bytes
	MaxEntries = 50_000 // of one folder
	MaxContent = 64 << 10
	Chunk      = 512 << 10 // bytes that are read or written at the target at once; parts are whole chunks
)

// partSuffix ends the name of what is not whole yet.
const partSuffix = ".gatehouse-part"

// PartName is where the content of name is written until it is whole: beside
// it, hidden. A name that would become too long is hashed.
func PartName(name string) string {
	if len(name)+1+len(partSuffix) <= 255 {
		return "." + name + partSuffix
	}
	h := sha256.Sum256([]byte(name))
	return "." + hex.EncodeToString(h[:16]) + partSuffix
}

// IsPart says whether a name is one of PartName's.
func IsPart(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, partSuffix)
}

// Whole is how much of a part of that size can be trusted to be without holes.
// Chunks are written one after another, but the pieces of one in any order; so
// the last, whole as it may look, is written again.
func Whole(size int64) int64 {
	if size <= 0 {
		return 0
	}
	return (size - 1) / Chunk * Chunk
}

// Shown is a path or name for people and logs: as it is where it is plain, else
// quoted as in Go, so that it can be told what it was.
func Shown(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return s
	}
	return strconv.QuoteToGraphic(s)
}

// FrameKind is what a frame carries.
type FrameKind byte

// The kinds of frame; content is JSON but for Data.
const (
	FrameData     FrameKind = 'd' // content of the file
	FrameEntries  FrameKind = 'l' // []Entry
	FrameProgress FrameKind = 'p' // an End without a hash: bytes that were hashed so far
	FrameHave     FrameKind = 'r' // Have
	FrameBegin    FrameKind = 'a' // Begin
	FrameEnd      FrameKind = 'z' // End or Listed: all is well
	FrameError    FrameKind = 'x' // wire.Reply with an Error: nothing comes of it
)

// Frames reads and writes the frames that follow the Reply: kind (1), length
// (3, big-endian), content. It is for one reader and one writer.
type Frames struct {
	rw  io.ReadWriter
	in  [MaxContent]byte
	out [4 + MaxContent]byte
}

// NewFrames are those of a stream.
func NewFrames(rw io.ReadWriter) *Frames { return &Frames{rw: rw} }

// Write sends content in as many frames as it takes; nothing is one frame.
func (f *Frames) Write(k FrameKind, content []byte) error {
	for {
		n := copy(f.out[4:], content)
		binary.BigEndian.PutUint32(f.out[:], uint32(k)<<24|uint32(n))
		if _, err := f.rw.Write(f.out[:4+n]); err != nil {
			return err
		}
		if content = content[n:]; len(content) == 0 {
			return nil
		}
	}
}

// Say sends a message.
func (f *Frames) Say(k FrameKind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing a message about files: %w", err)
	}
	if len(b) > MaxContent {
		return fmt.Errorf("writing a message about files: %d bytes, the limit is %d", len(b), MaxContent)
	}
	return f.Write(k, b)
}

// Read reads a frame; the content is good until the next. A FrameError is its
// error, a *wire.Refusal.
func (f *Frames) Read() (FrameKind, []byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(f.rw, head[:]); err != nil {
		return 0, nil, fmt.Errorf("the stream ended too early: %w", noEOF(err))
	}
	n := int(head[1])<<16 | int(head[2])<<8 | int(head[3])
	if n > MaxContent {
		return 0, nil, fmt.Errorf("a frame of %d bytes, the limit is %d", n, MaxContent)
	}
	if _, err := io.ReadFull(f.rw, f.in[:n]); err != nil {
		return 0, nil, fmt.Errorf("the stream ended too early: %w", noEOF(err))
	}
	if FrameKind(head[0]) == FrameError {
		var p wire.Reply
		if err := Message(f.in[:n], &p); err != nil {
			return 0, nil, err
		}
		return 0, nil, &wire.Refusal{Code: p.Code, Text: wire.Printable(p.Error, 1024)}
	}
	return FrameKind(head[0]), f.in[:n], nil
}

// Expect reads a message of that kind, over any progress that comes before it;
// with a nil progress none may come.
func (f *Frames) Expect(k FrameKind, v any, progress func(done int64)) error {
	for {
		kind, b, err := f.Read()
		switch {
		case err != nil:
			return err
		case kind == FrameProgress && progress != nil:
			var p End
			if err := Message(b, &p); err != nil {
				return err
			}
			progress(p.Size)
		case kind != k:
			return fmt.Errorf("a frame of kind %q came where %q was due", kind, k)
		default:
			return Message(b, v)
		}
	}
}

// Message reads the content of a frame, strictly.
func Message(b []byte, v any) error {
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("a message about files cannot be read: %w", err)
	}
	return nil
}

// Fail sends an error instead of an end.
func (f *Frames) Fail(err error) error {
	r := Refusal(err)
	return f.Say(FrameError, wire.Reply{Error: wire.Printable(r.Text, 1024), Code: r.Code})
}

// Refusal is an error as the other end learns it.
func Refusal(err error) *wire.Refusal {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return r
	}
	return wire.Refuse(wire.Failed, "%s", err.Error())
}

// noEOF makes the end of a stream an error where it is not expected.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
