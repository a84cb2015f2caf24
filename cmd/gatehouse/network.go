package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

// networkFile is the file of settings; the shape is that of the API.
type networkFile struct {
	Resolvers []netip.Addr  `toml:"resolvers,omitempty"`
	Search    []string      `toml:"search,omitempty"`
	Time      []string      `toml:"time,omitempty"`
	Multicast bool          `toml:"multicast,omitempty"`
	Links     []fileLink    `toml:"links,omitempty"`
	VLANs     []fileVLAN    `toml:"vlans,omitempty"`
	Bonds     []fileBonding `toml:"bonds,omitempty"`
}

type fileLink struct {
	Name      string         `toml:"name"`
	MAC       string         `toml:"mac,omitempty"`
	Mode      string         `toml:"mode"`
	Addresses []netip.Prefix `toml:"addresses,omitempty"`
	Gateways  []netip.Addr   `toml:"gateways,omitempty"`
	Routes    []fileRoute    `toml:"routes,omitempty,inline"`
	MTU       int            `toml:"mtu,omitempty"`
}

type fileRoute struct {
	To  netip.Prefix `toml:"to"`
	Via netip.Addr   `toml:"via"`
}

type fileVLAN struct {
	Name string `toml:"name"`
	On   string `toml:"on"`
	ID   uint16 `toml:"id"`
}

type fileBonding struct {
	Name  string   `toml:"name"`
	Links []string `toml:"links"`
	Mode  string   `toml:"mode"`
}

func (f networkFile) settings() control.NetworkSettings {
	s := control.NetworkSettings{Resolvers: f.Resolvers, Search: f.Search, Time: f.Time, Multicast: f.Multicast}
	for _, l := range f.Links {
		x := control.LinkSettings{Name: l.Name, MAC: l.MAC, Mode: l.Mode, Addresses: l.Addresses, Gateways: l.Gateways, MTU: l.MTU}
		for _, r := range l.Routes {
			x.Routes = append(x.Routes, control.Route(r))
		}
		s.Links = append(s.Links, x)
	}
	for _, v := range f.VLANs {
		s.VLANs = append(s.VLANs, control.VLAN(v))
	}
	for _, b := range f.Bonds {
		s.Bonds = append(s.Bonds, control.Bond(b))
	}
	return s
}

func fileOf(s control.NetworkSettings) networkFile {
	f := networkFile{Resolvers: s.Resolvers, Search: s.Search, Time: s.Time, Multicast: s.Multicast}
	for _, l := range s.Links {
		x := fileLink{Name: l.Name, MAC: l.MAC, Mode: l.Mode, Addresses: l.Addresses, Gateways: l.Gateways, MTU: l.MTU}
		for _, r := range l.Routes {
			x.Routes = append(x.Routes, fileRoute(r))
		}
		f.Links = append(f.Links, x)
	}
	for _, v := range s.VLANs {
		f.VLANs = append(f.VLANs, fileVLAN(v))
	}
	for _, b := range s.Bonds {
		f.Bonds = append(f.Bonds, fileBonding(b))
	}
	return f
}

// readNetwork reads a file of settings: TOML, or JSON if its name says so.
func readNetwork(path string) (s control.NetworkSettings, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return s, fail(exitNotFound, "reading the settings: %w", err)
	}
	if strings.HasSuffix(path, ".json") {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			return s, fail(exitUsage, "%s: %w", path, err)
		}
		return s, nil
	}
	var f networkFile
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(&f)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		line, _ := unknown.Errors[0].Position()
		return s, fail(exitUsage, "%s, line %d: there is no setting %q", path, line, strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &bad):
		line, _ := bad.Position()
		return s, fail(exitUsage, "%s, line %d: %s", path, line, strings.TrimPrefix(bad.Error(), "toml: "))
	case err != nil:
		return s, fail(exitUsage, "%s: %s", path, strings.TrimPrefix(err.Error(), "toml: "))
	}
	return f.settings(), nil
}

type networkFlags struct {
	changeFlags
	settings bool
	onwardAt string
}

