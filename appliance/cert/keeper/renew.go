package keeper

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
	"gatehouse/appliance/control"
	"gatehouse/appliance/task"
)

// lookEvery is how soon a change of addresses, names or clock is followed.
const lookEvery = 5 * time.Second

// pauses are those after failures in a row. Let's Encrypt allows five failed
// validations an hour for a name.
var pauses = []time.Duration{10 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour}

// maxPause bounds what a server can ask for.
const maxPause = 7 * 24 * time.Hour

// Tasks keep the certificate right. They end only with the context: whatever
// fails is shown and tried again.
func (k *Keeper) Tasks() []task.Task {
	return []task.Task{task.Func("certificates", k.run), task.Func("certificate files", k.follow)}
}

func (k *Keeper) run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.c.Log.Warn("looking after the certificates", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		case <-k.poke:
		}
	}
}

// follow takes the operator's files whenever they change. Refused ones are not
// taken: they are judged again, because a clock is set and a disk gets room.
func (k *Keeper) follow(ctx context.Context) error {
	var seen uint64
	for {
		f, err := k.c.Ports.Files(ctx, control.CertificateFilesSeen{Version: seen})
		if err == nil && f.Version != seen {
			if seen = f.Version; !k.takeFiles(ctx, f) {
				seen, err = 0, errNotTaken
			}
		}
		if err == nil {
			if err = ctx.Err(); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lookEvery):
		}
	}
}

var errNotTaken = errors.New("the certificate files were refused")

// takeFiles judges files; bad ones leave the last good ones in use. It says
// whether that is settled until they are others.
func (k *Keeper) takeFiles(ctx context.Context, f control.CertificateFiles) bool {
	var c tls.Certificate
	var err error
	if f.Named {
		if f.Problem != "" {
			err = errors.New(f.Problem)
		} else if c, err = pair.Parse(f.Chain, f.Key, k.c.Ports.Now()); err == nil {
			err = k.c.Ports.Audit(ctx, used(Files, c))
		}
	}
	settled := err == nil || f.Problem != "" // who reads them tells when they can be read
	f.Chain, f.Key = nil, nil
	k.mu.Lock()
	again := k.files.Problem != "" && k.files.Version == f.Version
	k.files, k.files.Problem = f, ""
	switch {
	case err != nil:
		if k.files.Problem = err.Error(); !again {
			k.c.Log.Error("the certificate files are refused, the last good ones stay", "err", err)
		}
	case f.Named:
		k.fromFile = &c
		k.c.Log.Info("the certificate files were read", "until", c.Leaf.NotAfter)
	default:
		k.fromFile = nil
	}
	k.mu.Unlock()
	k.wake()
	return settled
}

// used is the event before a certificate answers.
func used(s Source, c tls.Certificate) control.Event {
	return control.Event{Actor: "system", Action: "use certificate", Object: strings.Join(pair.Names(c.Leaf), " "), Outcome: "ok",
		Detail: map[string]string{"source": string(s), "sha256": cert.Fingerprint(c), "until": c.Leaf.NotAfter.UTC().Format(time.RFC3339)}}
}

func (k *Keeper) look(ctx context.Context) error {
	st, err := k.c.Ports.Status(ctx)
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.machine = machineOf(st)
	source := k.kept.Source
	if k.files.Named || k.damaged != nil {
		source = Self
	}
	k.mu.Unlock()
	switch source {
	case CA:
		err = k.renewLeaf(ctx)
	case ACME:
		err = k.renewOrder(ctx)
	}
	return errors.Join(err, k.tell(ctx))
}

func machineOf(st control.Status) machine {
	m := machine{names: []string{strings.ToLower(st.Name), strings.ToLower(st.Name) + ".local"}, trusted: st.Clock.Trusted, lists: st.Firewall.Lists, httpPort: st.HTTPPort}
	for _, n := range st.Names {
		m.names = append(m.names, strings.ToLower(n))
	}
	add := func(a netip.Addr) {
		a = a.Unmap().WithZone("")
		if a.IsValid() && !a.IsLinkLocalUnicast() && !slices.Contains(m.addresses, a) {
			m.addresses = append(m.addresses, a)
		}
	}
	if u, err := url.Parse(st.URL); err == nil {
		m.host = u.Hostname()
		if a, err := netip.ParseAddr(m.host); err == nil {
			add(a)
		} else if m.host != "" && !slices.Contains(m.names, m.host) {
			m.names = append(m.names, m.host)
		}
	}
	for _, l := range st.Links {
		for _, p := range l.Addresses {
			add(p.Addr())
		}
	}
	slices.SortFunc(m.addresses, netip.Addr.Compare)
	return m
}

