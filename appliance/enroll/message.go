package enroll

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Why a message is refused. Errors of this package wrap one of these.
var (
	ErrMalformed = errors.New("the message is malformed")
	ErrVersion   = errors.New("the message is of another version of the protocol")
	ErrUnknownID = errors.New("no site with this API key is known here")
	ErrMAC       = errors.New("the message was not made with this API key")
	ErrExporter  = errors.New("the message was made for another TLS connection: something stands in between")
	ErrSkew      = errors.New("the clocks of site and hub differ by more than 300 s")
	ErrReplay    = errors.New("the message was seen before")
)

// Version of the messages.
const Version = 1

// MaxSkew is how far the clocks of site and hub may differ.
const MaxSkew = 300 * time.Second

// MaxMessage is the longest enrolment message or answer, in bytes.
const MaxMessage = 16 << 10

// Paths of the two requests.
const (
	PathEnrol  = "/api/v1/site/enrol"
	PathReport = "/api/v1/site/report"
)

const (
	labelEnrol  = "gatehouse/site/1 enrol"
	labelAnswer = "gatehouse/site/1 answer"
	// exporterLabel: RFC 5705 and RFC 8446 section 7.5; unregistered labels begin with EXPERIMENTAL or are private use.
	exporterLabel = "EXPERIMENTAL gatehouse site 1"
)

// Nonce is 32 random bytes that make a message unique.
type Nonce [nonceSize]byte

// NewNonce reads one.
func NewNonce(random io.Reader) (Nonce, error) {
	var n Nonce
	if _, err := io.ReadFull(random, n[:]); err != nil {
		return n, fmt.Errorf("making a nonce: %w", err)
	}
	return n, nil
}

// Channel is the value that both ends of one TLS connection know and nobody else does.
type Channel [exporterSize]byte

// ChannelOf exports it. Only TLS 1.3: before, an exporter did not name the
// connection without the extended master secret.
func ChannelOf(cs *tls.ConnectionState) (Channel, error) {
	var c Channel
	if cs == nil || !cs.HandshakeComplete || cs.Version != tls.VersionTLS13 {
		return c, fmt.Errorf("%w: it did not come over TLS 1.3", ErrExporter)
	}
	b, err := cs.ExportKeyingMaterial(exporterLabel, nil, len(c))
	if err != nil {
		return c, fmt.Errorf("binding to the TLS connection: %w", err)
	}
	copy(c[:], b)
	return c, nil
}

// Metadata describes the site to people. None of it decides anything.
type Metadata struct {
	Name     string `json:"name"`     // what the site calls itself
	Version  string `json:"version"`  // of its program
	System   string `json:"system"`   // linux/amd64
	Hardware string `json:"hardware"` // product name
}

// Enrol is what a site says, outward, until it is answered.
type Enrol struct {
	ID       ID        // of the API key
	Site     string    // 32 hex digits, made once by the site
	Device   []byte    // the site's device key: P-256, PKIX DER
	Time     time.Time // whole seconds
	Nonce    Nonce
	Metadata Metadata
	Channel  Channel
}

// Answer is what the hub says when it knows the key.
type Answer struct {
	Site     string
	Time     time.Time // the hub's clock
	Nonce    Nonce     // of the Enrol
	Channel  Channel
	Interval time.Duration // between health reports, 1 s to 1 h
}

type rawEnrol struct {
	Version  int      `json:"version"`
	ID       ID       `json:"id"`
	Site     string   `json:"site"`
	Device   []byte   `json:"device"`
	Time     int64    `json:"time"`
	Nonce    []byte   `json:"nonce"`
	Metadata Metadata `json:"metadata"`
	Exporter []byte   `json:"exporter"`
}

type rawAnswer struct {
	Version  int    `json:"version"`
	Site     string `json:"site"`
	Time     int64  `json:"time"`
	Nonce    []byte `json:"nonce"`
	Exporter []byte `json:"exporter"`
	Interval int    `json:"interval"`
}

// sealed is every message on the wire. The MAC is over the bytes of Message as
// they are sent; nothing of them is read before it is checked.
type sealed struct {
	ID      ID     `json:"id"`
	Message []byte `json:"message"`
	MAC     []byte `json:"mac"`
}

func (k Keys) seal(label string, v any) ([]byte, error) {
	m, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("writing a message: %w", err)
	}
	b, err := json.Marshal(sealed{k.ID, m, authenticate(k.MAC[:], label, k.ID[:], m)})
	if err == nil && len(b) > MaxMessage {
		err = fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(b), MaxMessage)
	}
	return b, err
}

