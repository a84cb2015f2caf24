package control

import "strings"

// What opens a locked box from afar (package unlock).
const (
	TakesRecovery   = "recovery-key"
	TakesPassphrase = "passphrase"
)

// Unlocking is what a locked box shows to those who can open it. Only its own
// console shows the words: on a page they would prove nothing.
type Unlocking struct {
	Words string   `json:"words,omitempty"` // six, of certificate and key
	Takes []string `json:"takes,omitempty"` // recovery-key, passphrase; none: nothing opens it
}

// Ways names them within a sentence.
func (u Unlocking) Ways() string {
	return strings.ReplaceAll(strings.Join(u.Takes, " or "), "-", " ")
}

// UnlockKey is what secrets that open a locked box are encrypted to.
type UnlockKey struct {
	Public []byte   `json:"public"`
	Takes  []string `json:"takes"`
}

// Unlock is a secret as it came from a tool, which the console cannot read.
type Unlock struct {
	Sealed  []byte `json:"sealed"`
	Binding []byte `json:"binding"` // of the connection that it came over
	From    string `json:"from"`
}

// What the console may ask while the box is locked.
var (
	// OpUnlockKey reads the key; it is made when the console tells its certificate.
	OpUnlockKey = Op[None, UnlockKey]{"unlock-key", []Role{Console}}
	// OpUnlock passes a secret on. When it is answered, all roles are about to be started anew.
	OpUnlock = Op[Unlock, None]{"unlock", []Role{Console}}
)
