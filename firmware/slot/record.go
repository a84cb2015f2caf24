package slot

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"gatehouse/firmware"
)

// Digest is the SHA-256 of a system, by which it is known: two systems of one
// version are two.
type Digest [32]byte

// String is hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText and UnmarshalText are hex, in lower case.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the other direction.
func (d *Digest) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(d) {
		return fmt.Errorf("%.80q is not a SHA-256 in hex", b)
	}
	copy(d[:], raw)
	return nil
}

// System is what a slot was filled with.
type System struct {
	Version firmware.Version `json:"version"`
	Epoch   uint64           `json:"epoch"`
	// Approver is the SHA-256 of the key that approved it, in PKIX form: the data open for
	// one approver alone. Zero: not known.
	Approver Digest `json:"approver,omitzero"`
	Size     int64  `json:"size"`
	SHA256   Digest `json:"sha256"`
}

// Approved says whether one key approved both systems, as far as that is recorded: data
// that were settled for one open for no other.
func (s System) Approved(other System) bool {
	return s.Approver == other.Approver || s.Approver == Digest{} || other.Approver == Digest{}
}

// Record is what the box remembers of its slots and of what it tried. The zero
// Record is that of a box that never took an update.
type Record struct {
	// A and B are what the slots were filled with, whole; nil: not known, or
	// nothing that starts.
	A *System `json:"a,omitempty"`
	B *System `json:"b,omitempty"`
	// Trial is the system that proves itself, or is about to.
	Trial *Trial `json:"trial,omitempty"`
	// Verdicts are how trials ended, one for each system, the last one last.
	Verdicts []Verdict `json:"verdicts,omitempty"`
}

// Trial is a start of a system that is not kept yet.
type Trial struct {
	Slot   Slot      `json:"slot"`
	System System    `json:"system"`
	Began  time.Time `json:"began"`
	// Tries is how often it was started, this time included.
	Tries int `json:"tries"`
	// Started says that its PID 1 came as far as Judge.
	Started bool `json:"started,omitempty"`
	// End is written before a restart that somebody means.
	End *End `json:"end,omitempty"`
}

// End is why a trial is being ended.
type End struct {
	Reason string `json:"reason"` // in words
	// Explained: the system itself is bad, as the health gate found. Not so when a
	// person restarts the box.
	Explained bool `json:"explained"`
}

// Verdict is how the last trial of a system ended.
type Verdict struct {
	System    System    `json:"system"`
	When      time.Time `json:"when"`
	Kept      bool      `json:"kept,omitempty"`
	Explained bool      `json:"explained,omitempty"`
	Tries     int       `json:"tries"`
	Reason    string    `json:"reason"`
}

// MaxTries is how often a system is started whose trials end and nobody knows
// why. A person who pulls the plug costs it one.
const MaxTries = 3

const (
	maxVerdicts = 16
	maxReason   = 400 // bytes
	maxTries    = 1 << 20
)

// Refused says that a system is not tried again unless somebody asks for it.
type Refused struct{ Verdict Verdict }

func (r *Refused) Error() string {
	v := r.Verdict
	if v.Explained {
		return fmt.Sprintf("version %s failed here before: %s; ask for it once more if that was mended", v.System.Version, v.Reason)
	}
	return fmt.Sprintf("version %s was started %d times and never proved itself: %s; ask for it once more if that had another cause", v.System.Version, v.Tries, v.Reason)
}

// ErrTrial says that a trial is going on.
var ErrTrial = errors.New("a system is on trial: it is kept or goes back first")

// In is what a slot was filled with; nil if that is not known.
func (r Record) In(s Slot) *System {
	if s == B {
		return r.B
	}
	return r.A
}

// With is the record after a slot was filled, or emptied (nil). A slot is emptied
// in the record before it is overwritten, and filled after it was found whole.
func (r Record) With(s Slot, sys *System) Record {
	if sys != nil {
		c := *sys
		sys = &c
	}
	if s == B {
		r.B = sys
	} else {
		r.A = sys
	}
	return r
}

// Verdict is how the last trial of a system ended.
func (r Record) Verdict(d Digest) (Verdict, bool) {
	i := slices.IndexFunc(r.Verdicts, func(v Verdict) bool { return v.System.SHA256 == d })
	if i < 0 {
		return Verdict{}, false
	}
	return r.Verdicts[i], true
}

// Last is how the last trial of all ended.
func (r Record) Last() (Verdict, bool) {
	if len(r.Verdicts) == 0 {
		return Verdict{}, false
	}
	return r.Verdicts[len(r.Verdicts)-1], true
}

// May says whether a system may be tried; the error is a *Refused.
func (r Record) May(d Digest) error {
	v, ok := r.Verdict(d)
	if ok && !v.Kept && (v.Explained || v.Tries >= MaxTries) {
		return &Refused{v}
	}
	return nil
}

// Begin is the record with which the trial of what a slot holds begins: it is
// written before the boot loader is told, so that a start that ends at once is
// counted. again tries what May refuses, for who asks.
func (r Record) Begin(s Slot, again bool, now time.Time) (Record, error) {
	if r.Trial != nil {
		return r, ErrTrial
	}
	sys := r.In(s)
	if sys == nil {
		return r, fmt.Errorf("slot %s holds no system that could be tried", s)
	}
	if err := r.May(sys.SHA256); err != nil && !again {
		return r, err
	}
	tries := 1
	if v, ok := r.Verdict(sys.SHA256); ok && !v.Kept {
		tries = min(v.Tries+1, maxTries)
	}
	r.Trial = &Trial{Slot: s, System: *sys, Began: moment(now), Tries: tries}
	return r, nil
}

// Ending is the record to write before the box restarts and a trial ends with
// that. A cause that is known already stays.
func (r Record) Ending(reason string, explained bool) Record {
	if r.Trial == nil || r.Trial.End != nil && r.Trial.End.Explained {
		return r
	}
	t := *r.Trial
	t.End = &End{Reason: short(reason), Explained: explained}
	r.Trial = &t
	return r
}

// Cancel is the record of a trial that was never handed to the boot loader: it
// costs nothing.
func (r Record) Cancel() Record {
	r.Trial = nil
	return r
}

// Keep is the record after a trial ended well. It is written after loader.conf,
// which is the commit point: a power cut between the two has Judge say Finish.
func (r Record) Keep(now time.Time) Record {
	if r.Trial == nil {
		return r
	}
	t := *r.Trial
	r.Trial = nil
	return r.add(Verdict{System: t.System, When: moment(now), Kept: true, Tries: t.Tries, Reason: "it proved itself"})
}

// ended is the record after a trial ended badly.
func (r Record) ended(end End, now time.Time) Record {
	t := *r.Trial
	r.Trial = nil
	return r.add(Verdict{System: t.System, When: moment(now), Explained: end.Explained, Tries: t.Tries, Reason: short(end.Reason)})
}

func (r Record) add(v Verdict) Record {
	others := slices.DeleteFunc(slices.Clone(r.Verdicts), func(o Verdict) bool { return o.System.SHA256 == v.System.SHA256 })
	r.Verdicts = append(others[max(0, len(others)-maxVerdicts+1):], v)
	return r
}

// moment is a time as a record keeps it.
func moment(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// short keeps a reason to one line of a length that fits.
func short(s string) string {
	s = clean(s)
	for i := range s {
		if i > maxReason-4 {
			return s[:i] + "…"
		}
	}
	return s
}
