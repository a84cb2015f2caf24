package keeper

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/cert/keeper/pebbletest"
	"gatehouse/appliance/control"
)

// jam has no file take the place of the kept one, for root neither; the return
// value ends it.
func (r *rig) jam() func() {
	r.t.Helper()
	path := filepath.Join(r.dir, file)
	r.must(os.Rename(path, path+".old"))
	r.must(os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
	return func() {
		r.t.Helper()
		r.must(os.RemoveAll(path))
		r.must(os.Rename(path+".old", path))
	}
}

// What cannot be kept is a failure like any other: it is told, it pauses, and
// nothing is ordered or announced meanwhile.
func TestNET10_WhatCannotBeKeptIsNotOrderedAgainAndAgain(t *testing.T) {
	for name, begin := range map[string]func(*rig){
		"ca": func(r *rig) { r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record)) },
		"acme": func(r *rig) {
			r.order(pebbletest.Start(t, r.plain, r.tls, quarter), "http-01")
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			begin(r)
			r.eventually("a certificate", func() bool { return r.View().Serving && !r.View().Busy })
			orders, uses := r.did("order certificate"), r.did("use certificate")
			free := r.jam()
			r.ahead.Store(int64(61 * 24 * time.Hour))
			r.wake()
			r.eventually("the failure", func() bool { return r.View().Trouble.Failures == 1 })
			for range 3 {
				r.must(r.look(t.Context()))
			}
			v := r.View()
			if v.Trouble.Failures != 1 || v.Trouble.Next.Sub(v.Trouble.At) != 10*time.Minute || !strings.Contains(v.Trouble.Text, "keeping the certificates") || v.History[0].What != "failed" || v.Busy {
				t.Errorf("%+v", v)
			}
			if r.did("order certificate") != orders || r.did("use certificate") != uses {
				t.Error("one that cannot be kept was got")
			}
			// A person's wish is one try, too.
			r.must(r.Renew(r.record))
			r.eventually("the second failure", func() bool { return r.View().Trouble.Failures == 2 })
			r.must(r.look(t.Context()))
			if v := r.View(); v.Trouble.Failures != 2 || v.Busy {
				t.Errorf("%+v", v)
			}
			free()
			r.ahead.Add(int64(time.Hour))
			r.wake()
			r.eventually("the renewal", func() bool { return r.View().Serving && r.View().Trouble.Text == "" })
			if r.did("use certificate") != uses+1 {
				t.Error("it is not in the audit log once")
			}
		})
	}
}

// Who reads the audit log knows which certificates answered, even where the
// file could not be written just then.
func TestNET10_TheAuditLogSaysThatACertificateWasNotKept(t *testing.T) {
	r := newRig(t)
	r.must(r.Choose(context.Background(), Choice{Source: CA}, r.record))
	r.eventually("a leaf", func() bool { return r.View().Serving })
	before := r.sees("")
	r.mu.Lock()
	r.heard = func(e control.Event) {
		if r.heard = nil; e.Action == "use certificate" {
			r.jam()
		}
	}
	r.mu.Unlock()
	r.ahead.Store(int64(21 * 24 * time.Hour))
	r.wake()
	r.eventually("the failure", func() bool { return r.View().Trouble.Failures == 1 })
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.events[len(r.events)-2:]
	if last[0].Outcome != "ok" || last[1].Action != "use certificate" || last[1].Outcome != "failed" || last[0].Detail["sha256"] != last[1].Detail["sha256"] {
		t.Errorf("%+v", last)
	}
	if !bytes.Equal(r.sees("").Raw, before.Raw) {
		t.Error("a leaf that is not kept answers")
	}
}
