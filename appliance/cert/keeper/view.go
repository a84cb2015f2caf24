package keeper

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/authority"
	"gatehouse/appliance/cert/pair"
)

// View is what the faces show.
type View struct {
	Source      Source       `json:"source"`
	Certificate *Certificate `json:"certificate,omitempty"` // of the source
	Identity    Certificate  `json:"identity"`
	Shown       Certificate  `json:"shown"`             // at the address that the box prints
	Serving     bool         `json:"serving"`           // the certificate of the source answers
	Problem     string       `json:"problem,omitempty"` // why it does not, or soon will not
	Renewal     time.Time    `json:"renewal,omitzero"`
	Busy        bool         `json:"busy"`
	Trouble     Trouble      `json:"trouble"`
	Root        *Root        `json:"root,omitempty"`
	ACME        ACMESettings `json:"acme"`
	Brought     bool         `json:"brought"` // one is kept, in use or not
	Lists       bool         `json:"lists"`   // allowlists are on
	History     []Entry      `json:"history"`
}

// Certificate is one of them in words.
type Certificate struct {
	Names  []string  `json:"names"`
	Issuer string    `json:"issuer"`
	From   time.Time `json:"from"`
	Until  time.Time `json:"until"`
	SHA256 string    `json:"sha256"`
	Serial string    `json:"serial"`
}

// Root is the own CA.
type Root struct {
	Name      string   `json:"name"`
	SHA256    string   `json:"sha256"`
	Limits    []string `json:"limits"`
	Uncovered []string `json:"uncovered,omitempty"` // names and addresses the box has and the root may not sign for
	PEM       string   `json:"pem"`
}

func describe(c *tls.Certificate) Certificate {
	l := c.Leaf
	names := slices.Clone(l.DNSNames)
	for _, a := range l.IPAddresses {
		names = append(names, a.String())
	}
	issuer := l.Issuer.CommonName
	if issuer == "" {
		issuer = l.Issuer.String()
	}
	return Certificate{Names: names, Issuer: issuer, From: l.NotBefore.UTC(), Until: l.NotAfter.UTC(), SHA256: cert.Fingerprint(*c), Serial: l.SerialNumber.Text(16)}
}

// warnBefore is how early the end of a certificate that nobody renews is told.
const warnBefore = 30 * 24 * time.Hour

// View is the state of now.
func (k *Keeper) View() View {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, source := k.current()
	v := View{Source: source, Identity: describe(&k.c.Identity), Busy: k.busy || k.now, Trouble: k.kept.Trouble, ACME: k.kept.ACME,
		Brought: k.kept.Brought != nil, Lists: k.machine.lists, History: append([]Entry{}, k.kept.History...)}
	shown := k.pick(k.machine.host, netip.Addr{})
	v.Shown = describe(shown)
	if k.root != nil {
		v.Root = &Root{Name: k.root.Root.Subject.CommonName, SHA256: k.root.Fingerprint(), Limits: k.root.Limits(),
			Uncovered: k.root.Uncovered(k.machine.names, k.machine.addresses), PEM: string(k.root.PEM())}
	}
	if c != nil {
		d := describe(c)
		v.Certificate = &d
		v.Problem = k.unfit(c)
		v.Serving = v.Problem == ""
		if source == CA || source == ACME {
			v.Renewal = due(c.Leaf).UTC()
			if n := v.Trouble.Next; n.After(v.Renewal) {
				v.Renewal = n
			}
		}
	}
	if p := k.problem(c, source); p != "" {
		v.Problem = strings.TrimSpace(v.Problem + " " + p)
	}
	return v
}

// problem is what a person should know about the source.
func (k *Keeper) problem(c *tls.Certificate, source Source) string {
	now := k.c.Ports.Now()
	renews := source == CA || source == ACME
	switch {
	case k.damaged != nil:
		return fmt.Sprintf("The kept certificates do not open: %v. Choose the box's own certificate to begin anew without them.", k.damaged)
	case source == Files && k.files.Problem != "":
		return "The certificate files are refused: " + k.files.Problem + "."
	case renews && !k.machine.trusted && (c == nil || now.After(due(c.Leaf)) || k.unfit(c) != ""):
		return "The box's clock is not trusted, so getting a certificate is postponed until it is set or time servers agree."
	case c == nil || renews && now.Before(c.Leaf.NotAfter):
		return ""
	case !renews && c.Leaf.NotAfter.Sub(now) < warnBefore && now.Before(c.Leaf.NotAfter):
		return fmt.Sprintf("It ends at %s, and nothing renews it: bring the next one before that.", stamp(c.Leaf.NotAfter))
	}
	return ""
}

// Authority is the own CA, nil if there is none.
func (k *Keeper) Authority() *authority.Authority {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.root
}

// Names are those of the certificate of the source.
func (k *Keeper) Names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, _ := k.current(); c != nil {
		return pair.Names(c.Leaf)
	}
	return nil
}
