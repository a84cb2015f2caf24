package control

import (
	"net/netip"
	"time"
)

// Requests about who may reach the box. Lists and network settings are changed
// the same way: a candidate takes effect, and is taken back after KeepWithin
// unless it is kept over a connection that was made after it took effect.
var (
	// OpLists reads the switch, the lists in force with their counters, and the candidate.
	OpLists = Op[None, Lists]{"lists", []Role{Gateway, Console, Agent}}
	// OpListsRead reads one file of the lists in force, in parts.
	OpListsRead = Op[ListsRead, ListsPart]{"lists-read", []Role{Console}}
	// OpListsStage changes the staging area: a copy of what is in force, on which edits are made.
	OpListsStage = Op[ListsStage, None]{"lists-stage", []Role{Console}}
	// OpListsTry judges what is staged; unless it is a dry run it takes effect, to be kept.
	OpListsTry = Op[ListsTry, ListsReport]{"lists-try", []Role{Console}}
	// OpNetwork reads the network settings in force and the candidate.
	OpNetwork = Op[None, NetworkState]{"network", []Role{Network, Console}}
	// OpNetworkTry judges network settings; unless it is a dry run they take effect, to be kept.
	OpNetworkTry = Op[NetworkTry, NetworkReport]{"network-try", []Role{Console}}
	// OpKeep makes a candidate the state in force for good.
	OpKeep = Op[Keep, None]{"keep", []Role{Console}}
	// OpRevert takes a candidate back at once.
	OpRevert = Op[Revert, None]{"revert", []Role{Console}}
	// OpClockFloor resets the floor of the clock to the time the program was built.
	OpClockFloor = Op[ClockFloor, Clock]{"clock-floor", []Role{Console}}
)

// KeepWithin is how long a candidate stays in effect without being kept.
const KeepWithin = 60 * time.Second

// What a candidate is about.
const (
	AboutLists   = "lists"
	AboutNetwork = "network"
)

// Candidate is a change that is in effect and not yet kept.
type Candidate struct {
	ID      string    `json:"id"`      // of this try; Keep and Revert name it
	About   string    `json:"about"`   // lists, network
	Actor   string    `json:"actor"`   // who made it
	Seconds int       `json:"seconds"` // until it is taken back
	Applied int64     `json:"applied"` // CLOCK_BOOTTIME, ns: a connection accepted later may keep it
	Summary []string  `json:"summary"` // what it changes, in words
	Until   time.Time `json:"until"`
}

// Keep confirms a candidate. Accepted is when the gateway accepted the
// connection that the confirmation came over, in ns of CLOCK_BOOTTIME: one that
// is older than the candidate proves nothing.
type Keep struct {
	ID       string `json:"id"`
	Accepted int64  `json:"accepted"`
	Actor    string `json:"actor"`
	From     string `json:"from"`
}

// Revert takes a candidate back.
type Revert struct {
	ID    string `json:"id"`
	Actor string `json:"actor"`
	From  string `json:"from"`
}

// Lists is what the faces show of the allowlists.
type Lists struct {
	Enabled   bool       `json:"enabled"`  // the switch for all; off: the lists judge nobody
	Sentence  string     `json:"sentence"` // what that means now, in words
	Lists     []List     `json:"lists"`    // in order
	Ranges    int        `json:"ranges"`   // that the kernel holds
	Refused   Counter    `json:"refused"`  // packets that no list admits
	Candidate *Candidate `json:"candidate,omitempty"`
	Problems  []Problem  `json:"problems,omitempty"` // of operators' files that were refused; the last good ones stay
	Swapped   time.Time  `json:"swapped"`            // when the kernel last got new ranges
	XDP       bool       `json:"xdp"`                // the early stage is on
	Files     string     `json:"files,omitempty"`    // hosted: the folder of the host that they are read from, and cannot be edited here
	Early     EarlyStage `json:"early"`
}

// List is one allowlist.
type List struct {
	Name    string    `json:"name"`
	Enabled bool      `json:"enabled"`
	Scopes  []string  `json:"scopes"` // console, sites, visitors
	Note    string    `json:"note,omitempty"`
	Ranges  int       `json:"ranges"` // after merging
	Packets uint64    `json:"packets"`
	Bytes   uint64    `json:"bytes"`
	Changed time.Time `json:"changed"`
}

// Problem is one mistake in a file.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line"` // from 1; 0: the whole file
	Text   string `json:"text,omitempty"`
	Reason string `json:"reason"` // what is wrong and what would be right
}

// ListsRead asks for a part of a file: allowlists.toml or NAME.list.
type ListsRead struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"`
}

