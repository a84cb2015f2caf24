package consoletest

import (
	"context"

	"gatehouse/appliance/control"
)

func (b *Box) handleCertificates(s *control.Server) {
	control.Handle(s, control.OpChallengePut, func(_ context.Context, _ control.Role, q control.Challenge) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.acme == nil {
			b.acme = make(map[string]string)
		}
		b.acme[q.Token] = q.Text
		return control.None{}, nil
	})
	control.Handle(s, control.OpChallengeDrop, func(_ context.Context, _ control.Role, q control.ChallengeToken) (control.None, error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.acme, q.Token)
		return control.None{}, nil
	})
	// There are no files here: the question is answered when the asker goes.
	control.Handle(s, control.OpCertificateFiles, func(ctx context.Context, _ control.Role, _ control.CertificateFilesSeen) (control.CertificateFiles, error) {
		<-ctx.Done()
		return control.CertificateFiles{}, ctx.Err()
	})
}

// Challenge is what port 80 would answer to an ACME server's token.
func (b *Box) Challenge(token string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acme[token]
}
