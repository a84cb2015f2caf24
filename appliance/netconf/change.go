package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"gatehouse/appliance/control"
)

// Size is the most that settings take when written, in bytes: less than the
// place that META has for them.
const Size = 24 << 10

// form is what is written. A later form gets a new number, and this program
// refuses it rather than guess.
type form struct {
	Version  int                     `json:"version"`
	Settings control.NetworkSettings `json:"settings"`
}

const version = 1

// Encode writes settings in their one form: JSON of one line.
func Encode(s control.NetworkSettings) ([]byte, error) {
	b, err := json.Marshal(form{version, s})
	if err != nil {
		return nil, fmt.Errorf("writing the network settings: %w", err)
	}
	return append(b, '\n'), nil
}

// Decode reads what Encode wrote, and nothing else: what does not come out the
// same when it is written again was not ours. It checks what it read, since a
// medium that somebody else held may say anything.
func Decode(b []byte) (control.NetworkSettings, error) {
	if len(b) > Size {
		return control.NetworkSettings{}, fmt.Errorf("the network settings have %d bytes, want at most %d", len(b), Size)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var f form
	if err := d.Decode(&f); err != nil {
		return control.NetworkSettings{}, fmt.Errorf("the network settings are not in their form: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return control.NetworkSettings{}, errors.New("the network settings have something behind their end")
	}
	if f.Version != version {
		return control.NetworkSettings{}, fmt.Errorf("the network settings are of form %d, and this program knows %d", f.Version, version)
	}
	if again, err := Encode(f.Settings); err != nil || !bytes.Equal(again, b) {
		return control.NetworkSettings{}, errors.New("the network settings are not as this program writes them")
	}
	if p := Check(f.Settings, nil); len(p) > 0 {
		return control.NetworkSettings{}, fmt.Errorf("the network settings cannot be: %s", Sentence(p[0]))
	}
	return f.Settings, nil
}

// Sentence is a problem in one line.
func Sentence(p control.Problem) string {
	if p.Text == "" {
		return p.Reason
	}
	return p.Text + ": " + p.Reason
}

// Equal says whether two settings are the same in effect and in writing.
func Equal(a, b control.NetworkSettings) bool {
	x, errX := Encode(a)
	y, errY := Encode(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// Changes says in words what new settings do to old ones, a line each. Both are
// Named, so that a link that has another name now is the same.
func Changes(from, to control.NetworkSettings) []string {
	var out []string
	say := func(format string, a ...any) { out = append(out, fmt.Sprintf(format, a...)) }
	for _, name := range names(from, to) {
		before, after := Describe(from, name), Describe(to, name)
		switch {
		case before == after:
		case absent(from, name):
			say("what was set for %s is dropped: %s", Shown(from, name), before)
		case made(from, name) && !made(to, name):
			say("%s goes away (it was %s)", name, before)
		case made(to, name) && !made(from, name):
			say("%s is made: %s", name, after)
		default:
			say("%s: %s, and was %s", name, after, before)
		}
	}
	for _, x := range []struct {
		what, empty   string
		before, after []string
	}{
		{"resolvers", "as learnt", texts(from.Resolvers), texts(to.Resolvers)},
		{"search domains", "as learnt", from.Search, to.Search},
		{"time servers", "as learnt, and the usual pool", from.Time, to.Time},
	} {
		if !slices.Equal(x.before, x.after) {
			say("%s: %s, and were %s", x.what, orElse(x.after, x.empty), orElse(x.before, x.empty))
		}
	}
	if from.Multicast != to.Multicast {
		say("the name is %s by mDNS after the claim", map[bool]string{true: "answered for", false: "not answered for"}[to.Multicast])
	}
	if len(out) == 0 {
		out = []string{"nothing changes"}
	}
	return out
}

func orElse(list []string, empty string) string {
	if len(list) == 0 {
		return empty
	}
	return strings.Join(list, ", ")
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}

// names are those of all links that two settings speak of, in their order.
func names(all ...control.NetworkSettings) []string {
	var out []string
	add := func(n string) {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	for _, s := range all {
		for _, l := range s.Links {
			add(l.Name)
		}
		for _, b := range s.Bonds {
			add(b.Name)
			for _, m := range b.Links {
				add(m)
			}
		}
		for _, v := range s.VLANs {
			add(v.Name)
		}
	}
	return out
}

// absent says whether a name stands for a card that is not there.
func absent(s control.NetworkSettings, name string) bool {
	l := Of(s, name)
	return l != nil && l.MAC != "" && name == absentName(l.MAC)
}

// Shown is a name of Named settings as people are told it.
func Shown(s control.NetworkSettings, name string) string {
	if absent(s, name) {
		return "a card that is not there (" + Of(s, name).MAC + ")"
	}
	return name
}

// kind says what a link is made of; "" for one that the machine has by itself.
func kind(s control.NetworkSettings, name string) string {
	for _, v := range s.VLANs {
		if v.Name == name {
			return fmt.Sprintf("VLAN %d on %s", v.ID, Shown(s, v.On))
		}
	}
	for _, b := range s.Bonds {
		if b.Name == name {
			var parts []string
			for _, l := range b.Links {
				parts = append(parts, Shown(s, l))
			}
			return fmt.Sprintf("bond (%s) of %s", b.Mode, strings.Join(parts, ", "))
		}
	}
	if bond := BondOf(s, name); bond != "" {
		return "part of " + bond
	}
	return ""
}

// Describe is a link in words.
func Describe(s control.NetworkSettings, name string) string {
	var parts []string
	if k := kind(s, name); k != "" {
		parts = append(parts, k)
	}
	l := Of(s, name)
	switch {
	case BondOf(s, name) != "":
	case l == nil:
		parts = append(parts, Automatic)
	case l.Mode == Static:
		parts = append(parts, strings.Join(texts(l.Addresses), ", "))
		if len(l.Gateways) > 0 {
			parts = append(parts, "gateway "+strings.Join(texts(l.Gateways), ", "))
		}
		for _, r := range l.Routes {
			parts = append(parts, fmt.Sprintf("%s by %s", r.To, r.Via))
		}
	default:
		parts = append(parts, l.Mode)
	}
	if l != nil && l.MTU != 0 {
		parts = append(parts, fmt.Sprintf("MTU %d", l.MTU))
	}
	if l != nil && l.MAC != "" && !absent(s, name) {
		parts = append(parts, "the card "+l.MAC)
	}
	return strings.Join(parts, ", ")
}

// Cut says whether the address of ours that somebody's connection goes to
// disappears with a change, or may: what was set by hand and is to be learnt
// can come back as another. Settings are Named, and the links those of now. An
// address that no link has, behind somebody's NAT, tells nothing.
func Cut(from, to control.NetworkSettings, links []control.Link, local netip.Addr) bool {
	local = local.Unmap().WithZone("")
	if !local.IsValid() || local.IsLoopback() {
		return false
	}
	i := slices.IndexFunc(links, func(l control.Link) bool {
		return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr() == local })
	})
	if i < 0 {
		return false
	}
	name := links[i].Name
	if gone(from, to, name) {
		return true
	}
	mode := Mode(to, name)
	switch {
	case mode == Off:
		return true
	case local.Is6() && local.IsLinkLocalUnicast():
		return false // the link's own
	case mode == Static:
		return !slices.ContainsFunc(Of(to, name).Addresses, func(p netip.Prefix) bool { return p.Addr() == local })
	}
	return Mode(from, name) == Static
}

// gone says whether a link ends, or begins anew as another.
func gone(from, to control.NetworkSettings, name string) bool {
	if kind(from, name) != kind(to, name) {
		return true
	}
	for _, v := range to.VLANs {
		if v.Name == name {
			return gone(from, to, v.On)
		}
	}
	return false
}
