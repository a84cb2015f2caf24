package allowlists

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// adding is the choice of a list for an address that was refused.
type adding struct {
	Address netip.Addr
	Network netip.Prefix // that it is most likely part of
	Lists   []control.List
	In      []string // lists that have it
}

// parseRange takes an address or a prefix, as links of ours carry it.
func parseRange(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" {
		a = a.Unmap()
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil || p.Addr().Zone() != "" || p != p.Masked() || p.Addr().Is4In6() {
		return p, shell.Refuse(fmt.Sprintf("%.60q is neither an address nor a range of addresses.", text))
	}
	return p, nil
}

func rangeText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// add asks which list an address belongs into. It leads to the editor, which
// changes nothing before Apply.
func (p *Pages) add(v *shell.Visit) error {
	one, err := parseRange(v.R.FormValue("address"))
	if err != nil {
		return err
	}
	lists, err := p.Lists(v.Ctx())
	if err != nil {
		return err
	}
	if lists.Files != "" {
		return ofTheHost(lists.Files)
	}
	if len(lists.Lists) == 0 {
		v.Redirect("/allowlists/edit?add=" + url.QueryEscape(rangeText(one)))
		return nil
	}
	a := adding{Address: one.Addr(), Lists: lists.Lists}
	if bits := 24 + 40*(a.Address.BitLen()/128); !a.Address.IsLinkLocalUnicast() { // /24 and /64
		a.Network = netip.PrefixFrom(a.Address, bits).Masked()
	}
	a.In, _ = p.Judge(a.Address)
	return v.Show(p.choose, a)
}

// put a range at the end of the editor's text.
func (e *editor) add(v *shell.Visit, text string) error {
	r, err := parseRange(text)
	if err != nil {
		return err
	}
	if e.Text != "" && !strings.HasSuffix(e.Text, "\n") {
		e.Text += "\n"
	}
	e.Added = rangeText(r)
	e.Text += e.Added + "  # was refused, added by " + v.Person().Email + "\n"
	return nil
}

// turnOne is the switch of one list.
func (p *Pages) turnOne(v *shell.Visit) error {
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	l := d.find(v.R.FormValue("name"))
	if l == nil {
		return shell.Refuse("There is no such list. It may have been removed meanwhile.")
	}
	l.Enabled = v.R.FormValue("to") == "on"
	report, err := p.propose(v.Ctx(), d, p.ask(v, false, v.R.FormValue("force") == "yes"))
	if err == nil && report.Candidate != nil {
		return p.trial.Applied(v)
	}
	return p.notTurned(v, turned{Name: l.Name, On: l.Enabled}, report, err)
}
