package session

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/account/right"
)

const labelGrant = "gatehouse/session/1 grant"

// Recording says what becomes of a session's picture.
type Recording string

// Off: none. Allowed: if the technician wants it. Forced: or no session.
const (
	RecordingOff     Recording = "off"
	RecordingAllowed Recording = "allowed"
	RecordingForced  Recording = "forced"
)

// Gateway is one place where the two ends can meet.
type Gateway struct {
	Address string `json:"address"` // host:port
	Key     Key    `json:"key"`     // of the gateway, pinned
}

// Grant is what the organisation allows. It is for one technician, one agent and
// one target, and both ends know each other's key by it.
type Grant struct {
	ID         ID
	Site       string // 32 hex digits: whose agent
	Technician string // e-mail address, for people and the audit
	Transport  Transport
	Key        Key // of the technician's end
	Agent      Key // of the agent's end
	Target     Target
	Functions  right.Functions
	Recording  Recording
	RecordTo   []byte    // public key that a recording is encrypted to (package recording); nil when off
	From       time.Time // whole seconds
	Until      time.Time
	Gateways   []Gateway // in the order of preference, at least one
}

// rawGrant is the message; the order of its fields is that on the wire.
type rawGrant struct {
	Version    int             `json:"version"`
	ID         ID              `json:"id"`
	Site       string          `json:"site"`
	Technician string          `json:"technician"`
	Transport  Transport       `json:"transport"`
	Key        Key             `json:"key"`
	Agent      Key             `json:"agent"`
	Target     Target          `json:"target"`
	Functions  right.Functions `json:"functions"`
	Recording  Recording       `json:"recording"`
	RecordTo   []byte          `json:"record_to"`
	From       int64           `json:"from"`
	Until      int64           `json:"until"`
	Gateways   []Gateway       `json:"gateways"`
}

// Sign writes the grant for its two ends.
func (g Grant) Sign(key ed25519.PrivateKey) ([]byte, error) {
	if err := g.check(); err != nil {
		return nil, fmt.Errorf("granting a session: %w", err)
	}
	return sign(key, labelGrant, MaxGrant, rawGrant{
		Version, g.ID, g.Site, g.Technician, g.Transport, g.Key, g.Agent, g.Target, g.Functions, g.Recording, g.RecordTo, g.From.Unix(), g.Until.Unix(), g.Gateways,
	})
}

// OpenGrant checks a grant in this order: signature, version, shape, time.
func OpenGrant(key ed25519.PublicKey, b []byte, now time.Time) (Grant, error) {
	g, err := ReadGrant(key, b)
	if err != nil {
		return Grant{}, err
	}
	if err := within(now, g.From, g.Until); err != nil {
		return Grant{}, fmt.Errorf("reading a session's grant: %w", err)
	}
	return g, nil
}

// ReadGrant reads one that may be over, for who keeps a list of them. It
// allows nothing.
func ReadGrant(key ed25519.PublicKey, b []byte) (Grant, error) {
	var r rawGrant
	if err := open(key, labelGrant, MaxGrant, b, &r); err != nil {
		return Grant{}, fmt.Errorf("reading a session's grant: %w", err)
	}
	g := r.grant()
	if err := g.check(); err != nil {
		return Grant{}, fmt.Errorf("reading a session's grant: %w", err)
	}
	return g, nil
}

// ReceivedGrant reads a grant for the technician's end, which has it from the
// hub itself, over a connection on which it knows the hub. Who signed it is not
// judged: the only one to ask for the organisation's key is that same hub. Nor
// is its time: hub and agent do that, by clocks that are kept.
func ReceivedGrant(b []byte) (Grant, error) {
	var s signed
	var r rawGrant
	err := exact(b, &s)
	if err == nil {
		err = exact(s.Message, &r)
	}
	if err == nil && r.Version != Version {
		err = fmt.Errorf("%w: %d, here %d", ErrVersion, r.Version, Version)
	}
	g := r.grant()
	if err == nil {
		err = g.check()
	}
	if err != nil {
		return Grant{}, fmt.Errorf("reading a session's grant: %w", err)
	}
	return g, nil
}

func (r rawGrant) grant() Grant {
	return Grant{
		r.ID, r.Site, r.Technician, r.Transport, r.Key, r.Agent, r.Target, r.Functions, r.Recording, r.RecordTo,
		time.Unix(r.From, 0).UTC(), time.Unix(r.Until, 0).UTC(), r.Gateways,
	}
}

func (g Grant) check() error {
	switch {
	case g.ID == ID{}:
		return fmt.Errorf("%w: it has no session id", ErrMalformed)
	case len(g.Site) != 32 || strings.Trim(g.Site, "0123456789abcdef") != "":
		return fmt.Errorf("%w: a site id is 32 lower-case hex digits", ErrMalformed)
	case g.Transport != TLS && g.Transport != WebRTC:
		return fmt.Errorf("%w: the ends speak tls or webrtc, not %.20q", ErrMalformed, g.Transport)
	case g.Key == Key{} || g.Agent == Key{}:
		return fmt.Errorf("%w: it lacks the key of an end", ErrMalformed)
	case g.Key == g.Agent:
		return fmt.Errorf("%w: both ends have one key, so neither could tell itself from the other", ErrMalformed)
	case g.Functions == 0 || g.Functions&^right.AllFunctions != 0:
		return fmt.Errorf("%w: it allows nothing, or what is not known", ErrMalformed)
	}
	if err := checkName("the technician", g.Technician); err != nil {
		return err
	}
	if err := g.Target.Check(); err != nil {
		return err
	}
	if err := g.checkRecording(); err != nil {
		return err
	}
	if life := g.Until.Sub(g.From); life <= 0 || life > MaxLife || g.From.Unix() <= 0 {
		return fmt.Errorf("%w: it is for %s, the limit is %s", ErrMalformed, life, MaxLife)
	}
	if len(g.Gateways) == 0 || len(g.Gateways) > maxGateways {
		return fmt.Errorf("%w: %d gateways, want 1 to %d", ErrMalformed, len(g.Gateways), maxGateways)
	}
	for _, w := range g.Gateways {
		if err := w.check(); err != nil {
			return err
		}
	}
	return nil
}

// checkRecording: a recording is never in clear on disk, so there is none
// without a key to encrypt it to. What the key is the recorder judges.
func (g Grant) checkRecording() error {
	switch g.Recording {
	case RecordingOff:
		if g.RecordTo != nil {
			return fmt.Errorf("%w: a key for recordings, and recording is off", ErrMalformed)
		}
		return nil
	case RecordingAllowed, RecordingForced:
		if len(g.RecordTo) == 0 || len(g.RecordTo) > maxRecordTo {
			return fmt.Errorf("%w: the key for recordings has %d bytes, want 1 to %d", ErrMalformed, len(g.RecordTo), maxRecordTo)
		}
		return nil
	}
	return fmt.Errorf("%w: recording is off, allowed or forced, not %.20q", ErrMalformed, g.Recording)
}

func (w Gateway) check() error {
	if w.Key == (Key{}) {
		return fmt.Errorf("%w: the gateway %.64q has no key", ErrMalformed, w.Address)
	}
	host, port, err := net.SplitHostPort(w.Address)
	if err != nil {
		return fmt.Errorf("%w: the gateway %.64q is not host:port", ErrMalformed, w.Address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%w: the gateway %.64q has no port", ErrMalformed, w.Address)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() {
		return nil // the box's own agent meets its gateway there
	}
	return checkHost(host)
}
