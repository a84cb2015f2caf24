package slot

import (
	"errors"
	"strings"
	"testing"
	"time"

	"gatehouse/firmware"
)

var now = time.Date(2026, 11, 29, 9, 30, 0, 0, time.UTC)

func system(minor uint32) System {
	return System{Version: firmware.Version{Major: 1, Minor: minor}, Epoch: 1, Size: 20 << 20, SHA256: Digest{byte(minor), 0xff}}
}

// updated is a box that runs version 1.1.0 from A and is about to start 1.2.0 in B.
func updated(t *testing.T) Record {
	t.Helper()
	a, b := system(1), system(2)
	r, err := Record{}.With(A, &a).With(B, &b).Begin(B, false, now)
	if err != nil {
		t.Fatal(err)
	}
	return kept(t, r)
}

// kept is a record as the next start reads it: through META.
func kept(t *testing.T, r Record) Record {
	t.Helper()
	m := newMeta()
	if err := WriteRecord(m, r); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecord(m)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// trying is the record once the trial's own PID 1 has judged its start.
func trying(t *testing.T, r Record) Record {
	t.Helper()
	r, a := Judge(r, Evidence{Default: A, Running: B, Selected: B}, now)
	if a.Do != Try || a.Slot != B || a.Ended != nil {
		t.Fatalf("the first start of the trial is judged as %+v", a)
	}
	return kept(t, r)
}

// The old system is back.
var back = Evidence{Default: A, Running: A, Selected: A}

func with(e Evidence, change func(e *Evidence)) Evidence {
	change(&e)
	return e
}

// The ends of issue 6's sick images, and of healthy ones: how the trial went, what
// the next start knows, and what comes of it.
func TestBOX4_EveryEndOfATrial(t *testing.T) {
	early := func(r Record) Record { return r } // its PID 1 never came to Judge
	gate := func(reason string) func(Record) Record {
		return func(r Record) Record { return trying(t, r).Ending(reason, true) }
	}
	late := func(r Record) Record { return trying(t, r) }
	for _, c := range []struct {
		name      string
		trial     func(Record) Record
		next      Evidence
		explained bool
		reason    string
	}{
		{"PID 1 exits at once", early,
			with(back, func(e *Evidence) { e.Panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100" }), true, "Attempted to kill init"},
		{"PID 1 exits later", late,
			with(back, func(e *Evidence) { e.Panic = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000200" }), true, "Attempted to kill init"},
		{"kernel panic before PID 1", early,
			with(back, func(e *Evidence) { e.Panic = "Kernel panic - not syncing: VFS: Unable to mount root fs" }), true, "Unable to mount"},
		{"kernel panic in a trial", late,
			with(back, func(e *Evidence) { e.Panic = "BUG: kernel NULL pointer dereference\nand more" }), true, "NULL pointer dereference and more"},
		{"hang, ended by the watchdog", late, with(back, func(e *Evidence) { e.Watchdog = true }), true, "watchdog"},
		{"early hang, ended by a watchdog of the firmware", early, with(back, func(e *Evidence) { e.Watchdog = true }), true, "watchdog"},
		{"hang without a watchdog, power cycled", late, back, false, "left no reason"},
		{"early hang without a watchdog, power cycled", early, back, false, "before its first program"},
		{"power plug pulled while it was loaded", early, back, false, "power was cut"},
		{"power plug pulled in the trial", late, back, false, "power was cut"},
		{"no 443", gate("port 443 does not answer on 192.0.2.7"), back, true, "port 443 does not answer"},
		{"no lease", gate("no lease on eth0, and there was one before"), back, true, "no lease"},
		{"no carrier", gate("eth0 has no link, and had one before"), back, true, "no link"},
		{"crash loop of roles", gate("the console was restarted 5 times in 60 s"), back, true, "restarted 5 times"},
		{"vault unreadable", gate("the TPM does not open the data: PCR 7 differs"), back, true, "does not open"},
		{"gate out of time", gate("not all was good after 10 minutes"), back, true, "10 minutes"},
		{"the gate's word counts, whatever the restart leaves", gate("no lease"),
			with(back, func(e *Evidence) { e.Panic, e.Watchdog = "panic while restarting", true }), true, "no lease"},
		{"firmware refuses to load it", early, Evidence{Default: A, Running: A, Selected: B}, true, "firmware would not load it"},
		{"firmware refuses what is damaged in the slot", early,
			Evidence{Default: A, Running: A, Selected: B, Damaged: true}, false, "damaged on the disk"},
		{"the boot loader was passed by", early, Evidence{Default: A, Running: A, OneShot: true}, false, "boot loader was not started"},
		{"a person restarts the box", func(r Record) Record { return trying(t, r).Ending("ada restarted the box", false) }, back, false, "ada restarted"},
		{"a person restarts it after the gate's word", func(r Record) Record {
			return trying(t, r).Ending("no lease", true).Ending("ada restarted the box", false)
		}, back, true, "no lease"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, a := Judge(kept(t, c.trial(updated(t))), c.next, now)
			r = kept(t, r)
			v, ok := r.Last()
			if r.Trial != nil || !ok || a.Ended == nil {
				t.Fatalf("the trial goes on: %+v, %+v", r, a)
			}
			if v.Kept || v.Explained != c.explained || v.Tries != 1 || !strings.Contains(v.Reason, c.reason) || v.System != system(2) {
				t.Errorf("verdict %+v, want explained %v and %q", v, c.explained, c.reason)
			}
			if a.Do != Proceed || !strings.Contains(a.Reason, c.reason) {
				t.Errorf("the old system is told %+v", a)
			}
			err := r.May(system(2).SHA256)
			if refused := new(Refused); errors.As(err, &refused) != c.explained {
				t.Errorf("may it be tried again: %v", err)
			}
			if err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("the refusal does not say why: %v", err)
			}
			if r.May(system(3).SHA256) != nil {
				t.Error("another version is refused, too")
			}
			if (r.In(B) == nil) != c.next.Damaged {
				t.Errorf("slot B holds %+v", r.In(B))
			}
			if c.next.Damaged {
				return
			}
			if _, err := r.Begin(B, false, now); (err != nil) != c.explained {
				t.Errorf("beginning again: %v", err)
			}
			asked, err := r.Begin(B, true, now)
			if err != nil || asked.Trial.Tries != 2 {
				t.Errorf("asked for once more: %+v, %v", asked.Trial, err)
			}
		})
	}
}

// Nothing known, three times: a person who pulls the plug costs a healthy version
// one of three, and it is offered again after each.
func TestBOX4_UnexplainedEndsCostOneOfThree(t *testing.T) {
	b := system(2)
	r := Record{}.With(B, &b)
	for try := 1; try <= MaxTries; try++ {
		var err error
		if r, err = r.Begin(B, false, now); err != nil || r.Trial.Tries != try {
			t.Fatalf("try %d: %+v, %v", try, r.Trial, err)
		}
		r, _ = Judge(trying(t, kept(t, r)), back, now)
		r = kept(t, r)
	}
	var refused *Refused
	if _, err := r.Begin(B, false, now); !errors.As(err, &refused) || refused.Verdict.Tries != MaxTries || !strings.Contains(err.Error(), "3 times") {
		t.Errorf("a fourth time: %v", err)
	}
	// Asked for, it gets one more, and proves itself: all is forgotten.
	r, err := r.Begin(B, true, now)
	if err != nil {
		t.Fatal(err)
	}
	r = kept(t, trying(t, r).Keep(now))
	if v, _ := r.Last(); !v.Kept || v.Tries != 4 || r.May(b.SHA256) != nil || len(r.Verdicts) != 1 {
		t.Errorf("after it was kept: %+v", r)
	}
	if r, err = r.Begin(B, false, now); err != nil || r.Trial.Tries != 1 {
		t.Errorf("tried anew: %+v, %v", r.Trial, err)
	}
}

func TestBOX4_ExplainedIsNeverTriedUnlessAsked(t *testing.T) {
	r := trying(t, updated(t)).Ending("no lease", true)
	r, _ = Judge(kept(t, r), back, now)
	asked, err := r.Begin(B, true, now)
	if err != nil {
		t.Fatal(err)
	}
	// The second end is one that nobody knows the reason of: it is the last word, but
	// the two together are no third try for free.
	asked, _ = Judge(trying(t, asked), back, now)
	if v, _ := asked.Verdict(system(2).SHA256); v.Explained || v.Tries != 2 {
		t.Errorf("verdict %+v", v)
	}
}

func TestBOX4_WhatAStartDoes(t *testing.T) {
	first := func(*testing.T) Record { return Record{} }
	begun := updated
	tried := func(t *testing.T) Record { return trying(t, updated(t)) }
	condemned := func(t *testing.T) Record { return tried(t).Ending("no lease", true) }
	worn := func(t *testing.T) Record {
		r := tried(t)
		r.Trial.Tries = MaxTries
		return r
	}
	for _, c := range []struct {
		name   string
		record func(*testing.T) Record
		e      Evidence
		do     Do
		slot   Slot
		trial  bool // goes on
		ended  bool
	}{
		{"new box", first, back, Proceed, 0, false, false},
		{"box that was started without a loader", first, Evidence{Default: A, Running: A}, Proceed, 0, false, false},
		{"nobody can tell what runs", first, Evidence{Default: A}, Proceed, 0, false, false},
		{"nobody can tell what runs, in a trial", tried, Evidence{Default: A, Panic: "x"}, Proceed, 0, true, false},
		{"loader.conf is broken", first, Evidence{Running: B, Selected: B}, Rewrite, B, false, false},
		{"the firmware would not load what loader.conf names", first, Evidence{Default: A, Running: B, Selected: A}, Mend, A, false, false},
		{"the loader was passed by, to the other slot", first, Evidence{Default: B, Running: A}, Mend, B, false, false},
		{"the loader found only the other slot, or a key was pressed", first, Evidence{Default: A, Running: B, Selected: B}, Mend, A, false, false},
		{"first start of a trial", begun, Evidence{Default: A, Running: B, Selected: B}, Try, B, true, false},
		{"a panic of the system before is not the trial's", begun, Evidence{Default: A, Running: B, Selected: B, Panic: "x", Watchdog: true}, Try, B, true, false},
		{"kept, and cut off", tried, Evidence{Default: B, Running: B, Selected: B}, Finish, B, true, false},
		{"kept, cut off, and started without its record of having begun", begun, Evidence{Default: B, Running: B, Selected: B}, Finish, B, true, false},
		{"started a second time, and it may", tried, Evidence{Default: A, Running: B, Selected: B}, Try, B, true, false},
		{"started a second time after the gate's word", condemned, Evidence{Default: A, Running: B, Selected: B}, Return, A, false, true},
		{"started a second time after a panic", tried, Evidence{Default: A, Running: B, Selected: B, Panic: "x"}, Return, A, false, true},
		{"started once too often", worn, Evidence{Default: A, Running: B, Selected: B}, Return, A, false, true},
		{"bad, and the only one that starts", condemned, Evidence{Default: A, Running: B, Selected: A}, Mend, A, false, true},
		{"bad, loader.conf broken", condemned, Evidence{Running: A, Selected: A}, Rewrite, A, false, true},
		{"kept, cut off, and then damaged", tried, Evidence{Default: B, Running: A, Selected: B, Damaged: true}, Mend, B, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := kept(t, c.record(t))
			r, a := Judge(before, c.e, now)
			r = kept(t, r)
			if a.Do != c.do || a.Slot != c.slot || (r.Trial != nil) != c.trial || (a.Ended != nil) != c.ended {
				t.Errorf("action %+v, trial %+v", a, r.Trial)
			}
			if a.Do != Proceed && a.Do != Try && a.Reason == "" {
				t.Error("it does not say why")
			}
			if a.Do == Mend && a.Refused != (c.e.Selected == c.e.Default) {
				t.Errorf("refused by the firmware: %v", a.Refused)
			}
			if c.do == Return {
				// It does not go round: what comes next has no trial any more.
				if _, again := Judge(r, c.e, now); again.Do == Return {
					t.Error("it restarts for ever")
				}
			}
		})
	}
}

// A trial that is started again and again by nobody's wish ends.
func TestBOX4_TrialsEnd(t *testing.T) {
	r := updated(t)
	for n := 1; ; n++ {
		var a Action
		r, a = Judge(r, Evidence{Default: A, Running: B, Selected: B}, now)
		if a.Do == Return {
			if v, _ := r.Last(); v.Tries != MaxTries {
				t.Errorf("verdict %+v", v)
			}
			break
		}
		if n > MaxTries {
			t.Fatalf("start %d is judged as %+v", n, a)
		}
	}
}

// Whatever a thief writes into META, Judge never has loader.conf name a slot that
// does not run.
func TestBOX4_RecordNamesNothingThatDoesNotRun(t *testing.T) {
	slots := []Slot{0, A, B}
	a, b := system(1), system(2)
	for _, def := range slots {
		for _, run := range slots {
			for _, sel := range slots {
				for bits := range 128 {
					bit := func(n int) bool { return bits>>n&1 == 1 }
					r := Record{}.With(A, &a).With(B, &b)
					if bit(0) {
						trial := A
						if bit(1) {
							trial = B
						}
						r.Trial = &Trial{Slot: trial, System: *r.In(trial), Tries: 1 + bits%4, Began: now, Started: bit(2)}
						if bit(3) {
							r.Trial.End = &End{Reason: "x", Explained: bit(4)}
						}
					}
					e := Evidence{Default: def, Running: run, Selected: sel, OneShot: bit(5), Damaged: bit(6)}
					got, act := Judge(r, e, now)
					switch act.Do {
					case Finish, Rewrite, Try:
						if act.Slot != run {
							t.Fatalf("%+v of %+v, %+v", act, r, e)
						}
					case Return, Mend:
						if act.Slot == run || run == 0 {
							t.Fatalf("%+v of %+v, %+v", act, r, e)
						}
					}
					if got.Trial != nil && r.Trial == nil {
						t.Fatal("a trial began by itself")
					}
				}
			}
		}
	}
}
