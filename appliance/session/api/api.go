// Package api is the shapes of the hub's API of targets, sessions and recordings, as tool, pages and console share them.
//
// All are JSON under /api/v1/, for people who are signed in. Times are RFC 3339.
package api

import (
	"time"

	"gatehouse/appliance/session"
)

// Paths. GET lists, POST changes; one thing is named by its id in the question.
const (
	Targets      = "/api/v1/targets"                 // GET → TargetList; POST TargetNew → Target
	TargetChange = "/api/v1/targets/change"          // POST TargetNew with an id → Target
	TargetRemove = "/api/v1/targets/remove"          // POST Which
	Credential   = "/api/v1/targets/credential"      // POST CredentialSet
	HostKeys     = "/api/v1/targets/host-key/forget" // POST Which
	Sessions     = "/api/v1/sessions"                // GET → SessionList; POST Ask → Granted
	Meet         = "/api/v1/sessions/meet"           // POST MeetAsk → Meeting
	Signal       = "/api/v1/sessions/signal"         // POST SignalAsk → Signalled
	End          = "/api/v1/sessions/end"            // POST EndAsk
	NoticePath   = "/api/v1/sessions/notice"         // GET → NoticeBoard
	Recordings   = "/api/v1/recordings"              // GET → RecordingList
	Recording    = "/api/v1/recordings/cast"         // GET ?session=ID → asciicast v2, application/x-asciicast
	RecordingEnd = "/api/v1/recordings/remove"       // POST EndAsk
)

// Which names a target.
type Which struct {
	ID int64 `json:"id"`
}

// Target is what a session can reach.
type Target struct {
	ID int64 `json:"id"`
	session.Target
	Recording  session.Recording `json:"recording"`            // what becomes of its sessions
	Idle       int               `json:"idle"`                 // minutes without input until a session ends; 0: never
	Credential string            `json:"credential,omitempty"` // password, key; "": none is kept
	User       string            `json:"user,omitempty"`
	HostKeys   []string          `json:"host_keys,omitempty"` // fingerprints that are pinned
	Created    time.Time         `json:"created"`
}

// TargetList is all targets, by name. The box itself is the first, with id 0.
type TargetList struct {
	Targets []Target `json:"targets"`
}

// TargetNew declares a target, or changes one.
type TargetNew struct {
	ID int64 `json:"id,omitempty"`
	session.Target
	Recording session.Recording `json:"recording"`
	Idle      int               `json:"idle"`
}

// CredentialSet puts a credential into the vault, or removes it: all empty.
type CredentialSet struct {
	ID         int64  `json:"id"`
	User       string `json:"user"`
	Password   string `json:"password,omitempty"`
	PrivateKey string `json:"private_key,omitempty"` // PEM, without a passphrase
}

// Ask asks for a session.
type Ask struct {
	Target    string            `json:"target"` // its name, or its id in digits
	Transport session.Transport `json:"transport"`
	Key       session.Key       `json:"key"`                 // of the technician's end, made for this session
	Functions []string          `json:"functions,omitempty"` // fewer than one may; none: all
	Record    bool              `json:"record,omitempty"`    // where it is allowed
}

// Granted is a session that was granted.
type Granted struct {
	Session session.ID `json:"session"`
	Grant   []byte     `json:"grant"` // signed; its shape is in docs/sessions.md
	Until   time.Time  `json:"until"`
	Notice  *Notice    `json:"notice,omitempty"` // why it ends sooner than others
	Meeting            // of the first connection; without a ticket for webrtc
}

// Notice is what everybody in a session is to know: when all of them end.
type Notice struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"` // what happens then, as in "the box restarts into version 1.5.0"
}

// NoticeBoard is what there is to tell now. To ask for it is no use of a sign-in,
// as it is asked for by itself, twice a minute while a session lasts.
type NoticeBoard struct {
	Notice *Notice `json:"notice,omitempty"`
}

// MeetAsk asks for a further connection of a session.
type MeetAsk struct {
	Session session.ID `json:"session"`
}

// Meeting is where the two ends meet. The agent is told by the hub.
type Meeting struct {
	Ticket  []byte          `json:"ticket,omitempty"` // signed
	Gateway session.Gateway `json:"gateway"`
}

// SignalAsk is a browser's offer.
type SignalAsk struct {
	Session session.ID `json:"session"`
	SDP     string     `json:"sdp"`
}

// Signalled is the agent's answer.
type Signalled struct {
	SDP string `json:"sdp"`
}

// EndAsk names a session.
type EndAsk struct {
	Session session.ID `json:"session"`
}

// Session is one that is or was.
type Session struct {
	ID         session.ID        `json:"id"`
	Technician string            `json:"technician"`
	From       string            `json:"from"` // address
	Target     session.Target    `json:"target"`
	Transport  session.Transport `json:"transport"`
	State      State             `json:"state"`
	Path       string            `json:"path,omitempty"` // relay, tcp, udp
	Functions  []string          `json:"functions"`
	Open       []string          `json:"open,omitempty"` // functions in use now
	Recording  session.Recording `json:"recording"`
	Recorded   int64             `json:"recorded"` // bytes
	Started    time.Time         `json:"started"`
	Until      time.Time         `json:"until"`
	Ended      time.Time         `json:"ended,omitzero"`
	Reason     string            `json:"reason,omitempty"` // of the end
	Mine       bool              `json:"mine"`
}

// State of a session.
type State string

// The states.
const (
	Waiting State = "waiting" // granted, nobody has come yet
	Live    State = "live"
	Lost    State = "lost" // the ways are gone; it may come back
	Over    State = "ended"
)

// SessionList is newest first: all that are not over, and the last hundred that are.
type SessionList struct {
	Sessions []Session `json:"sessions"`
}

// RecordingInfo is a recording that is kept.
type RecordingInfo struct {
	Session    session.ID     `json:"session"`
	Technician string         `json:"technician"`
	Target     session.Target `json:"target"`
	Started    time.Time      `json:"started"`
	Seconds    float64        `json:"seconds"`
	Size       int64          `json:"size"`
	Whole      bool           `json:"whole"`
	Problem    string         `json:"problem,omitempty"` // why it cannot be read, or not to its end
}

// RecordingList is newest first.
type RecordingList struct {
	Recordings []RecordingInfo `json:"recordings"`
}
