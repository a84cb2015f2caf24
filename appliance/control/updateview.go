package control

import "time"

// UpdateView is what a person is shown of the systems, on the page, in the API
// and by the tool.
type UpdateView struct {
	Update
	Mirror   MirrorState `json:"mirror"`
	Sessions int         `json:"sessions"` // people's, that a restart ends
}

// MirrorState is what came of asking the mirror.
type MirrorState struct {
	Busy bool `json:"busy"` // it is asked, or sends, now
	// Offers is the version that the mirror has and the box does not; nobody has
	// verified it before its bytes are asked for.
	Offers  string    `json:"offers,omitempty"`
	Looked  time.Time `json:"looked,omitzero"`
	Problem string    `json:"problem,omitempty"` // in words
}
