package broker

import (
	"bytes"
	"context"
	"testing"

	"gatehouse/appliance/broker/archive"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// begun is a session of which the first of two parts has come.
func (d *desk) begun() (a *agent, id session.ID, parts [2]attend.Chunk) {
	d.Helper()
	a = d.attend()
	g, err := d.Ask(d.Context(), owner, api.Ask{Target: "nas", Transport: session.TLS, Key: session.Key{1}})
	if err != nil {
		d.Fatal(err)
	}
	a.hear()
	parts[0] = attend.Chunk{Session: g.Session, Bytes: bytes.Repeat([]byte("1"), 100)}
	parts[1] = attend.Chunk{Session: g.Session, At: 100, Bytes: bytes.Repeat([]byte("2"), 100), Last: true}
	if k := a.chunk(parts[0]); k.Size != 100 || k.Problem != "" || k.Removed {
		d.Fatalf("%+v", k)
	}
	d.must(d.End(d.Context(), owner, g.Session))
	a.hear()
	return a, g.Session, parts
}

func (a *agent) chunk(c attend.Chunk) attend.Kept {
	a.Helper()
	a.tell(attend.FromSite{Chunk: &c})
	k := a.hear().Kept
	if k == nil {
		a.Fatal("the hub does not answer a part of a recording")
	}
	return *k
}

// none checks that nothing is there of a recording that was removed.
func (d *desk) none(id session.ID) {
	d.Helper()
	if list, err := d.Recordings(d.Context()); err != nil || len(list) != 0 {
		d.Errorf("there are %+v, %v", list, err)
	}
	if s, err := d.Sessions(d.Context(), owner); err != nil || s[0].ID != id || s[0].Recorded != 0 {
		d.Errorf("the session is listed as %+v, %v", s, err)
	}
}

// TestSES9_RemovedDoesNotComeBack: the site still hands over what the audit log
// says was removed, in the middle and from the beginning; it hears that it is gone.
func TestSES9_RemovedDoesNotComeBack(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingForced))
	a, id, parts := d.begun()
	d.must(d.RemoveRecording(t.Context(), owner, id))
	told := func(when string) {
		t.Helper()
		for i, c := range []attend.Chunk{parts[1], parts[0], {Session: id, At: 200, Last: true}, {Session: id, Last: true}} {
			if k := a.chunk(c); !k.Removed || k.Size != 0 || k.Problem != "" {
				t.Errorf("%s, part %d: %+v", when, i, k)
			}
		}
		d.none(id)
	}
	told("removed")
	d.open()
	a = d.attend()
	told("and the console was started anew")
	d.free = archive.LeaveFree
	told("and the disk is full")
}

// TestSES9_RemovedWhileAPartComes: that part is not kept either.
func TestSES9_RemovedWhileAPartComes(t *testing.T) {
	d := newDesk(t)
	d.target(nas(session.RecordingForced))
	a, id, parts := d.begun()
	asked := false
	d.meanwhile = func() { // the archive asks for room, with the file open
		if !asked {
			asked = true
			d.must(d.RemoveRecording(context.WithoutCancel(t.Context()), owner, id))
		}
	}
	if k := a.chunk(parts[1]); !k.Removed || k.Size != 0 || !asked {
		t.Errorf("%+v", k)
	}
	d.none(id)
}
