// Package attend is the line on which a site waits for its hub's word: sessions to join and to end one way, what became of them the other.
//
// The site opens it with a signed request (package enroll) over the TLS
// connection on which it has enrolled, which is switched to lines of JSON then,
// each a ToSite or a FromSite. What the hub says about a session is signed by
// the organisation besides (package session).
package attend

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"gatehouse/appliance/session"
)

// Path of the request, and the protocol that it upgrades to.
const (
	Path     = "/api/v1/site/attend"
	Protocol = "gatehouse-attend/1"
)

// Limits.
const (
	MaxLine  = 128 << 10        // bytes
	MaxChunk = 48 << 10         // bytes of a recording in one line
	Alive    = 10 * time.Second // each side says something at least so often
	Silence  = 35 * time.Second // and takes the other for gone after so long
)

// ToSite is what the hub says. Exactly one field is set, or none: it is alive.
type ToSite struct {
	Welcome *Welcome `json:"welcome,omitempty"` // first
	Offer   *Offer   `json:"offer,omitempty"`
	Meet    *Meet    `json:"meet,omitempty"`
	Signal  *Signal  `json:"signal,omitempty"`
	End     *End     `json:"end,omitempty"`
	Kept    *Kept    `json:"kept,omitempty"`
}

// Welcome says who may grant. It is on the channel on which hub and site have
// proved each other the site's API key, so it needs no other authority.
type Welcome struct {
	Organisation []byte `json:"organisation"` // Ed25519 public key
}

// Offer is a session to serve, with what only the agent needs for it.
type Offer struct {
	Grant    []byte   `json:"grant"`            // signed
	Ticket   []byte   `json:"ticket,omitempty"` // signed: of the first meeting; none for a browser's session
	Material Material `json:"material"`
}

// Material is what the agent needs and the technician never sees.
type Material struct {
	User       string   `json:"user,omitempty"`
	Password   string   `json:"password,omitempty"`
	PrivateKey []byte   `json:"private_key,omitempty"` // PEM, without a passphrase
	HostKeys   [][]byte `json:"host_keys,omitempty"`   // pinned, in SSH's wire form; none: ask at first use
	Direct     bool     `json:"direct"`                // the ends may look for a way without the gateway
	Source     string   `json:"source,omitempty"`      // the technician's address, as the hub sees it
	Idle       int      `json:"idle,omitempty"`        // minutes without input until the session ends; 0: never
}

// Meet is a further meeting of a session at its gateway.
type Meet struct {
	Session session.ID `json:"session"`
	Ticket  []byte     `json:"ticket"`
}

// Signal is a browser's offer for a session; the site answers with a Signalled
// of the same number.
type Signal struct {
	Session session.ID `json:"session"`
	Number  uint64     `json:"number"`
	SDP     string     `json:"sdp"`
	Tickets [][]byte   `json:"tickets"` // for as many connections through the gateway
	Hosts   []string   `json:"hosts"`   // IP addresses by which the browser reaches the gateway
	Port    uint16     `json:"port"`    // of the gateway there
}

// End ends a session at the site.
type End struct {
	Session session.ID `json:"session"`
	Reason  string     `json:"reason"`
}

// Kept says how much of a recording the hub has on disk.
type Kept struct {
	Session session.ID `json:"session"`
	Size    int64      `json:"size"`
	Problem string     `json:"problem,omitempty"` // why no more of it is kept
	Removed bool       `json:"removed,omitempty"` // it was had, and removed: the site's copy goes too
}

// FromSite is what the site says. Exactly one field is set, or none: it is alive.
type FromSite struct {
	Hello     *Hello     `json:"hello,omitempty"` // first
	Event     *Event     `json:"event,omitempty"`
	HostKey   *HostKey   `json:"host_key,omitempty"`
	Signalled *Signalled `json:"signalled,omitempty"`
	Chunk     *Chunk     `json:"chunk,omitempty"`
}

// Hello says by which keys the agent's end of a session is pinned, and which
// sessions it still has from before the line was cut.
type Hello struct {
	Key         session.Key  `json:"key"`         // SHA-256 of the public key
	Certificate session.Key  `json:"certificate"` // SHA-256 of the certificate, as browsers pin it
	Sessions    []session.ID `json:"sessions"`
}

// Event is something that happened in a session.
type Event struct {
	Session session.ID        `json:"session"`
	What    What              `json:"what"`
	Text    string            `json:"text,omitempty"` // the reason of an end, the function of a stream
	Detail  map[string]string `json:"detail,omitempty"`
}

// What happened.
type What string

// The kinds of event.
const (
	Joined What = "joined" // the technician's end is there
	Lost   What = "lost"   // all ways to it are gone; it may come back
	Ended  What = "ended"
	Opened What = "opened" // a function: Text is the Do of package wire
	Closed What = "closed"
	File   What = "file" // Detail: way (sent, received), path, size, sha256
	Way    What = "way"  // the way changed: Text is relay, tcp, udp
)

// HostKey is a key that the technician has accepted for the target at first use.
type HostKey struct {
	Session session.ID `json:"session"`
	Key     []byte     `json:"key"` // SSH's wire form
}

// Signalled answers a Signal.
type Signalled struct {
	Session session.ID `json:"session"`
	Number  uint64     `json:"number"`
	SDP     string     `json:"sdp,omitempty"`
	Error   string     `json:"error,omitempty"`
}

// Chunk is a part of a recording, as it is on the site's disk, encrypted.
type Chunk struct {
	Session session.ID `json:"session"`
	At      int64      `json:"at"` // bytes before it
	Bytes   []byte     `json:"bytes"`
	Last    bool       `json:"last,omitempty"` // nothing follows
}

// Write writes one message as a line.
func Write(w io.Writer, m any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("writing to the other side of the line: %w", err)
	}
	if len(b) >= MaxLine {
		return fmt.Errorf("writing to the other side of the line: %d bytes, the limit is %d", len(b), MaxLine)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// NewReader makes what Read reads from.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 4<<10) }

// Read reads one message into m, a *ToSite or *FromSite.
func Read(r *bufio.Reader, m any) error {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return fmt.Errorf("a line is longer than %d bytes", MaxLine)
		}
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return fmt.Errorf("a line cannot be read: %w", err)
	}
	return nil
}