// tell reports what answers at the printed address, and the names that are the
// box's by its certificate.
func (k *Keeper) tell(ctx context.Context) error {
	k.mu.Lock()
	c := *k.pick(k.machine.host, netip.Addr{}) // a name or an address, as a browser that opens it has it checked
	var names []string
	if own, _ := k.current(); own != nil {
		names = pair.Names(own.Leaf)
	}
	said := cert.Fingerprint(c) + " " + strings.Join(names, " ")
	again := said == k.shown
	k.mu.Unlock()
	if again {
		return nil
	}
	if err := k.c.Ports.Shown(ctx, c, names); err != nil {
		return fmt.Errorf("saying which certificate is shown: %w", err)
	}
	k.mu.Lock()
	k.shown = said
	k.mu.Unlock()
	return nil
}

// renewLeaf keeps the leaf of the own CA right: in time, and for the names and
// addresses that the box has now.
func (k *Keeper) renewLeaf(ctx context.Context) error {
	k.acting.Lock()
	defer k.acting.Unlock()
	now := k.c.Ports.Now()
	m, _ := k.seen()
	// A leaf with a wrong time in it helps nobody; View says that it is postponed.
	if k.kept.Source != CA || !m.trusted || !k.now && (k.resting(now) || k.leafGood(now, m)) {
		return nil
	}
	k.want(false, false)
	err := k.writable()
	var c tls.Certificate
	if err == nil {
		c, err = k.root.Issue(m.names, m.addresses, now)
	}
	if err == nil {
		err = k.use(ctx, CA, c, func(q *kept, b []byte) { q.Leaf = b })
	}
	if err != nil {
		return k.failed(CA, err, m)
	}
	return nil
}

// writable says whether what is got now can be kept. Without it each try would
// cost an order, and entries about a certificate that never answers. The caller
// holds acting.
func (k *Keeper) writable() error { return k.change(func(*kept) {}) }

// use has a certificate that was got answer: the entry first, then the file. One
// that cannot be kept does not answer, and the audit log says that too. The
// caller holds acting.
func (k *Keeper) use(ctx context.Context, s Source, c tls.Certificate, put func(*kept, []byte)) error {
	b, err := pair.Encode(c)
	if err != nil {
		return err
	}
	e := used(s, c)
	if err := k.c.Ports.Audit(ctx, e); err != nil {
		return err
	}
	err = k.change(func(q *kept) {
		put(q, b)
		q.Trouble = Trouble{}
		q.note(k.c.Ports.Now(), "issued", s, "for "+strings.Join(pair.Names(c.Leaf), ", ")+", until "+stamp(c.Leaf.NotAfter))
	})
	if err != nil {
		e.Outcome = "failed"
		err = errors.Join(err, k.c.Ports.Audit(ctx, e))
	}
	return err
}

// resting says whether the pause after a failure lasts. A pause that is longer
// than any comes from a clock that was wrong.
func (k *Keeper) resting(now time.Time) bool {
	next := k.kept.Trouble.Next
	return now.Before(next) && next.Sub(now) <= maxPause
}

func (k *Keeper) leafGood(now time.Time, m machine) bool {
	if k.chosen == nil {
		return false
	}
	l := k.chosen.Leaf
	if now.Before(l.NotBefore) || now.After(due(l)) {
		return false
	}
	for _, n := range m.names {
		if len(k.root.Uncovered([]string{n}, nil)) == 0 && l.VerifyHostname(n) != nil {
			return false
		}
	}
	for _, a := range m.addresses {
		if len(k.root.Uncovered(nil, []netip.Addr{a})) == 0 && l.VerifyHostname(a.String()) != nil {
			return false
		}
	}
	return true
}

