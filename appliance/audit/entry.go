// Package audit appends events to a hash-chained log whose checkpoints are signed, reads it, and verifies one.
//
// A log is a folder of segments, each a file of lines. A line is one JSON
// object in one spelling only: the order of keys is that of record, without
// white space, times in UTC with six decimals. Its hash is the SHA-256 of
// domainEntry and the line without the hash; prev is the hash of the line
// before. Every change of a byte therefore shows: as another spelling, a wrong
// hash, or a broken chain. Someone who can write the file can chain it anew,
// but not sign it: a checkpoint is a signature over log id, sequence and hash
// of an entry before it. What comes after the newest checkpoint is chained but
// not yet signed, and a log cut back to an older checkpoint is whole in itself:
// to see that, compare with a head that was written down elsewhere.
package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"gatehouse/appliance/control"
)

// MaxLine is the longest line of a log, in bytes, its newline included.
const MaxLine = 64 << 10

// Version is the format's, written in the header.
const Version = 1

const (
	domainEntry      = "gatehouse audit entry v1\x00"
	domainCheckpoint = "gatehouse audit checkpoint v1\x00"
	timeFormat       = "2006-01-02T15:04:05.000000Z"
)

// Kind is what an entry is about.
type Kind string

// The kinds of entries.
const (
	KindHeader     Kind = "header"     // begins each segment: log id and the key of checkpoints from here
	KindEvent      Kind = "event"      // something that somebody did
	KindCheckpoint Kind = "checkpoint" // a signature over an entry before it
	KindRecovered  Kind = "recovered"  // a line torn by a power cut was removed before this one
	KindDamage     Kind = "damage"     // the segment before cannot be read to its end
)

type digest [sha256.Size]byte

func (d digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

func (d *digest) UnmarshalText(b []byte) error {
	if len(b) != 2*len(d) {
		return errors.New("a hash has 64 hexadecimal digits")
	}
	_, err := hex.Decode(d[:], b)
	return err
}

type stamp struct{ Time time.Time }

func (s stamp) MarshalText() ([]byte, error) { return []byte(s.Time.UTC().Format(timeFormat)), nil }

func (s *stamp) UnmarshalText(b []byte) (err error) {
	s.Time, err = time.Parse(timeFormat, string(b))
	return err
}

// record is one line. The order of its fields is part of the format.
type record struct {
	Sequence   uint64         `json:"seq"`
	Time       stamp          `json:"time"`
	Prev       digest         `json:"prev"`
	Kind       Kind           `json:"kind"`
	Header     *header        `json:"header,omitempty"`
	Event      *control.Event `json:"event,omitempty"`
	Checkpoint *checkpoint    `json:"checkpoint,omitempty"`
	Recovered  *recovered     `json:"recovered,omitempty"`
	Damage     *damage        `json:"damage,omitempty"`
	Hash       *digest        `json:"hash,omitempty"`
}

type header struct {
	Version int    `json:"version"`
	Log     []byte `json:"log"` // 16 random bytes
	Key     []byte `json:"key"` // SubjectPublicKeyInfo, P-256
}

type checkpoint struct {
	Covers    uint64 `json:"covers"`    // sequence of the newest entry that is signed
	Head      digest `json:"head"`      // its hash
	Signature []byte `json:"signature"` // ECDSA, ASN.1
}

type recovered struct {
	Bytes int64 `json:"bytes"`
}

type damage struct {
	Segment string `json:"segment"`
	Line    int    `json:"line"`
	What    string `json:"what"`
}

// encode writes the one spelling of a value.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil // with its newline
}

// seal sets the hash and returns the line with its newline.
func (r *record) seal() ([]byte, error) {
	h, err := r.sum()
	if err != nil {
		return nil, err
	}
	r.Hash = &h
	line, err := encode(r)
	if err == nil && len(line) > MaxLine {
		err = fmt.Errorf("the entry has %d bytes, at most %d are kept", len(line), MaxLine)
	}
	return line, err
}

