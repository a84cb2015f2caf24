package keeper

import (
	"context"
	"errors"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

// A host without a clock chip starts years before its certificate, and a disk is
// full for a while: files that were refused for that are judged again without
// anybody touching them.
func TestNET10_FilesRefusedForAPassingReasonAreJudgedAgain(t *testing.T) {
	for name, passing := range map[string]func(*rig) (end func()){
		"clock": func(r *rig) func() {
			r.ahead.Store(int64(-10 * 365 * 24 * time.Hour))
			return func() { r.ahead.Store(0) }
		},
		"audit log": func(r *rig) func() {
			set := func(err error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.noAudit = err
			}
			set(errors.New("the disk is full"))
			return func() { set(nil) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			end := passing(r)
			chain, key := keyAndChain(t, time.Now().Add(60*24*time.Hour), "gate.example.net")
			r.mu.Lock()
			r.named = control.CertificateFiles{Version: 1, Named: true, Chain: chain, Key: key}
			r.mu.Unlock()
			r.open()
			r.eventually("the refusal", func() bool { return r.View().Problem != "" })
			end()
			r.eventually("the certificate", func() bool { return r.View().Serving && !r.isIdentity("gate.example.net") })
			if v := r.View(); v.Problem != "" || r.did("use certificate") != 1 {
				t.Errorf("%d entries, %+v", r.did("use certificate"), v)
			}
		})
	}
}

// asked is how the monitor gives the files: at once where the version is
// another, else when the wait is over.
func (r *rig) asked(ctx context.Context, q control.CertificateFilesSeen) (control.CertificateFiles, error) {
	r.mu.Lock()
	f := r.named
	r.mu.Unlock()
	if f.Version == q.Version {
		<-ctx.Done()
		return control.CertificateFiles{}, ctx.Err()
	}
	return f, nil
}