func networkCommand() *cobra.Command {
	var f networkFlags
	c := group("network", "Show and set a box's links, addresses and names")
	c.Long = `Show and set links, addresses, VLANs, bonds, resolvers and time servers of a box.

A change takes effect at once and goes back by itself after 60 seconds unless it is
kept, over a new connection: that shows that the box is still reached. If the address
that you use goes away, the tool goes on at the new one, with the same key and session.
FILE is TOML, or JSON in a .json: what show --settings prints. What it does not name
is automatic.`
	c.Example = "  gatehouse network show --email ann@example.com --password file:password --code -\n" +
		"  gatehouse network show --settings --email … > network.toml\n" +
		"  gatehouse network apply network.toml --dry-run --email …\n" +
		"  gatehouse network apply network.toml --keep --email …"
	f.register(c)
	verb := func(use, short string, args cobra.PositionalArgs, run func(*networkRun, context.Context, []string) error) *cobra.Command {
		v := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			return f.signedIn(cmd, "/api/v1/network", func(ctx context.Context, r *change) error {
				return run(&networkRun{r, f.settings, f.onwardAt}, ctx, args)
			})
		}}
		c.AddCommand(v)
		return v
	}
	show := verb("show", "Show the links, or the settings as a file", cobra.NoArgs, (*networkRun).show)
	show.Flags().BoolVar(&f.settings, "settings", false, "print the file that apply takes")
	verb("keep", "Keep the change that waits", cobra.NoArgs, (*networkRun).keepWaiting)
	verb("revert", "Take the change that waits back at once", cobra.NoArgs, (*networkRun).revert)
	for _, v := range []*cobra.Command{
		verb("apply FILE", "Try the settings of a file", cobra.ExactArgs(1), (*networkRun).apply),
		verb("edit", "Edit the settings with $EDITOR and try them", cobra.NoArgs, (*networkRun).editSettings),
	} {
		f.registerTry(v)
		v.Flags().StringVar(&f.onwardAt, "at", "", "go on at this `ADDRESS` if the present one goes away; else the first new one")
	}
	return c
}

// networkRun is one verb at work, signed in.
type networkRun struct {
	*change
	settings bool
	onwardAt string
}

func (r *networkRun) state(ctx context.Context) (st control.NetworkState, err error) {
	_, err = r.call(ctx, "GET", r.api, nil, &st)
	return st, err
}

func (r *networkRun) show(ctx context.Context, _ []string) error {
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	switch {
	case r.settings && r.asJSON:
		return printJSON(r.out, st.Settings)
	case r.settings:
		return toml.NewEncoder(r.out).Encode(fileOf(st.Settings))
	case r.asJSON:
		return printJSON(r.out, st)
	}
	fmt.Fprintf(r.out, "%-15s %-9s %-10s %-17s %s\n", "LINK", "CABLE", "FROM", "GATEWAY", "ADDRESSES")
	for _, l := range st.Links {
		fmt.Fprintf(r.out, "%-15s %-9s %-10s %-17s %s\n", printable(l.Name), map[bool]string{true: "yes", false: "no"}[l.Carrier], printable(l.Source), list(l.Gateways), list(l.Addresses))
	}
	for _, v := range st.Settings.VLANs {
		fmt.Fprintf(r.out, "%s is VLAN %d on %s.\n", printable(v.Name), v.ID, printable(v.On))
	}
	for _, b := range st.Settings.Bonds {
		fmt.Fprintf(r.out, "%s is a bond of %s (%s).\n", printable(b.Name), printable(strings.Join(b.Links, ", ")), printable(b.Mode))
	}
	fmt.Fprintf(r.out, "Resolvers: %s. Search: %s.\n", list(st.Resolvers), printable(strings.Join(st.Search, " ")))
	if c := st.Candidate; c != nil {
		fmt.Fprintf(r.out, "A change by %s waits to be kept, for %d more seconds.\n", printable(c.Actor), c.Seconds)
	}
	return nil
}

func list[T fmt.Stringer](values []T) string {
	var out []string
	for _, v := range values {
		out = append(out, v.String())
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, " ")
}

func (r *networkRun) editSettings(ctx context.Context, _ []string) error {
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	b, err := toml.Marshal(fileOf(st.Settings))
	if err != nil {
		return err
	}
	return r.edit(ctx, "network.toml", string(b), func(path string) error { return r.apply(ctx, []string{path}) })
}

