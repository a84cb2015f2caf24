package control

// What the roles have to know of each other so that a session can meet: the
// console says who may grant, the gateway by which key its ends pin it. Neither
// is secret, both come from the role itself, and the monitor only passes them on.
var (
	// OpMeetingSet tells the caller's own part; the other part counts for nothing.
	OpMeetingSet = Op[Meeting, None]{"meeting-set", []Role{Gateway, Console}}
	// OpMeeting reads both.
	OpMeeting = Op[None, Meeting]{"meeting", []Role{Gateway, Console, Agent}}
	// OpHubLine tells whether the site's line to its hub stands: a new system has to
	// get there, too.
	OpHubLine = Op[HubLine, None]{"hub-line", []Role{Agent}}
)

// HubLine is the line on which a site waits for its hub's word.
type HubLine struct {
	Up bool `json:"up"`
}

// Meeting is empty where the role has not said it yet.
type Meeting struct {
	Organisation []byte `json:"organisation,omitempty"` // Ed25519 public key whose grants and tickets count
	Gateway      []byte `json:"gateway,omitempty"`      // SHA-256 of the gateway's public key
	Listens      string `json:"listens,omitempty"`      // address of the gateway's port 443, for the box's own agent
}
