package control

import (
	"net/netip"
	"time"
)

// Requests about what knocks at the ports.
var (
	// OpDrops tells which refused packets were sampled since the last time.
	OpDrops = Op[Drops, None]{"drops", []Role{Gateway}}
	// OpExposure reads what was let in and refused, now and over a day.
	OpExposure = Op[None, Exposure]{"exposure", []Role{Console}}
)

// FileDrops is the socket on which the kernel hands out heads of refused
// packets; only the gateway reads them.
const FileDrops = "drops"

// MaxDrops is the most that one request tells.
const MaxDrops = 64

// Drops is one report. The time of a drop is the time of its report.
type Drops struct {
	Drops   []Drop `json:"drops,omitempty"`
	Lost    uint64 `json:"lost,omitempty"`    // samples that were not read or not told; at least so many
	Damaged uint64 `json:"damaged,omitempty"` // messages that could not be read
}

// Drop is refused packets of one source that had the same port, reason and link.
type Drop struct {
	First      time.Time  `json:"first"`
	Last       time.Time  `json:"last"`
	Source     netip.Addr `json:"source"`
	SourcePort uint16     `json:"source_port,omitempty"` // of the newest; 0: not known
	Port       uint16     `json:"port,omitempty"`        // 0: not known
	Proto      string     `json:"proto"`                 // tcp, udp, other
	Reason     string     `json:"reason"`                // no-list, off-link, starting
	Words      string     `json:"words,omitempty"`       // the reason in words
	Link       string     `json:"link,omitempty"`
	Samples    uint64     `json:"samples"` // sampled packets, at most 20 a second of all sources
}

// Exposure is what stands between the wire and the gateway, and what came.
type Exposure struct {
	InKernel bool      `json:"in_kernel"`
	Sampling bool      `json:"sampling"` // refused packets are sampled
	Sentence string    `json:"sentence"`
	Since    time.Time `json:"since"`             // when this history begins: the program's start
	Start    time.Time `json:"start"`             // of the first minute below; a day ago at most
	Admitted []uint32  `json:"admitted"`          // packets to the web ports, a minute each, oldest first; the last is not over yet
	Refused  []uint32  `json:"refused"`           // the same, dropped
	Drops    []Drop    `json:"drops"`             // newest first, at most 100
	Lists    []Hits    `json:"lists"`             // of each list
	Counters []Meant   `json:"counters"`          // of the kernel, since its rules were loaded
	Reasons  []Reason  `json:"reasons"`           // sampled packets by reason
	Lost     uint64    `json:"lost"`              // samples
	Damaged  uint64    `json:"damaged"`           // messages of samples
	Day      DayTotal  `json:"day"`               // over the last 24 h
	Opened   uint64    `json:"opened"`            // connections opened to the web ports, where it is counted
	Problem  string    `json:"problem,omitempty"` // why the counters cannot be read
}

// DayTotal sums up the history.
type DayTotal struct {
	Admitted uint64 `json:"admitted"`
	Refused  uint64 `json:"refused"`
}

// Hits is what a list let in, in packets.
type Hits struct {
	Name string `json:"name"`
	Day  uint64 `json:"day"` // in the last 24 h, to a quarter of an hour
}

// Meant is a counter with what it means.
type Meant struct {
	Counter
	Class string `json:"class"` // admitted, refused, exception, dropped, passing
	Words string `json:"words"`
}

// Reason counts the samples of one reason.
type Reason struct {
	Reason  string `json:"reason"`
	Words   string `json:"words"`
	Samples uint64 `json:"samples"`
}