// ListsPart is at most 48 KiB of a file.
type ListsPart struct {
	Data []byte `json:"data"`
	Size int64  `json:"size"` // of the whole file
}

// ListsStage makes one edit. Reset begins anew from what is in force. Data goes
// to Offset of File; Offset 0 empties the file first. Remove takes it away.
// At most 48 KiB of data go into one request.
type ListsStage struct {
	Reset  bool   `json:"reset,omitempty"`
	File   string `json:"file,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	Data   []byte `json:"data,omitempty"`
	Remove bool   `json:"remove,omitempty"`
}

// ListsTry judges what is staged. Watch are addresses to be told about: the
// asker's own first, then sessions and sites. Force applies even if the asker
// would be cut off.
type ListsTry struct {
	DryRun bool         `json:"dry_run,omitempty"`
	Force  bool         `json:"force,omitempty"`
	Watch  []netip.Addr `json:"watch"`
	Actor  string       `json:"actor"`
	From   string       `json:"from"`
}

// ListsReport says what would change or did.
type ListsReport struct {
	Problems  []Problem    `json:"problems,omitempty"` // any: refused whole, nothing changed
	Summary   []string     `json:"summary"`
	Added     uint64       `json:"added"` // ranges
	Removed   uint64       `json:"removed"`
	Cut       []netip.Addr `json:"cut,omitempty"` // of Watch: admitted now to the console, not then
	SelfCut   bool         `json:"self_cut"`      // the asker would not get in any more
	Candidate *Candidate   `json:"candidate,omitempty"`
}

// ClockFloor resets the floor.
type ClockFloor struct {
	Actor string `json:"actor"`
	From  string `json:"from"`
}

// NetworkSettings are what a person decided about the network; everything not
// named is learnt: DHCP, router advertisements. netconf.Check judges them.
type NetworkSettings struct {
	Links     []LinkSettings `json:"links,omitempty"`
	VLANs     []VLAN         `json:"vlans,omitempty"`
	Bonds     []Bond         `json:"bonds,omitempty"`
	Resolvers []netip.Addr   `json:"resolvers,omitempty"` // besides or in place of learnt ones
	Search    []string       `json:"search,omitempty"`
	Time      []string       `json:"time,omitempty"`      // NTP servers; empty: learnt and the usual pool
	Multicast bool           `json:"multicast,omitempty"` // answer mDNS after the claim, too
}

// LinkSettings are those of one link, by its name or (steadier) its MAC address.
type LinkSettings struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac,omitempty"`
	Mode      string         `json:"mode"` // automatic (DHCP and router advertisements), static, off
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	Gateways  []netip.Addr   `json:"gateways,omitempty"` // at most one per family
	Routes    []Route        `json:"routes,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
}

// Route is one destination by a next hop on the link.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

// VLAN is a tagged link (IEEE 802.1Q) on another one.
type VLAN struct {
	Name string `json:"name"`
	On   string `json:"on"`
	ID   uint16 `json:"id"` // 1 to 4094
}

// Bond joins links to one.
type Bond struct {
	Name  string   `json:"name"`
	Links []string `json:"links"`
	Mode  string   `json:"mode"` // active-backup, 802.3ad
}

// NetworkState is what the faces show.
type NetworkState struct {
	Settings  NetworkSettings `json:"settings"` // in effect now
	Kept      NetworkSettings `json:"kept"`     // what a restart would bring
	Candidate *Candidate      `json:"candidate,omitempty"`
	Links     []Link          `json:"links"`
	Own       []Link          `json:"own"`       // the machine's own, without VLANs and bonds; MAC is the card's
	Resolvers []netip.Addr    `json:"resolvers"` // in effect: set ones, then learnt ones
	Search    []string        `json:"search"`
	// Taken counts, by link, how often what the network role had set there was
	// taken away by a change: it learns anew. For that role alone.
	Taken map[string]int `json:"taken,omitempty"`
}

// NetworkTry proposes settings.
type NetworkTry struct {
	Settings NetworkSettings `json:"settings"`
	DryRun   bool            `json:"dry_run,omitempty"`
	Actor    string          `json:"actor"`
	From     string          `json:"from"`
	Local    netip.Addr      `json:"local"` // the address of the box that the asker's connection goes to
}

// NetworkReport says what would change or did.
type NetworkReport struct {
	Problems  []Problem  `json:"problems,omitempty"`
	Summary   []string   `json:"summary"`
	SelfCut   bool       `json:"self_cut"` // the address the asker uses goes away
	Candidate *Candidate `json:"candidate,omitempty"`
}
