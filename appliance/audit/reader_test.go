package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestReaderRefusals(t *testing.T) {
	if _, err := (Reader{"/nonexistent"}).Read(Query{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read of no folder = %v", err)
	}
	if _, err := (Reader{"/nonexistent"}).WriteTo(&bytes.Buffer{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("WriteTo of no folder = %v", err)
	}
	p, err := Reader{t.TempDir()}.Read(Query{})
	if err != nil || p.Entries == nil || len(p.Entries) != 0 {
		t.Errorf("Read of an empty folder = %+v, %v", p, err)
	}
}

func TestReaderFilters(t *testing.T) {
	dir := t.TempDir()
	c := testConfig(newKey(t))
	c.SegmentSize = 3000
	w := open(t, dir, c)
	appendEvents(t, w, 0, 60)
	mustCheckpoint(t, w)
	all, err := Reader{dir}.Read(Query{Limit: MaxLimit})
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range all.Entries[1:] {
		if e.Sequence != all.Entries[i].Sequence-1 {
			t.Fatalf("entry %d comes after %d, want newest first without gaps", e.Sequence, all.Entries[i].Sequence)
		}
	}
	middle := all.Entries[len(all.Entries)/2]
	for name, q := range map[string]Query{
		"actor":  {Actor: "person1@example.org"},
		"action": {Action: "restart"},
		"text":   {Text: "THING 17"},
		"detail": {Text: "<&>"},
		"before": {Before: middle.Time},
		"after":  {After: middle.Time},
		"below":  {Below: middle.Sequence},
		"none":   {Actor: "person"},
	} {
		q.Limit = MaxLimit
		p, err := Reader{dir}.Read(q)
		if err != nil || p.More {
			t.Fatalf("%s: %v, more %v", name, err, p.More)
		}
		want := 0
		for _, e := range all.Entries {
			in := map[string]bool{
				"actor": e.Event.Actor == "person1@example.org", "action": e.Event.Action == "restart",
				"text": e.Event.Object == "thing 17", "detail": e.Event.Detail["a"] != "",
				"before": e.Sequence < middle.Sequence, "after": e.Sequence >= middle.Sequence, "below": e.Sequence < middle.Sequence,
			}[name]
			if in {
				want++
			}
		}
		if len(p.Entries) != want {
			t.Errorf("%s: %d entries, want %d", name, len(p.Entries), want)
		}
	}
	if all.Entries[0].Kind != KindCheckpoint || all.Entries[0].Event.Action != "sign a checkpoint" {
		t.Errorf("the newest entry is %+v, want the checkpoint told in words", all.Entries[0])
	}
}

func TestReaderPages(t *testing.T) {
	dir := t.TempDir()
	c := testConfig(newKey(t))
	c.SegmentSize = 2000
	w := open(t, dir, c)
	appendEvents(t, w, 0, 25)
	q := Query{Limit: 7}
	var seen []uint64
	for {
		p, err := Reader{dir}.Read(q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			seen = append(seen, e.Sequence)
		}
		if !p.More {
			break
		}
		q.Below = seen[len(seen)-1]
	}
	if head := w.Head().Sequence; uint64(len(seen)) != head || seen[0] != head || seen[len(seen)-1] != 1 {
		t.Errorf("paged through %d entries from %d to %d, want all %d", len(seen), seen[0], seen[len(seen)-1], head)
	}
}

func TestReaderLeavesOutTheLineBeingWritten(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, testConfig(newKey(t)))
	appendEvents(t, w, 0, 3)
	names, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, names[0]), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(`{"seq":5,"ti`); err != nil {
		t.Fatal(err)
	}
	p, err := Reader{dir}.Read(Query{})
	if err != nil || p.Damaged != 0 || p.Entries[0].Sequence != 4 {
		t.Errorf("Read = %+v, %v", p, err)
	}
	var b bytes.Buffer
	if _, err := (Reader{dir}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(&b, Trust{}); err != nil {
		t.Errorf("the copy is not whole: %v", err)
	}
	if !p.Entries[0].Time.After(testStart) || p.Entries[0].Time.Location() != time.UTC {
		t.Errorf("time %v", p.Entries[0].Time)
	}
}
