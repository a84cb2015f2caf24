package keeper

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/cert/authority"
	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
)

// Record appends an event of the person who asks; the change happens after it.
type Record func(action, object string, detail map[string]string) error

// A Choice is what a person wants.
type Choice struct {
	Source Source       `json:"source"` // self, ca, acme, brought
	NewCA  bool         `json:"new_ca,omitempty"`
	ACME   ACMESettings `json:"acme,omitzero"`
}

const chooseAction = "choose certificate source"

// Choose makes a source the one in use.
func (k *Keeper) Choose(ctx context.Context, q Choice, record Record) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	defer k.wake()
	m, named := k.seen()
	if named {
		return errFiles
	}
	if k.damaged != nil && q.Source != Self {
		return k.change(nil)
	}
	switch q.Source {
	case Self:
		return k.chooseSelf(record)
	case CA:
		return k.chooseCA(q.NewCA, m, record)
	case ACME:
		return k.chooseACME(ctx, q.ACME, record)
	case Brought:
		if k.kept.Brought == nil {
			return refuse("No certificate was brought yet: give its chain and key.")
		}
		if err := record(chooseAction, string(Brought), nil); err != nil {
			return err
		}
		return k.change(func(q *kept) { q.choose(Brought, k) })
	}
	return refuse("%.40q is not a source of certificates: choose self, ca, acme or brought.", q.Source)
}

var errFiles = &Refusal{"The configuration of this program names the files of a certificate, and they are used. Take them out of the configuration to choose another source here."}

var errEarly = &Refusal{"The console has only just started. Try again in a moment."}

// choose is the change that all choices have alike.
func (q *kept) choose(s Source, k *Keeper) {
	q.Source, q.Trouble = s, Trouble{}
	q.note(k.c.Ports.Now(), "chosen", s, "")
}

// chooseSelf also is the way on from a file that does not open.
func (k *Keeper) chooseSelf(record Record) error {
	detail := map[string]string{}
	if k.damaged != nil {
		detail["given up"] = "the kept certificates did not open"
	}
	if err := record(chooseAction, string(Self), detail); err != nil {
		return err
	}
	if k.damaged != nil {
		return k.keep(kept{}, func(q *kept) { q.choose(Self, k) })
	}
	return k.change(func(q *kept) { q.choose(Self, k) })
}

func (k *Keeper) chooseCA(anew bool, m machine, record Record) error {
	if len(m.names) == 0 {
		return errEarly
	}
	a := k.root
	if a == nil || anew {
		var err error
		if a, err = authority.New(m.names[0], m.names, m.addresses); err != nil {
			return err
		}
	}
	b, err := a.Encode()
	if err != nil {
		return err
	}
	made := a != k.root
	if err := record(chooseAction, string(CA), map[string]string{"root": a.Fingerprint(), "new": fmt.Sprint(made)}); err != nil {
		return err
	}
	return k.change(func(q *kept) {
		q.choose(CA, k)
		if made {
			q.Authority, q.Leaf = b, nil // of another root
			q.note(k.c.Ports.Now(), "new CA", CA, "SHA-256 "+a.Fingerprint())
		}
	})
}

func (k *Keeper) chooseACME(ctx context.Context, s ACMESettings, record Record) error {
	if s.Directory == "" {
		s.Directory = order.LetsEncrypt
	}
	if s.Challenge == "" {
		s.Challenge = order.HTTP01
	}
	for i, n := range s.Names {
		s.Names[i] = strings.TrimSuffix(strings.ToLower(strings.TrimSpace(n)), ".")
	}
	slices.Sort(s.Names)
	s.Names = slices.Compact(s.Names)
	wanted := order.Config{Directory: s.Directory, Roots: []byte(s.Roots), Email: s.Email, Names: s.Names, Challenge: s.Challenge, Now: k.c.Ports.Now}
	if err := wanted.Check(); err != nil {
		return refuse("%s.", sentence(err))
	}
	if !s.Agreed {
		return unagreed(ctx, wanted)
	}
	account := k.kept.Account
	if account == nil || k.kept.ACME.Directory != s.Directory {
		// Another server gets another key: they could tell each other.
		key, err := order.NewKey()
		if err != nil {
			return err
		}
		if account, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return fmt.Errorf("keeping the key of the ACME account: %w", err)
		}
	}
	if err := record(chooseAction, string(ACME), map[string]string{"directory": s.Directory, "names": strings.Join(s.Names, " "), "challenge": s.Challenge, "terms": "accepted"}); err != nil {
		return err
	}
	return k.change(func(q *kept) {
		if q.ACME.Directory != s.Directory {
			q.Ordered = nil // its account is another: it could not be revoked
		}
		q.choose(ACME, k)
		q.ACME, q.Account = s, account
	})
}