func (k Keys) open(label string, body []byte, v any) error {
	s, err := unwrap(body)
	if err != nil {
		return err
	}
	if s.ID != k.ID {
		return fmt.Errorf("%w: it names another key", ErrMAC)
	}
	if !hmac.Equal(s.MAC, authenticate(k.MAC[:], label, k.ID[:], s.Message)) {
		return ErrMAC
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(s.Message, &version); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if version.Version != Version {
		return fmt.Errorf("%w: %d, here %d", ErrVersion, version.Version, Version)
	}
	return strict(s.Message, v)
}

func unwrap(body []byte) (sealed, error) {
	var s sealed
	if len(body) > MaxMessage {
		return s, fmt.Errorf("%w: %d bytes, the limit is %d", ErrMalformed, len(body), MaxMessage)
	}
	if err := strict(body, &s); err != nil {
		return s, err
	}
	// JSON and base64 have many spellings of one value; here there is one, so
	// that no byte of a message can be changed unseen.
	if again, err := json.Marshal(s); err != nil || !bytes.Equal(again, body) {
		return s, fmt.Errorf("%w: it is not in its one form: id, message, mac, no spaces", ErrMalformed)
	}
	return s, nil
}

// strict takes one JSON value, known fields only, and nothing after it.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows it", ErrMalformed)
	}
	return nil
}

// Claims says whose key a message claims to be made with, so that the keys can
// be looked up. It is not authenticated yet.
func Claims(body []byte) (ID, error) {
	s, err := unwrap(body)
	return s.ID, err
}

// SealEnrol writes the message.
func (k Keys) SealEnrol(e Enrol) ([]byte, error) {
	e.ID = k.ID
	if err := e.validate(); err != nil {
		return nil, err
	}
	return k.seal(labelEnrol, rawEnrol{Version, k.ID, e.Site, e.Device, e.Time.Unix(), e.Nonce[:], e.Metadata, e.Channel[:]})
}

// OpenEnrol checks a message in this order: MAC, version and shape, channel,
// clock, and last the nonce, which is remembered in seen.
func (k Keys) OpenEnrol(body []byte, now time.Time, ch Channel, seen *Replay) (Enrol, error) {
	var r rawEnrol
	if err := k.open(labelEnrol, body, &r); err != nil {
		return Enrol{}, err
	}
	e := Enrol{ID: r.ID, Site: r.Site, Device: r.Device, Time: time.Unix(r.Time, 0).UTC(), Metadata: r.Metadata}
	if len(r.Nonce) != nonceSize || len(r.Exporter) != exporterSize {
		return Enrol{}, fmt.Errorf("%w: nonce and exporter have 32 bytes", ErrMalformed)
	}
	copy(e.Nonce[:], r.Nonce)
	copy(e.Channel[:], r.Exporter)
	if e.ID != k.ID {
		return Enrol{}, fmt.Errorf("%w: it names another key inside", ErrMalformed)
	}
	if err := e.validate(); err != nil {
		return Enrol{}, err
	}
	if e.Channel != ch {
		return Enrol{}, ErrExporter
	}
	return e, seen.Check(k.ID, e.Nonce, e.Time, now)
}

func (e Enrol) validate() error {
	if err := CheckSite(e.Site); err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(e.Device)
	if err != nil {
		return fmt.Errorf("%w: the device key: %w", ErrMalformed, err)
	}
	if ec, ok := pub.(*ecdsa.PublicKey); !ok || ec.Curve != elliptic.P256() {
		return fmt.Errorf("%w: the device key is not P-256", ErrMalformed)
	}
	for _, s := range []string{e.Metadata.Name, e.Metadata.Version, e.Metadata.System, e.Metadata.Hardware} {
		if err := CheckText(s, 128); err != nil {
			return err
		}
	}
	return nil
}

// SealAnswer writes the hub's answer to e.
func (k Keys) SealAnswer(e Enrol, now time.Time, interval time.Duration) ([]byte, error) {
	return k.seal(labelAnswer, rawAnswer{Version, e.Site, now.Unix(), e.Nonce[:], e.Channel[:], int(interval / time.Second)})
}

// OpenAnswer checks that the answer is to e, on e's connection, by one who has
// the keys. That is what tells the site that it talks to its hub.
func (k Keys) OpenAnswer(body []byte, e Enrol) (Answer, error) {
	var r rawAnswer
	if err := k.open(labelAnswer, body, &r); err != nil {
		return Answer{}, fmt.Errorf("the hub's answer: %w", err)
	}
	switch {
	case !bytes.Equal(r.Nonce, e.Nonce[:]) || r.Site != e.Site:
		return Answer{}, fmt.Errorf("the hub's answer: %w: it answers another message", ErrReplay)
	case !bytes.Equal(r.Exporter, e.Channel[:]):
		return Answer{}, fmt.Errorf("the hub's answer: %w", ErrExporter)
	case r.Interval < 1 || r.Interval > 3600:
		return Answer{}, fmt.Errorf("the hub's answer: %w: an interval of %d s", ErrMalformed, r.Interval)
	}
	return Answer{r.Site, time.Unix(r.Time, 0).UTC(), e.Nonce, e.Channel, time.Duration(r.Interval) * time.Second}, nil
}

// CheckSite says whether s is a site id: 32 lower-case hex digits.
func CheckSite(s string) error {
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: a site id is 32 lower-case hex digits", ErrMalformed)
	}
	return nil
}

// CheckText says whether a site's text may be kept: UTF-8, at most limit
// bytes, nothing that changes lines, directions or terminals. Who shows it
// still escapes it.
func CheckText(s string, limit int) error {
	if len(s) > limit || !utf8.ValidString(s) {
		return fmt.Errorf("%w: a text is not UTF-8 or longer than %d bytes", ErrMalformed, limit)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: a text has the character %U", ErrMalformed, r)
		}
	}
	return nil
}