func (r record) sum() (digest, error) {
	r.Hash = nil
	body, err := encode(r)
	if err != nil {
		return digest{}, err
	}
	h := sha256.New()
	h.Write([]byte(domainEntry))
	h.Write(bytes.TrimSuffix(body, []byte("\n")))
	return digest(h.Sum(nil)), nil
}

// parse reads a line without its newline and refuses every spelling but the one.
func parse(line []byte) (record, error) {
	var r record
	if len(line)+1 > MaxLine {
		return r, fmt.Errorf("it is longer than %d bytes", MaxLine)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return record{}, errors.New("it is not an entry of this format")
	}
	if r.Hash == nil || r.Sequence == 0 || !r.whole() {
		return record{}, errors.New("it is not a whole entry")
	}
	again, err := encode(r)
	if err != nil || !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), line) {
		return record{}, errors.New("it is not in the spelling that the box writes")
	}
	if h, err := r.sum(); err != nil || h != *r.Hash {
		return record{}, errors.New("its content does not match its hash")
	}
	return r, nil
}

// whole says whether the record carries what its kind asks for and nothing else.
func (r *record) whole() bool {
	has := map[Kind]bool{
		KindHeader: r.Header != nil, KindEvent: r.Event != nil, KindCheckpoint: r.Checkpoint != nil,
		KindRecovered: r.Recovered != nil, KindDamage: r.Damage != nil,
	}
	n := 0
	for _, present := range has {
		if present {
			n++
		}
	}
	return n == 1 && has[r.Kind]
}

// checkpointDigest is what a checkpoint signs: SHA-256 of the domain, the log
// id, the sequence as 8 big-endian bytes, and the hash of the entry.
func checkpointDigest(log []byte, sequence uint64, head digest) []byte {
	h := sha256.New()
	h.Write([]byte(domainCheckpoint))
	h.Write(log)
	h.Write(binary.BigEndian.AppendUint64(nil, sequence))
	h.Write(head[:])
	return h.Sum(nil)
}

func marshalKey(key *ecdsa.PublicKey) ([]byte, error) {
	if key == nil || key.Curve == nil || key.Params().BitSize != 256 {
		return nil, errors.New("the key of the audit log's checkpoints must be a P-256 key")
	}
	return x509.MarshalPKIXPublicKey(key)
}

func parseKey(der []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	p, ok := k.(*ecdsa.PublicKey)
	if !ok || p.Params().BitSize != 256 {
		return nil, errors.New("it is not a P-256 key")
	}
	return p, nil
}

// Entry is one entry as readers see it.
type Entry struct {
	Sequence uint64        `json:"sequence"`
	Time     time.Time     `json:"time"`
	Kind     Kind          `json:"kind"`
	Event    control.Event `json:"event"` // for other kinds than event: told in the same words
	Hash     string        `json:"hash"`
}

func (r record) entry() Entry {
	e := Entry{Sequence: r.Sequence, Time: r.Time.Time, Kind: r.Kind, Hash: hex.EncodeToString(r.Hash[:])}
	told := func(action, object string, detail map[string]string) {
		e.Event = control.Event{Actor: "system", Action: action, Object: object, Outcome: "ok", Detail: detail}
	}
	switch r.Kind {
	case KindEvent:
		e.Event = *r.Event
	case KindHeader:
		told("begin a file of the audit log", hex.EncodeToString(r.Header.Log), map[string]string{"key": fingerprint(r.Header.Key)})
	case KindCheckpoint:
		told("sign a checkpoint", fmt.Sprintf("entry %d", r.Checkpoint.Covers), nil)
	case KindRecovered:
		told("remove a line torn by a power cut", fmt.Sprintf("%d bytes", r.Recovered.Bytes), nil)
	case KindDamage:
		told("find damage in the audit log", r.Damage.Segment, map[string]string{"line": fmt.Sprint(r.Damage.Line), "what": r.Damage.What})
	}
	return e
}

func fingerprint(der []byte) string {
	h := sha256.Sum256(der)
	return hex.EncodeToString(h[:])
}