// unagreed says where the terms are, if the server tells within the time that a
// person waits.
func unagreed(ctx context.Context, c order.Config) error {
	const first = "An ACME server gives certificates only to who accepts its terms: read them, and say that you do."
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	terms, err := order.Terms(ctx, c)
	switch {
	case err != nil:
		return refuse("%s They could not be asked for just now: %s.", first, strings.TrimSuffix(err.Error(), "."))
	case terms == "":
		return refuse("%s This server names none.", first)
	}
	return refuse("%s They are at %s", first, terms)
}

// Import takes a chain and its key.
func (k *Keeper) Import(chain, key []byte, record Record) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	defer k.wake()
	if _, named := k.seen(); named {
		return errFiles
	}
	if k.damaged != nil {
		return k.change(nil)
	}
	c, err := pair.Parse(chain, key, k.c.Ports.Now())
	if err != nil {
		return refuse("%s.", sentence(err))
	}
	b, err := pair.Encode(c)
	if err != nil {
		return err
	}
	if err := record("import certificate", strings.Join(pair.Names(c.Leaf), " "), used(Brought, c).Detail); err != nil {
		return err
	}
	return k.change(func(q *kept) {
		q.Brought, q.Source, q.Trouble = b, Brought, Trouble{}
		q.note(k.c.Ports.Now(), "imported", Brought, "for "+strings.Join(pair.Names(c.Leaf), ", ")+", until "+stamp(c.Leaf.NotAfter))
	})
}

// Renew has the source give another certificate now.
func (k *Keeper) Renew(record Record) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	m, named := k.seen()
	switch {
	case named:
		return errFiles
	case k.damaged != nil:
		return k.change(nil)
	case k.kept.Source != CA && k.kept.Source != ACME:
		return refuse("Nothing here renews this certificate: one that was brought is renewed by bringing another, and the box's own lasts.")
	case !m.trusted:
		return refuse("The box's clock is not trusted, so no certificate can be got: set the clock first, or wait for time servers.")
	case k.busy:
		return refuse("An order is under way already.")
	}
	if err := record("renew certificate", string(k.kept.Source), nil); err != nil {
		return err
	}
	k.want(true, false)
	k.wake()
	return nil
}

// Revoke tells the ACME server that the certificate is not to be trusted any
// more, and stops serving it. The source is the identity then: what comes next
// is for a person to say.
func (k *Keeper) Revoke(ctx context.Context, record Record) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	defer k.wake()
	switch {
	case k.damaged != nil:
		return k.change(nil)
	case k.kept.Ordered == nil:
		return refuse("There is no certificate of an ACME server to revoke. A new own CA makes the certificates of the old one worthless; a brought one is revoked by who issued it.")
	case k.busy:
		return refuse("An order is under way: wait for its end.")
	}
	c, err := k.config(k.kept.ACME)
	if err != nil {
		return err
	}
	ordered, err := pair.Decode(k.kept.Ordered)
	if err != nil {
		return err
	}
	if err := record("revoke certificate", strings.Join(pair.Names(ordered.Leaf), " "), used(ACME, ordered).Detail); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second) // a person waits, and so do other changes
	defer cancel()
	if err := order.Revoke(ctx, c, ordered.Certificate[0]); err != nil {
		return refuse("The certificate is still in use: %s.", strings.TrimSuffix(err.Error(), "."))
	}
	return k.change(func(q *kept) {
		if q.Source == ACME {
			q.Source, q.Trouble = Self, Trouble{}
		}
		q.Ordered = nil
		q.note(k.c.Ports.Now(), "revoked", ACME, "serial number "+ordered.Leaf.SerialNumber.Text(16))
	})
}

// sentence is an error as the middle of one.
func sentence(err error) string {
	s := strings.TrimSuffix(err.Error(), ".")
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