func (r *networkRun) apply(ctx context.Context, args []string) error {
	s, err := readNetwork(args[0])
	if err != nil {
		return err
	}
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	// The first look is always a dry one: it says where to go on.
	report, err := r.try(ctx, s, true, patient)
	if err != nil {
		return err
	}
	if !r.asJSON {
		for _, line := range report.Summary {
			fmt.Fprintln(r.out, printable(line))
		}
	}
	next := r.address
	if report.SelfCut {
		if next, err = r.onward(s, st); err != nil && !r.dryRun {
			return err
		}
		fmt.Fprintf(r.err, "The address that you use goes away: going on at %s.\n", next)
	}
	if r.dryRun {
		if r.asJSON {
			return printJSON(r.out, report)
		}
		return nil
	}
	within := patient
	if report.SelfCut {
		within = impatient
	}
	tried, err := r.try(ctx, s, false, within)
	if report.SelfCut {
		// The answer may have gone down with the address.
		var refused *failure
		if errors.As(err, &refused) && refused.code == exitConflict {
			return err
		}
		if tried.Candidate, err = r.moveTo(ctx, next); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if r.asJSON {
		if err := printJSON(r.out, tried); err != nil {
			return err
		}
	}
	if tried.Candidate == nil {
		return nil
	}
	from := r.moved
	if err := r.offer(ctx, tried.Candidate); err != nil || from == "" {
		return err
	}
	boxes, err := readKnown()
	if err != nil {
		return err
	}
	return boxes.move(from, r.address)
}

// How long an answer is waited for: making a bond takes seconds; and one that
// may go down with the address is not waited for while a minute is all there is.
const (
	patient   = 25 * time.Second
	impatient = 6 * time.Second
)

func (r *networkRun) try(ctx context.Context, s control.NetworkSettings, dry bool, within time.Duration) (report control.NetworkReport, err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	_, err = r.call(ctx, "POST", r.api+"/try", map[string]any{"settings": s, "dry_run": dry}, &report)
	var refused *refusal
	if errors.As(err, &refused) {
		return report, fail(exitConflict, "nothing was changed: %w", err)
	}
	return report, err
}

// onward is where the box is reached after a change that takes the present
// address away.
func (r *networkRun) onward(s control.NetworkSettings, st control.NetworkState) (string, error) {
	_, port, err := net.SplitHostPort(r.address)
	if err != nil {
		return "", err
	}
	if r.onwardAt != "" {
		a, err := netip.ParseAddr(r.onwardAt)
		if err != nil {
			return "", fail(exitUsage, "--at %q is not an address", r.onwardAt)
		}
		return net.JoinHostPort(a.String(), port), nil
	}
	for _, l := range s.Links {
		for _, p := range l.Addresses {
			had := slices.ContainsFunc(st.Links, func(x control.Link) bool {
				return slices.ContainsFunc(x.Addresses, func(q netip.Prefix) bool { return q.Addr() == p.Addr() })
			})
			if !had && l.Mode != "off" {
				return net.JoinHostPort(p.Addr().String(), port), nil
			}
		}
	}
	return "", fail(exitConflict, "the address that you use goes away, and the new one is not known before: give it with --at, or set it at the box's console")
}

// moveTo goes on at another address, as the same person: the key of the box is
// checked there as before, so the session's cookie can go along. It returns
// what waits there.
func (r *networkRun) moveTo(ctx context.Context, next string) (*control.Candidate, error) {
	r.client.CloseIdleConnections()
	here, there := &url.URL{Scheme: "https", Host: r.address, Path: "/"}, &url.URL{Scheme: "https", Host: next, Path: "/"}
	var cookies []*http.Cookie
	for _, c := range r.client.Jar.Cookies(here) {
		cookies = append(cookies, &http.Cookie{Name: c.Name, Value: c.Value, Path: "/", Secure: true})
	}
	r.client.Jar.SetCookies(there, cookies)
	r.box.moved, r.address = r.address, next
	ctx, cancel := context.WithTimeout(ctx, control.KeepWithin-5*time.Second)
	defer cancel()
	for {
		select { // the box answers first, and moves then
		case <-ctx.Done():
			return nil, fail(exitUnreachable, "the box does not answer at %s: it goes back to %s by itself, within a minute", next, r.moved)
		case <-time.After(time.Second):
		}
		one, done := context.WithTimeout(ctx, 3*time.Second)
		st, err := r.state(one)
		done()
		if err == nil && st.Candidate != nil {
			return st.Candidate, nil
		}
	}
}

func (r *networkRun) settle(ctx context.Context, verb string) error {
	st, err := r.state(ctx)
	if err != nil {
		return err
	}
	return r.waiting(ctx, verb, st.Candidate)
}

func (r *networkRun) keepWaiting(ctx context.Context, _ []string) error { return r.settle(ctx, "keep") }
func (r *networkRun) revert(ctx context.Context, _ []string) error      { return r.settle(ctx, "revert") }
