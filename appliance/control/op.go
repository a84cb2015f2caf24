package control

import (
	"net/netip"
	"slices"
	"time"
)

// An Op is one request: its name on the wire, the roles that may ask it, and
// the shapes of question and answer.
type Op[Req, Resp any] struct {
	name  string
	roles []Role
}

// Name returns the operation's name on the wire.
func (o Op[Req, Resp]) Name() string { return o.name }

// MayAsk says whether a role may ask it.
func (o Op[Req, Resp]) MayAsk(r Role) bool { return slices.Contains(o.roles, r) }

// None is the empty question or answer.
type None struct{}

// The whole of what a role may ask. A request that is not here does not exist.
var (
	// OpAlive is the heartbeat; a role that misses it for 20 s is restarted.
	OpAlive = Op[None, None]{"alive", []Role{Network, Gateway, Console, Agent}}
	// OpStatus reads what every face shows.
	OpStatus = Op[None, Status]{"status", []Role{Network, Gateway, Console, Agent}}
	// OpAudit appends one event and returns once it is on disk. An action
	// whose event cannot be written must not happen.
	OpAudit = Op[Event, Appended]{"audit", []Role{Network, Gateway, Console, Agent}}
	// OpKey derives the caller's subkey for a purpose from the data key.
	OpKey = Op[KeyRequest, Key]{"key", []Role{Gateway, Console, Agent}}
	// OpClaimMaterial hands the verifier of the claim code to the console, only while unclaimed.
	OpClaimMaterial = Op[None, ClaimMaterial]{"claim-material", []Role{Console}}
	// OpClaimCommit is the commit point of a claim: exactly one call ever succeeds.
	OpClaimCommit = Op[ClaimCommit, None]{"claim-commit", []Role{Console}}
	// OpConsoleReady tells what the console found in its database; the state follows from it.
	OpConsoleReady = Op[ConsoleReady, ConsoleState]{"console-ready", []Role{Console}}
	// OpNetworkApply sets what the network role learnt on one link.
	OpNetworkApply = Op[NetworkApply, None]{"network-apply", []Role{Network}}
	// OpClockSet sets the clock, never below the floor.
	OpClockSet = Op[ClockSet, Clock]{"clock-set", []Role{Network, Console}}
	// OpPower restarts or switches off, after the answer is sent.
	OpPower = Op[Power, None]{"power", []Role{Console}}
	// OpLog reads the bounded log.
	OpLog = Op[LogQuery, LogLines]{"log", []Role{Console, Agent}}
	// OpAuditCheckpoint signs the head of the audit log now.
	OpAuditCheckpoint = Op[None, Appended]{"audit-checkpoint", []Role{Console}}
)

// State is what the box is in; automation relies on the words.
type State string

// The states that every face names in these words.
const (
	StateStarting  State = "starting"
	StateUnclaimed State = "unclaimed"
	StateLocked    State = "locked"
	StateReady     State = "ready"
)

// Status is what the page, the console block and the tool show.
type Status struct {
	Name        string       `json:"name"`            // gatehouse-7f3k
	Names       []string     `json:"names,omitempty"` // host names that are ours, besides Name
	HTTPPort    uint16       `json:"http_port"`       // as the gateway listens
	HTTPSPort   uint16       `json:"https_port"`
	Version     string       `json:"version"` // 0.1.0+commit
	Development bool         `json:"development"`
	Hosted      bool         `json:"hosted"`
	State       State        `json:"state"`
	Reason      string       `json:"reason,omitempty"` // why locked, in words, with what to do
	Owner       string       `json:"owner,omitempty"`
	Seed        string       `json:"seed,omitempty"` // what of the seed could not be done, and why
	Started     time.Time    `json:"started"`
	Now         time.Time    `json:"now"`
	URL         string       `json:"url,omitempty"`   // what a person opens
	Local       string       `json:"local,omitempty"` // gatehouse-7f3k.local, while the box answers mDNS under it
	Certificate Certificate  `json:"certificate"`
	Unlocking   Unlocking    `json:"unlocking,omitzero"` // while locked
	Trust       Trust        `json:"trust"`
	Clock       Clock        `json:"clock"`
	Firewall    Firewall     `json:"firewall"`
	Waiting     []Candidate  `json:"waiting,omitempty"` // changes that wait to be kept
	Restart     *Restart     `json:"restart,omitempty"` // the next that comes by itself
	Links       []Link       `json:"links"`
	Roles       []RoleStatus `json:"roles"`
	Volume      Volume       `json:"volume"`
	Memory      Memory       `json:"memory"`
	Audit       AuditHead    `json:"audit"`
	Kernel      string       `json:"kernel"`
}