// failed keeps what went wrong. The pause holds whether it can be written or not:
// whatever keeps the file from being written is there at the next look too. The
// caller holds acting.
func (k *Keeper) failed(s Source, err error, m machine) error {
	now := k.c.Ports.Now()
	text, pause := err.Error(), pauses[min(k.kept.Trouble.Failures, len(pauses)-1)]
	var f *order.Failure
	if errors.As(err, &f) {
		text += hint(f, k.kept.ACME.Challenge, m)
		pause = min(max(pause, f.Wait), maxPause)
	}
	k.c.Log.Warn("a certificate was not got", "source", s, "err", err)
	k.want(false, false)
	k.mu.Lock()
	k.kept.Trouble = Trouble{Text: text, At: now.UTC().Truncate(time.Second), Failures: k.kept.Trouble.Failures + 1, Next: now.Add(pause).UTC().Truncate(time.Second)}
	k.kept.note(now, "failed", s, text)
	k.mu.Unlock()
	return k.writable()
}

// hint says what may be in the way of the server.
func hint(f *order.Failure, challenge string, m machine) string {
	if !f.Unreached {
		return ""
	}
	port := "80"
	if challenge == order.TLSALPN01 {
		port = "443"
	}
	closed := fmt.Sprintf(". The ACME server could not reach port %s of %s", port, f.Name)
	switch {
	case m.lists:
		return closed + ": allowlists are on, and drop its packets like those of every address that is in no list. " +
			"With both challenges the server comes from outside, so neither gets through: put its addresses into a list if they are known, " +
			"switch the lists off while a certificate is renewed, or use the own CA or a brought certificate"
	case port == "80" && m.httpPort != 80:
		return closed + fmt.Sprintf(": this program listens on %d, so port 80 has to be forwarded to it; or use tls-alpn-01", m.httpPort)
	}
	return closed + ": look at the name's address in the DNS, and at routers and firewalls on the way"
}

// renewOrder gets a certificate from the ACME server when it is time.
func (k *Keeper) renewOrder(ctx context.Context) error {
	settings, c, err := k.beginOrder()
	if err != nil || settings == nil {
		return err
	}
	err = k.c.Ports.Audit(ctx, control.Event{Actor: "system", Action: "order certificate", Object: strings.Join(settings.Names, " "), Detail: map[string]string{"directory": settings.Directory, "challenge": settings.Challenge}})
	var got tls.Certificate
	if err == nil {
		got, err = order.Obtain(ctx, c)
	}
	k.acting.Lock()
	defer k.acting.Unlock()
	m, _ := k.seen()
	k.want(false, false)
	switch {
	case ctx.Err() != nil:
		return ctx.Err() // the program ends: nobody's failure
	case k.kept.Source != ACME || !slices.Equal(k.kept.ACME.Names, settings.Names) || k.kept.ACME.Directory != settings.Directory:
		return nil // the owner chose otherwise meanwhile
	case err == nil:
		err = k.use(ctx, ACME, got, func(q *kept, b []byte) { q.Ordered = b })
	}
	if err != nil {
		return k.failed(ACME, err, m)
	}
	return nil
}

// beginOrder says what is to be ordered now; nil: nothing.
func (k *Keeper) beginOrder() (*ACMESettings, order.Config, error) {
	k.acting.Lock()
	defer k.acting.Unlock()
	m, _ := k.seen()
	if k.kept.Source != ACME || !m.trusted || k.busy || !k.orderDue(k.c.Ports.Now()) {
		return nil, order.Config{}, nil
	}
	settings := k.kept.ACME
	c, err := k.config(settings)
	if err == nil {
		err = k.writable()
	}
	if err != nil {
		return nil, c, k.failed(ACME, err, m)
	}
	k.want(false, true)
	return &settings, c, nil
}

func (k *Keeper) orderDue(now time.Time) bool {
	switch {
	case k.now:
		return true
	case k.resting(now):
		return false
	case k.chosen == nil || now.After(due(k.chosen.Leaf)) || now.Before(k.chosen.Leaf.NotBefore):
		return true
	}
	return slices.ContainsFunc(k.kept.ACME.Names, func(n string) bool { return k.chosen.Leaf.VerifyHostname(n) != nil })
}

func parseAccount(b []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(b)
	s, ok := key.(crypto.Signer)
	if err != nil || !ok {
		return nil, errors.New("the key of the ACME account is malformed: choose the source anew")
	}
	return s, nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }
