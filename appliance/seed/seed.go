// Package seed is what a new box is told before its first start: who owns it, its name, its network; pure.
//
// A seed is one file of JSON on a medium that whoever sets the box up holds in
// his hands. Nothing vouches for it but that: it is looked at only while nobody
// owns the box, when whoever stands there could read the claim code as well. It
// can give nothing that the set-up page could not, and opens nothing: there is
// no field for lists, for tokens of programs or for keys of updates.
package seed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
)

const (
	// Format is the first field of the file. A later form gets a new number.
	Format = "gatehouse seed 1"
	// File is the name of the file in the root folder of its medium.
	File = "seed.json"
	// Label is that of the file system which holds it: other media are not looked at.
	Label = "GATESEED"
	// Size is the most that a seed has, in bytes.
	Size = 64 << 10
)

// Enrol is the one value of SecureBoot.
const Enrol = "enrol"

// A Seed is what the box is told. Every part may be missing.
type Seed struct {
	Owner *Owner
	// HostName takes the place of the name that the box makes itself.
	HostName string
	Network  *control.NetworkSettings
	// SecureBoot is Enrol to have the keys of the image written into the
	// firmware once the box has an owner, if that is in set-up mode.
	SecureBoot string
	Install    *Install
}

// An Owner is the first person. Password is argon2id's string form, as the box
// keeps passwords: the box does not see the password itself before it is typed.
type Owner struct {
	Name     string `json:"name"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

// Install is what an installer may do without asking.
type Install struct {
	// Serial names the one disk to write to: what is on it is lost.
	Serial string `json:"disk_serial"`
}

type form struct {
	Format     string                   `json:"format"`
	Used       string                   `json:"used,omitempty"`
	Owner      *Owner                   `json:"owner,omitempty"`
	HostName   string                   `json:"host_name,omitempty"`
	Network    *control.NetworkSettings `json:"network,omitempty"`
	SecureBoot string                   `json:"secure_boot,omitempty"`
	Install    *Install                 `json:"install,omitempty"`
	// Enrolment is known to be asked for, and refused in words.
	Enrolment json.RawMessage `json:"enrolment,omitempty"`
}

// ErrUsed says that a box was set up by this seed: nothing is left in it.
var ErrUsed = errors.New("this seed was used already")

// Parse reads a seed. It is strict, since half of a seed is worse than none: an
// unknown field, a value that cannot hold, anything behind the end, and nothing
// of it counts. The error says what is wrong, for the console of the box.
func Parse(b []byte) (Seed, error) {
	if len(b) > Size {
		return Seed{}, fmt.Errorf("it has more than %d bytes", Size)
	}
	if !utf8.Valid(b) {
		return Seed{}, errors.New("it is not text in UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var f form
	if err := d.Decode(&f); err != nil {
		return Seed{}, fmt.Errorf("it is not JSON of the form that docs/image.md describes: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Seed{}, errors.New("something follows its end")
	}
	if f.Format != Format {
		return Seed{}, fmt.Errorf("its format is %q, and this version knows %q", short(f.Format), Format)
	}
	if f.Used != "" {
		return Seed{}, ErrUsed
	}
	if len(f.Enrolment) > 0 {
		return Seed{}, errors.New("it asks for enrolment with a hub, which this version cannot do: take \"enrolment\" out, and enrol the box when it is yours")
	}
	s := Seed{f.Owner, f.HostName, f.Network, f.SecureBoot, f.Install}
	return s, s.Check()
}

// Check says what is wrong with a seed, as far as it can be told without the
// machine that it is for.
func (s Seed) Check() error {
	if s.Owner == nil && s.HostName == "" && s.Network == nil && s.SecureBoot == "" && s.Install == nil {
		return errors.New("it says nothing: give at least an owner or a network")
	}
	if s.Owner != nil {
		if err := s.Owner.check(); err != nil {
			return err
		}
	}
	if s.HostName != "" && !validName(s.HostName) {
		return fmt.Errorf("%q cannot be the name of a box: use 1 to 30 of a-z, 0-9 and -, no - at an end", short(s.HostName))
	}
	if s.Network != nil {
		if p := netconf.Check(*s.Network, nil); len(p) > 0 {
			return fmt.Errorf("its network cannot be set: %s", netconf.Sentence(p[0]))
		}
	}
	switch {
	case s.SecureBoot != "" && s.SecureBoot != Enrol:
		return fmt.Errorf("secure_boot is %q: %q is the only choice, or leave it out", short(s.SecureBoot), Enrol)
	case s.SecureBoot != "" && s.Owner == nil:
		return errors.New("it asks to enrol keys of Secure Boot and names no owner: firmware is changed only for somebody who owns the box")
	case s.Install != nil && (s.Install.Serial == "" || !printable(s.Install.Serial)):
		return errors.New("install needs disk_serial, the serial number of the one disk that may be written to")
	}
	return nil
}

func (o Owner) check() error {
	local, domain, ok := strings.Cut(o.Email, "@")
	switch {
	case !ok || local == "" || domain == "" || len(o.Email) > 254 || !printable(o.Email):
		return fmt.Errorf("the owner's e-mail address %q is none", short(o.Email))
	case strings.TrimSpace(o.Name) == "" || utf8.RuneCountInString(o.Name) > 100 || !printable(o.Name):
		return errors.New("the owner's name has to have 1 to 100 letters")
	case !strings.HasPrefix(o.Password, "$argon2id$"):
		return errors.New("the owner's password has to be there hashed, as gatehouse image customize writes it ($argon2id$…)")
	}
	return nil
}

// Encode writes a seed in the form that Parse reads.
func (s Seed) Encode() ([]byte, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(form{Format: Format, Owner: s.Owner, HostName: s.HostName, Network: s.Network, SecureBoot: s.SecureBoot, Install: s.Install}, "", "  ")
	return append(b, '\n'), err
}

// Used is what takes a seed's place once a box was set up by it, filled up with
// spaces to size so that the file keeps its length; as long as it needs where
// there is less room.
func Used(box string, size int) []byte {
	b, err := json.Marshal(form{Format: Format, Used: "by " + box})
	if err != nil {
		panic(err) // two strings
	}
	return append(b, bytes.Repeat([]byte{' '}, max(0, size-len(b)))...)
}

// validName is the name as it stands in host names and certificates. It is
// shorter than DNS allows: the box's own root certificate says it, too.
func validName(s string) bool {
	return len(s) <= 30 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-' && s[len(s)-1] != '-'
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func short(s string) string {
	if r := []rune(s); len(r) > 40 {
		return string(r[:40]) + "…"
	}
	return s
}
