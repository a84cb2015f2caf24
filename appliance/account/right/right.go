// Package right says who may do what, as data without any storage.
package right

import (
	"fmt"
	"slices"
)

// Role is what a person is on this box.
type Role string

// The roles, widest first.
const (
	Owner         Role = "owner"
	Administrator Role = "administrator"
	Technician    Role = "technician"
	Viewer        Role = "viewer"
)

// Right is one thing that a role may do.
type Right string

// The rights that routes ask for.
const (
	ReadStatus   Right = "read-status"   // the state of the box
	ReadAudit    Right = "read-audit"    // who did what
	ReadLogs     Right = "read-logs"     // the roles' logs
	Power        Right = "power"         // restart, switch off
	Configure    Right = "configure"     // name, place, clock, updates window
	ResetClock   Right = "reset-clock"   // take the floor of the clock back
	ManageSites  Right = "manage-sites"  // approve and remove sites
	OwnAccount   Right = "own-account"   // one's own password, factor, sessions
	ManageTokens Right = "manage-tokens" // make and revoke tokens of programs
	ManageKeys   Right = "manage-keys"   // see what guards the data key, and change it
	Update       Right = "update"        // see the two systems, bring in and start a release
	Move         Right = "move"          // export and import the configuration, give the box away, erase it

	UseSessions    Right = "use-sessions"    // open sessions to targets, see and end one's own
	ManageSessions Right = "manage-sessions" // see and end everybody's
	ManageTargets  Right = "manage-targets"  // declare targets, their credentials and host keys
	ReadRecordings Right = "read-recordings" // play and export what sessions showed
)

// table is the whole of it: a right that is not listed is not had.
var table = map[Role][]Right{
	Owner:         {ReadStatus, ReadAudit, ReadLogs, Power, Configure, ResetClock, ManageKeys, Update, Move, ManageSites, OwnAccount, ManageTokens, UseSessions, ManageSessions, ManageTargets, ReadRecordings},
	Administrator: {ReadStatus, ReadAudit, ReadLogs, Power, Configure, ManageSites, OwnAccount, ManageTokens, UseSessions, ManageSessions, ManageTargets, ReadRecordings},
	Technician:    {ReadStatus, ReadLogs, OwnAccount, UseSessions},
	Viewer:        {ReadStatus, OwnAccount},
}

// May says whether a role has a right. An unknown role has none.
func May(role Role, r Right) bool { return slices.Contains(table[role], r) }

// ParseRole reads a role as it is stored.
func ParseRole(s string) (Role, error) {
	if _, ok := table[Role(s)]; !ok {
		return "", fmt.Errorf("%q is not a role: owner, administrator, technician or viewer", s)
	}
	return Role(s), nil
}
