package keeper

import (
	"slices"

	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
)

// Moved is where certificates come from, on the way to another box: the own CA
// with its key, what was brought with its key, and the account with an ACME
// server with what it gave. The identity of the box is not among it, and neither
// is the certificate that the own CA gave it: they are each box's own.
type Moved struct {
	Source    Source       `json:"source"`
	ACME      ACMESettings `json:"acme"`
	Account   []byte       `json:"account,omitempty"`   // PKCS #8
	Authority []byte       `json:"authority,omitempty"` // authority.Encode
	Ordered   []byte       `json:"ordered,omitempty"`   // pair.Encode
	Brought   []byte       `json:"brought,omitempty"`   // pair.Encode
}

// Export returns what is kept. Files of the operator are the operator's.
func (k *Keeper) Export() (Moved, error) {
	k.acting.Lock()
	defer k.acting.Unlock()
	if k.damaged != nil {
		return Moved{}, k.change(nil)
	}
	q := k.kept
	return Moved{q.Source, q.ACME, q.Account, q.Authority, q.Ordered, q.Brought}, nil
}

func (m Moved) kept() kept {
	return kept{Source: m.Source, ACME: m.ACME, Account: m.Account, Authority: m.Authority, Ordered: m.Ordered, Brought: m.Brought}
}

// CheckMoved says what is wrong with what is to be taken.
func (k *Keeper) CheckMoved(m Moved) error {
	if _, _, err := m.kept().parse(); err != nil {
		return refuse("The certificates in it cannot be used: %v.", err)
	}
	for _, b := range [][]byte{m.Ordered, m.Brought} { // parse looks at the one in use
		if b == nil {
			continue
		}
		if _, err := pair.Decode(b); err != nil {
			return refuse("A certificate in it cannot be used: %v.", err)
		}
	}
	if m.Account != nil {
		if _, err := parseAccount(m.Account); err != nil {
			return refuse("The account with the ACME server in it cannot be used: %v.", err)
		}
	}
	if m.Source == ACME {
		wanted := order.Config{Directory: m.ACME.Directory, Roots: []byte(m.ACME.Roots), Email: m.ACME.Email, Names: m.ACME.Names, Challenge: m.ACME.Challenge, Now: k.c.Ports.Now}
		if err := wanted.Check(); err != nil {
			return refuse("%s.", sentence(err))
		}
		if !m.ACME.Agreed || m.Account == nil {
			return refuse("The certificates in it come from an ACME server, without an account that accepted its terms.")
		}
	}
	return nil
}

// Restore puts it in the place of what is kept here. The box gets a certificate
// of its own CA for its own names within seconds, as far as the CA may sign
// those: what it may not is said on its page.
func (k *Keeper) Restore(m Moved, from string, record Record) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	defer k.wake()
	if _, named := k.seen(); named {
		return errFiles
	}
	if k.damaged != nil {
		return k.change(nil)
	}
	if err := k.CheckMoved(m); err != nil {
		return err
	}
	if err := record("import certificates", string(m.Source), map[string]string{"from": from}); err != nil {
		return err
	}
	return k.change(func(q *kept) {
		history := slices.Clone(q.History)
		*q = m.kept()
		q.History = history
		q.note(k.c.Ports.Now(), "imported", m.Source, "with the configuration of "+from)
	})
}