// Certificate names the certificate that the page shows.
type Certificate struct {
	SHA256 string `json:"sha256,omitempty"` // of the certificate, 9A:41:…
	SPKI   string `json:"spki,omitempty"`   // SHA-256 of the public key, hex
	Words  string `json:"words,omitempty"`  // six words of the SPKI hash
}

// Trust is the mechanism that guards the data key and what it is worth.
type Trust struct {
	Mechanism  string `json:"mechanism"` // tpm, host-id, passphrase, none
	Grade      string `json:"grade"`     // A, B, C, P
	Sentence   string `json:"sentence"`  // the same words on every face
	SecureBoot bool   `json:"secure_boot"`
	Raise      string `json:"raise,omitempty"` // what would raise the grade
}

// Clock says what the clock is worth.
type Clock struct {
	Trusted bool      `json:"trusted"`
	Source  string    `json:"source"`  // rtc, ntp, browser, host, floor
	Servers int       `json:"servers"` // that agreed
	Floor   time.Time `json:"floor"`
	Time    time.Time `json:"time"`
}

// Firewall is what stands between the wire and the gateway.
type Firewall struct {
	InKernel bool      `json:"in_kernel"`
	Lists    bool      `json:"lists"`            // allowlists are on
	Closed   bool      `json:"closed,omitempty"` // lists that should judge are not in force: only the box's own networks get in
	Sentence string    `json:"sentence"`
	Counters []Counter `json:"counters"`
}

// Counter is one named count of packets and bytes since the rules were loaded.
type Counter struct {
	Name    string `json:"name"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Link is one network interface.
type Link struct {
	Index     int            `json:"-"` // the kernel's, of the machine's own links: a card that went and came has another
	Name      string         `json:"name"`
	MAC       string         `json:"mac"`
	Carrier   bool           `json:"carrier"`
	Addresses []netip.Prefix `json:"addresses"`
	Source    string         `json:"source"` // dhcp, slaac, link-local, static, host
	Gateways  []netip.Addr   `json:"gateways,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
}

// RoleStatus is one supervised process.
type RoleStatus struct {
	Name     Role      `json:"name"`
	State    string    `json:"state"` // running, waiting, finished, frozen
	PID      int       `json:"pid"`
	Restarts int       `json:"restarts"`
	Since    time.Time `json:"since"`
	LastEnd  string    `json:"last_end,omitempty"`
}

// Volume is the data volume.
type Volume struct {
	Encrypted bool   `json:"encrypted"`
	Size      uint64 `json:"size"` // bytes
	Free      uint64 `json:"free"` // bytes
	Problem   string `json:"problem,omitempty"`
}

// Memory is in bytes.
type Memory struct {
	Total     uint64 `json:"total"`
	Available uint64 `json:"available"`
}

// AuditHead is the newest entry of the audit log.
type AuditHead struct {
	Sequence   uint64    `json:"sequence"`
	Hash       string    `json:"hash"`
	Checkpoint uint64    `json:"checkpoint"` // sequence of the newest signed checkpoint
	At         time.Time `json:"at"`
}

// Event is one line of the audit log, as the caller knows it; the writer adds
// sequence, time and the chain.
type Event struct {
	Actor   string            `json:"actor"`  // an e-mail address, "console", "system"
	Action  string            `json:"action"` // sign-in, claim, restart … (verb words)
	Object  string            `json:"object,omitempty"`
	From    string            `json:"from,omitempty"`    // address of the asker
	Outcome string            `json:"outcome,omitempty"` // ok, refused, failed
	Detail  map[string]string `json:"detail,omitempty"`
}

// Appended says where an event stands.
type Appended struct {
	Sequence uint64 `json:"sequence"`
	Hash     string `json:"hash"`
}

// KeyRequest names a purpose; which role may have which is in the server's table.
type KeyRequest struct {
	Purpose string `json:"purpose"`
}

// The purposes of subkeys.
const (
	PurposeConsoleFields = "console/fields" // encrypts database fields and the TLS key
	PurposeSelfSite      = "self-site"      // API key of the box's own site: console and agent
	PurposeAgentSecrets  = "agent/secrets"  // what the agent stores
	PurposeGatewayKey    = "gateway/key"    // seals the gateway's own key
	PurposeAuditSign     = "audit/sign"     // internal: checkpoint key without a TPM
	PurposeSignInPepper  = "console/pepper" // keyed lookups of e-mail addresses and tokens
)

