package console

import (
	"context"
	"crypto/tls"
	"slices"
	"time"

	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/control"
)

// settle is how long the gateway may take to know a challenge: it asks no more
// than twice a second.
const settle = time.Second

// openKeeper opens the certificates besides the identity. It cannot fail: what
// does not open is shown on its page.
func (s *console) openKeeper(identity tls.Certificate, key []byte) *keeper.Keeper {
	return keeper.Open(keeper.Config{Dir: s.env.State, Key: key, Identity: identity, Log: s.log, Ports: keeper.Ports{
		Status: s.status, Audit: s.audit, Shown: s.shows, Now: time.Now, Settle: settle,
		Put: func(ctx context.Context, q control.Challenge) error {
			_, err := control.OpChallengePut.Call(ctx, s.control, q)
			return err
		},
		Drop: func(ctx context.Context, q control.ChallengeToken) error {
			_, err := control.OpChallengeDrop.Call(ctx, s.control, q)
			return err
		},
		Files: func(ctx context.Context, q control.CertificateFilesSeen) (control.CertificateFiles, error) {
			return control.OpCertificateFiles.Call(ctx, s.control, q)
		},
	}})
}

// certificate is what the console block shows: the fingerprint of what a
// browser sees, and the words of the identity, which the tool checks.
func (s *console) certificate() control.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown
}

// shows follows a change of what browsers see.
func (s *console) shows(ctx context.Context, c tls.Certificate, names []string) error {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(s.names, n) })
	s.mu.Lock()
	changed := s.shown.SHA256 != cert.Fingerprint(c)
	s.shown.SHA256 = cert.Fingerprint(c)
	if !slices.Equal(names, s.extra) {
		s.extra = names
		s.guard()
	}
	s.mu.Unlock()
	if !changed {
		return nil
	}
	_, err := s.report(ctx, "")
	return err
}
