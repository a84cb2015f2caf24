package control

import "time"

// Update is what stands of the box's systems: the one that runs, the one in the
// other slot, and the way from one to the next. The same on the page, in the API
// and in the tool.
type Update struct {
	Running  System    `json:"running"`
	Other    *System   `json:"other,omitempty"` // what the other slot holds; nil: nothing that starts
	Newest   string    `json:"newest"`          // version that was ever taken for good: nothing older is
	Signers  []string  `json:"signers"`         // names of the keys that sign releases
	Needed   int       `json:"needed"`          // how many of them have to
	Stage    string    `json:"stage"`
	Transfer *Transfer `json:"transfer,omitempty"` // receiving, received, waiting
	Trial    *Trial    `json:"trial,omitempty"`    // trial
	Last     *Outcome  `json:"last,omitempty"`     // how the last trial ended
	// Restart is when a received release starts by itself; nil: when asked.
	Restart *time.Time `json:"restart,omitempty"`
	// Problem is why this box cannot take updates, or what is wrong with a slot, in
	// words; "" where nothing is.
	Problem string         `json:"problem,omitempty"`
	Notes   []string       `json:"notes,omitempty"` // what was mended at this start
	Policy  UpdateSettings `json:"policy"`
}

// The stages of an Update.
const (
	UpdateIdle      = "idle"
	UpdateReceiving = "receiving" // bytes are still to come; goes on from Transfer.Received
	UpdateReceived  = "received"  // verified in its slot, to be started
	UpdateWaiting   = "waiting"   // starts at Restart
	UpdateTrial     = "trial"     // the new system runs and is not kept yet
)

// System is one of the two systems of the box.
type System struct {
	Slot    string `json:"slot"` // a, b
	Version string `json:"version"`
	Epoch   uint64 `json:"epoch,omitempty"`
	State   string `json:"state"` // running, ready, damaged, refused
	Reason  string `json:"reason,omitempty"`
}

// Transfer is a release on its way into the other slot.
type Transfer struct {
	Version  string    `json:"version"`
	Size     int64     `json:"size"`
	Received int64     `json:"received"`
	Began    time.Time `json:"began"`
	Changed  time.Time `json:"changed"` // when the last bytes came
	Rate     float64   `json:"rate"`    // bytes in a second, of late
	Actor    string    `json:"actor"`
}

// Trial is a new system that proves itself.
type Trial struct {
	Version string    `json:"version"`
	Began   time.Time `json:"began"`
	Until   time.Time `json:"until"` // it goes back by itself then
	Checks  []Check   `json:"checks"`
}

// Check is one of the things that have to be as good as before the update.
type Check struct {
	Name   string `json:"name"`   // link, address, router, https, vault, roles, hub
	State  string `json:"state"`  // good, waiting, bad, skipped: it was not so before either
	Detail string `json:"detail"` // in words
}

// Outcome is how a trial ended.
type Outcome struct {
	Version   string    `json:"version"`
	When      time.Time `json:"when"`
	Kept      bool      `json:"kept"`
	Reason    string    `json:"reason"`    // in words
	Explained bool      `json:"explained"` // it is known to be bad, and not tried again unless asked
	Tries     int       `json:"tries"`
}

// UpdateSettings is when and whence a box takes releases by itself.
type UpdateSettings struct {
	// Mirror is the address of a folder with the file "release" and the systems it
	// names; "": none is asked.
	Mirror string `json:"mirror"`
	// Roots are certificates, PEM, that vouch for an https mirror in place of the
	// public authorities; "": those. At most MaxUpdateRoots bytes.
	Roots string `json:"roots,omitempty"`
	// Window is when a release may start, as in "Sun 02:00-04:00"; "": when asked.
	// In UTC, because a box has no other time.
	Window string `json:"window"`
	// Automatic: what the mirror has is received and started without a question.
	Automatic bool `json:"automatic"`
}

// MaxUpdateRoots is how long the certificates are that vouch for a mirror.
const MaxUpdateRoots = 24 << 10

// UpdateBegin offers a release.
type UpdateBegin struct {
	By
	Manifest []byte `json:"manifest"` // the signed note
	// Again tries a version that failed here before, for who knows better.
	Again bool `json:"again,omitempty"`
}

// UpdateOffset is how far the bytes of the system have come. They go on from there.
type UpdateOffset struct {
	Version string `json:"version"`
	Size    int64  `json:"size"`
	Offset  int64  `json:"offset"`
}

// UpdateWrite is a piece of the system, at most MaxUpdateWrite bytes.
type UpdateWrite struct {
	Version string `json:"version"`
	Offset  int64  `json:"offset"`
	Data    []byte `json:"data"`
}

// MaxUpdateWrite is the longest piece: in base64 it fits in a question.
const MaxUpdateWrite = 64 << 10

// UpdateStart has a received release started.
type UpdateStart struct {
	By
	// Wait for the window, as it is open Grace from now or later; refused where there
	// is none.
	Wait bool `json:"wait"`
	// Later: after Grace.
	Later bool `json:"later,omitempty"`
}

// UpdateSet changes the settings.
type UpdateSet struct {
	By
	Settings UpdateSettings `json:"settings"`
}

// What a role may ask of the box's systems.
var (
	OpUpdate = Op[None, Update]{"update", []Role{Console}}
	// OpUpdateBegin judges the manifest; only one that this box may take has bytes
	// taken. The same release again goes on where it was left.
	OpUpdateBegin = Op[UpdateBegin, UpdateOffset]{"update-begin", []Role{Console}}
	// OpUpdateWrite writes a piece into the slot that does not run. The last one
	// answers when the whole was read back from the disk and is right.
	OpUpdateWrite = Op[UpdateWrite, UpdateOffset]{"update-write", []Role{Console}}
	// OpUpdateStart starts what was received, for a trial.
	OpUpdateStart = Op[UpdateStart, None]{"update-start", []Role{Console}}
	// OpUpdateCancel forgets what is received or waits. A trial is not cancelled: it
	// goes back by a restart.
	OpUpdateCancel = Op[By, None]{"update-cancel", []Role{Console}}
	// OpUpdateSet changes when and whence.
	OpUpdateSet = Op[UpdateSet, None]{"update-set", []Role{Console}}
)