// Key is a 32-byte subkey.
type Key struct {
	Key []byte `json:"key"`
}

// ClaimMaterial is what verifies the claim code: Key = proof.Derive(code, Salt).
type ClaimMaterial struct {
	Salt []byte `json:"salt"`
	Key  []byte `json:"key"`
}

// ClaimCommit names the owner that the claim makes.
type ClaimCommit struct {
	Owner string `json:"owner"` // e-mail address
	From  string `json:"from"`
}

// DatabaseClaim is what the database says of the claim.
type DatabaseClaim string

// A claim is written as pending first, then committed by OpClaimCommit, then
// marked done; a start that finds it pending asks which side of the commit it is on.
const (
	DatabaseUnclaimed DatabaseClaim = "unclaimed"
	DatabasePending   DatabaseClaim = "pending"
	DatabaseClaimed   DatabaseClaim = "claimed"
)

// ConsoleReady is sent at each start of the console, after its database is
// open, and again whenever the owner or the certificate changes.
type ConsoleReady struct {
	Database    DatabaseClaim `json:"database"`
	Owner       string        `json:"owner,omitempty"`
	Certificate Certificate   `json:"certificate"`
	Problem     string        `json:"problem,omitempty"` // why the database could not be used
	// SeedProblem is why the owner whom the seed names was not taken: the box
	// goes on as if there were no seed.
	SeedProblem string `json:"seed_problem,omitempty"`
}

// ConsoleState is the answer: the state to serve, and whether a pending claim
// was committed (then finish it) or not (then discard it).
type ConsoleState struct {
	State     State  `json:"state"`
	Reason    string `json:"reason,omitempty"`
	Committed bool   `json:"committed"`
	// ResetFactor is the order of a person at the box to remove the owner's
	// second factor; to be carried out and acknowledged before anyone is served.
	ResetFactor string `json:"reset_factor,omitempty"`
	// Seed is whom the box belongs to by its seed; to be claimed for, or refused
	// by SeedProblem, before anyone is served.
	Seed *SeedOwner `json:"seed,omitempty"`
}

// SeedOwner is the owner whom a seed names. Password is hashed as the database
// keeps passwords.
type SeedOwner struct {
	Name     string `json:"name"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

// NetworkApply is what was learnt for one link; it replaces what the network
// role set there before.
type NetworkApply struct {
	Interface string         `json:"interface"`
	Addresses []netip.Prefix `json:"addresses"`
	Gateways  []netip.Addr   `json:"gateways"` // at most one per family
	Resolvers []netip.Addr   `json:"resolvers"`
	Search    []string       `json:"search"`
	MTU       int            `json:"mtu"`    // 0: leave
	Source    string         `json:"source"` // dhcp, link-local
	Seconds   uint32         `json:"seconds"`
}

// ClockSet asks for a time.
type ClockSet struct {
	Time    time.Time `json:"time"`
	Source  string    `json:"source"` // ntp, browser
	Servers int       `json:"servers"`
	Actor   string    `json:"actor"`
	From    string    `json:"from"`
}

// Grace is how long people in sessions have from the word that the box restarts
// until it does, where that is not to be at once.
const Grace = 5 * time.Minute

// Power asks for a restart or to switch off.
type Power struct {
	Action string `json:"action"` // restart, off; stay: what was to come later does not
	Actor  string `json:"actor"`
	From   string `json:"from"`
	Later  bool   `json:"later,omitempty"` // after Grace
}

// Restart is one that comes by itself at its time.
type Restart struct {
	At      time.Time `json:"at"`
	Off     bool      `json:"off,omitempty"`     // the box is switched off
	Version string    `json:"version,omitempty"` // of the release that it starts; "": what runs now
}

// LogQuery asks for the newest lines.
type LogQuery struct {
	Role  Role `json:"role,omitempty"` // all if empty; "kernel" for the kernel's
	Limit int  `json:"limit"`
}

// LogLine is one line of the log.
type LogLine struct {
	Time time.Time `json:"time"`
	Role Role      `json:"role"`
	Text string    `json:"text"`
}

// LogLines is oldest first.
type LogLines struct {
	Lines []LogLine `json:"lines"`
}
