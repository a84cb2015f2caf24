package right

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Functions is a set of what a technician may do in a session. Its text form
// is the names in order with commas between, and nothing for none.
type Functions uint32

// The functions of a session, each granted or denied per group. The order is
// that of the text form and of pages; it never changes, since grants carry it.
const (
	RemoteControl   Functions = 1 << iota // keyboard and mouse, a terminal, a forwarded connection
	DesktopView                           // see the screen
	FileManager                           // list, rename and delete files
	SendFiles                             // to the target
	ReceiveFiles                          // from the target
	Clipboard                             // share it
	Reboot                                // restart the target and come back
	SystemInfo                            // what the target is made of
	Scripts                               // run prepared ones
	OpenURLs                              // at the target
	Record                                // make a recording
	PrivateSession                        // one that others do not see in their list
	TransferSession                       // hand it to another technician
	ShowScreen                            // show one's own
	AskCredentials                        // ask the person for a name and password
	SinglePrompt                          // ask the person once for all, not for each
	endOfFunctions
)

// AllFunctions is every one of them.
const AllFunctions = endOfFunctions - 1

// functionNames is in the order of the bits.
var functionNames = [...]string{
	"remote-control", "desktop-view", "file-manager", "send-files", "receive-files", "clipboard", "reboot", "system-info",
	"scripts", "urls", "record", "private-session", "transfer-session", "show-screen", "ask-credentials", "single-prompt",
}

// FunctionNames lists the names of all functions, in their order.
func FunctionNames() []string { return slices.Clone(functionNames[:]) }

// Has says whether all of f are in s. No function is not a question: false.
func (s Functions) Has(f Functions) bool { return f != 0 && s&f == f }

// Names lists the functions of the set, in order.
func (s Functions) Names() []string {
	var names []string
	for rest := s & AllFunctions; rest != 0; rest &= rest - 1 {
		names = append(names, functionNames[bits.TrailingZeros32(uint32(rest))])
	}
	return names
}

// String is the text form.
func (s Functions) String() string { return strings.Join(s.Names(), ",") }

// MarshalText writes the text form; a set with bits that mean nothing has none.
func (s Functions) MarshalText() ([]byte, error) {
	if s&^AllFunctions != 0 {
		return nil, fmt.Errorf("writing the functions of a session: bits %#x mean nothing", uint32(s&^AllFunctions))
	}
	return []byte(s.String()), nil
}

// UnmarshalText reads the one text form of a set: known names, in order, each once.
func (s *Functions) UnmarshalText(b []byte) error {
	*s = 0
	if len(b) == 0 {
		return nil
	}
	var read Functions
	for name := range strings.SplitSeq(string(b), ",") {
		i := slices.Index(functionNames[:], name)
		if i < 0 {
			return fmt.Errorf("%.40q is not a function of a session: %s", name, strings.Join(functionNames[:], ", "))
		}
		f := Functions(1) << i
		if read >= f {
			return fmt.Errorf("functions of a session stand in their order, each once: %q is out of place", name)
		}
		read |= f
	}
	*s = read
	return nil
}

// Rules are what one group says. What it neither grants nor denies it leaves
// to other groups; a denial counts against every grant.
type Rules struct {
	Granted Functions
	Denied  Functions
}

// Allowed is what is left to a person: owners and administrators may all that
// no group of theirs denies, technicians what one group grants and none denies,
// viewers at most see the screen, and information, under the same condition.
func Allowed(role Role, groups ...Rules) Functions {
	var granted, denied Functions
	for _, g := range groups {
		granted |= g.Granted
		denied |= g.Denied
	}
	switch role {
	case Owner, Administrator:
		granted = AllFunctions
	case Technician:
	case Viewer:
		granted &= DesktopView | SystemInfo
	default:
		return 0
	}
	return granted &^ denied & AllFunctions
}
