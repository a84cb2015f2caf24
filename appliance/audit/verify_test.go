package audit

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// sample is a log of 100 events with a checkpoint every 20, as one stream.
func sample(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	dir := t.TempDir()
	c := testConfig(key)
	c.SegmentSize = 8000
	w := open(t, dir, c)
	for n := range 5 {
		appendEvents(t, w, n*20, n*20+20)
		mustCheckpoint(t, w)
	}
	var b bytes.Buffer
	if _, err := (Reader{dir}).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func lines(b []byte) [][]byte { return slices.Collect(bytes.Lines(b)) }

func join(l [][]byte) []byte { return bytes.Join(l, nil) }

// change makes one random edit, deletion, reordering or truncation of lines.
func change(r *mathrand.Rand, log []byte) (string, []byte) {
	l := slices.Clone(lines(log))
	i := r.IntN(len(l))
	switch r.IntN(9) {
	case 0:
		b := bytes.Clone(log)
		at := r.IntN(len(b))
		b[at] ^= byte(1 + r.IntN(255))
		return fmt.Sprintf("byte %d changed", at), b
	case 1:
		at := r.IntN(len(log))
		return fmt.Sprintf("byte %d removed", at), slices.Delete(bytes.Clone(log), at, at+1)
	case 2:
		at := r.IntN(len(log))
		return fmt.Sprintf("byte put in at %d", at), slices.Insert(bytes.Clone(log), at, byte(r.IntN(256)))
	case 3:
		i = r.IntN(len(l) - 1) // the last line is truncation's
		n := 1 + r.IntN(min(5, len(l)-1-i))
		return fmt.Sprintf("lines %d to %d deleted", i, i+n), join(slices.Delete(l, i, i+n))
	case 4:
		j := (i + 1 + r.IntN(len(l)-1)) % len(l)
		l[i], l[j] = l[j], l[i]
		return fmt.Sprintf("lines %d and %d swapped", i, j), join(l)
	case 5:
		j := r.IntN(len(l) + 1)
		return fmt.Sprintf("line %d repeated at %d", i, j), join(slices.Insert(slices.Clone(l), j, l[i]))
	case 6:
		at := r.IntN(len(log))
		return fmt.Sprintf("cut at byte %d", at), bytes.Clone(log[:at])
	case 7:
		i = r.IntN(len(l))
		return fmt.Sprintf("cut at line %d", i), join(l[:i])
	default:
		l[i] = bytes.Replace(l[i], []byte(`","`), []byte(`", "`), 1)
		return fmt.Sprintf("line %d spelled otherwise", i), join(l)
	}
}

func TestAUD2_EveryChangeIsFound(t *testing.T) {
	key := newKey(t)
	log := sample(t, key)
	r, err := Verify(bytes.NewReader(log), Trust{Key: &key.PublicKey})
	if err != nil || !r.Whole {
		t.Fatal(err)
	}
	// The verifier wrote down the newest checkpoint; without that, a log cut
	// at a line is a whole log that is older.
	trust := Trust{Key: &key.PublicKey, Sequence: r.Last, Hash: r.Hash}
	count := 1000
	if os.Getenv("GATEHOUSE_SOAK") != "" {
		count = 10000
	} else if testing.Short() {
		count = 200
	}
	seed := uint64(testStart.Unix())
	random := mathrand.New(mathrand.NewPCG(seed, 1))
	for n := range count {
		what, changed := change(random, log)
		if bytes.Equal(changed, log) {
			continue
		}
		r, err := Verify(bytes.NewReader(changed), trust)
		var broken *BrokenError
		if !errors.As(err, &broken) || r.Whole || r.Sentence == "" {
			t.Fatalf("change %d, %s: not found: %+v, %v", n, what, r, err)
		}
	}
}

// forge makes a change and chains everything after it anew, as somebody can
// who knows the format but not the key.
func forge(t *testing.T, log []byte, at int, edit func([]record) []record) []byte {
	t.Helper()
	var records []record
	for _, l := range lines(log) {
		r, err := parse(bytes.TrimSuffix(l, []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	records = append(records[:at:at], edit(records[at:])...)
	var out []byte
	for i := range records {
		r := &records[i]
		if i > 0 {
			r.Sequence, r.Prev = records[i-1].Sequence+1, *records[i-1].Hash
		}
		if r.Kind == KindCheckpoint { // what he would like it to say
			c := *r.Checkpoint
			c.Covers = r.Sequence - 1
			c.Head = *records[i-1].Hash
			r.Checkpoint = &c
		}
		line, err := r.seal()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, line...)
	}
	return out
}

func TestAUD2_ForgedChainIsFound(t *testing.T) {
	key := newKey(t)
	log := sample(t, key)
	n := len(lines(log))
	edits := map[string]func([]record) []record{
		"edit": func(r []record) []record {
			r[0].Kind, r[0].Event, r[0].Checkpoint, r[0].Header = KindEvent, ptr(event(999)), nil, nil
			return r
		},
		"delete": func(r []record) []record { return r[1:] },
		"insert": func(r []record) []record {
			return append([]record{{Kind: KindEvent, Event: ptr(event(5)), Time: r[0].Time}}, r...)
		},
		"reorder": func(r []record) []record { r[0], r[1] = r[1], r[0]; return r },
	}
	for name, edit := range edits {
		for at := 1; at < n-2; at += 7 {
			forged := forge(t, log, at, edit)
			if _, err := Verify(bytes.NewReader(forged), Trust{Key: &key.PublicKey}); err == nil {
				t.Errorf("%s at line %d, chained anew: not found", name, at)
			}
		}
	}
	// The same without any checkpoint left: nothing vouches for it.
	bare := forge(t, log, 1, func(r []record) []record {
		return slices.DeleteFunc(r, func(r record) bool { return r.Kind == KindCheckpoint })
	})
	if _, err := Verify(bytes.NewReader(bare), Trust{Key: &key.PublicKey}); err == nil {
		t.Error("a log stripped of its checkpoints is accepted under the trusted key")
	}
	r, err := Verify(bytes.NewReader(bare), Trust{})
	if err != nil || r.Signed != 0 || !strings.Contains(r.Sentence, "no checkpoint signs them") {
		t.Errorf("without a key: %+v, %v", r, err)
	}
}

// An entry sealed anew on its own, with all after it left as they were, is
// found by the link alone, also where no checkpoint signs yet.
func TestAUD2_LinkIsChecked(t *testing.T) {
	l := lines(sample(t, newKey(t)))
	l = l[:15] // before the first checkpoint
	for i := 1; i < len(l)-1; i++ {
		r, err := parse(bytes.TrimSuffix(l[i], []byte("\n")))
		if err != nil {
			t.Fatal(err)
		}
		e := *r.Event
		e.Actor = "nobody@example.org"
		r.Event = &e
		changed := slices.Clone(l)
		if changed[i], err = r.seal(); err != nil {
			t.Fatal(err)
		}
		report, err := Verify(bytes.NewReader(join(changed)), Trust{})
		if err == nil || !strings.Contains(report.Sentence, fmt.Sprintf("entry %d does not continue entry %d", i+2, i+1)) {
			t.Errorf("entry %d: %q, %v", i+1, report.Sentence, err)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// A forger who puts in his own key everywhere is found by whoever has the real one.
func TestAUD2_ForgedKeyIsFound(t *testing.T) {
	key, his := newKey(t), newKey(t)
	log := sample(t, his)
	if _, err := Verify(bytes.NewReader(log), Trust{Key: &key.PublicKey}); err == nil {
		t.Error("a log under another key is accepted")
	}
	r, err := Verify(bytes.NewReader(log), Trust{})
	if err != nil || r.KeyTrusted || !strings.Contains(r.Sentence, r.Key) {
		t.Errorf("without a key the report must name the log's own: %+v, %v", r, err)
	}
}

func TestAUD2_CheckpointOfAnotherLogIsFound(t *testing.T) {
	key := newKey(t)
	a, b := sample(t, key), sample(t, key)
	var signature []byte
	for _, l := range lines(b) {
		if r, err := parse(bytes.TrimSuffix(l, []byte("\n"))); err == nil && r.Kind == KindCheckpoint {
			signature = r.Checkpoint.Signature
			break
		}
	}
	done := false
	forged := forge(t, a, 1, func(r []record) []record {
		for i := range r {
			if r[i].Kind == KindCheckpoint && !done {
				c := *r[i].Checkpoint
				c.Signature = signature
				r[i].Checkpoint, done = &c, true
			}
		}
		return r
	})
	if _, err := Verify(bytes.NewReader(forged), Trust{}); err == nil || !done {
		t.Error("a checkpoint of another log is accepted")
	}
}

func TestAUD2_Truncation(t *testing.T) {
	key := newKey(t)
	l := lines(sample(t, key))
	r, err := Verify(bytes.NewReader(join(l)), Trust{})
	if err != nil {
		t.Fatal(err)
	}
	known := Trust{Key: &key.PublicKey, Sequence: r.Last, Hash: r.Hash}
	for cut := range l {
		r, err := Verify(bytes.NewReader(join(l[:cut])), known)
		if err == nil {
			t.Fatalf("cut to %d lines: not found", cut)
		}
		if cut > 0 && !strings.Contains(r.Sentence, fmt.Sprintf("ends with entry %d", cut)) && r.Signed != 0 {
			t.Errorf("cut to %d lines: %s", cut, r.Sentence)
		}
	}
	for cut := 1; cut < len(l); cut += 9 {
		if _, err := Verify(bytes.NewReader(join(l[cut:])), Trust{}); err == nil {
			t.Errorf("%d lines missing at the beginning: not found", cut)
		}
	}
}

func TestVerifyRefusals(t *testing.T) {
	key := newKey(t)
	log := sample(t, key)
	r, err := Verify(bytes.NewReader(log), Trust{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		log   []byte
		trust Trust
		want  string
	}{
		"nothing":        {nil, Trust{}, "no audit log here"},
		"an empty line":  {[]byte("\n"), Trust{}, "not an entry"},
		"long line":      {bytes.Repeat([]byte("x"), MaxLine+1), Trust{}, "longer than"},
		"two logs":       {append(bytes.Clone(log), sample(t, key)...), Trust{}, "comes after"},
		"another head":   {log, Trust{Sequence: r.Last, Hash: strings.Repeat("0", 64)}, "not the one that was known"},
		"no newline":     {log[:len(log)-1], Trust{}, "cut off"},
		"carriage":       {bytes.ReplaceAll(log, []byte("\n"), []byte("\r\n")), Trust{}, "spelling"},
		"part and known": {join(lines(log)[:1]), Trust{Part: true, Sequence: 9, Hash: r.Hash}, "was cut"},
	} {
		r, err := Verify(bytes.NewReader(c.log), c.trust)
		if err == nil || !strings.Contains(r.Sentence, c.want) || r.Whole {
			t.Errorf("%s: %q, %v, want %q", name, r.Sentence, err, c.want)
		}
	}
	if _, err := VerifyDir(t.TempDir(), Trust{}); err == nil {
		t.Error("an empty folder is a log")
	}
	var broken *BrokenError
	if _, err := VerifyDir("/nonexistent", Trust{}); err == nil || errors.As(err, &broken) {
		t.Errorf("a folder that is not there: %v, want an error of reading", err)
	}
}

func FuzzParse(f *testing.F) {
	key := newKey(f)
	for _, l := range lines(sample(f, key))[:30] {
		f.Add(bytes.TrimSuffix(l, []byte("\n")))
	}
	f.Add([]byte(`{"seq":1,"SEQ":2}`))
	f.Add([]byte(`{"seq":1,"kind":"event","event":null,"hash":""}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parse(line)
		if err != nil {
			return
		}
		again, err := r.seal()
		if err != nil || !bytes.Equal(again, append(line, '\n')) {
			t.Errorf("%q was accepted and is written as %q, %v", line, again, err)
		}
		if _, err := json.Marshal(r.entry()); err != nil {
			t.Error(err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	f.Add(sample(f, newKey(f)))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, log []byte) {
		r, err := Verify(bytes.NewReader(log), Trust{Part: true})
		if (err == nil) != r.Whole {
			t.Errorf("report %+v beside error %v", r, err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	w := open(b, b.TempDir(), testConfig(newKey(b)))
	for b.Loop() {
		if _, err := w.Append(b.Context(), event(1)); err != nil {
			b.Fatal(err)
		}
	}
}

// The vector fixes the format: a tool of another version must read it alike.
func TestVector(t *testing.T) {
	h := header{Version: 1, Log: bytes.Repeat([]byte{7}, 16), Key: []byte("key")}
	r := record{Sequence: 1, Time: stamp{testStart}, Kind: KindHeader, Header: &h}
	line, err := r.seal()
	want := `{"seq":1,"time":"2026-11-22T19:40:12.000000Z","prev":"0000000000000000000000000000000000000000000000000000000000000000","kind":"header","header":{"version":1,"log":"BwcHBwcHBwcHBwcHBwcHBw==","key":"a2V5"},"hash":"164b6f7abca34eadb669a82ad3d89428767adf618e0978807bf12bff51612ddb"}` + "\n"
	if err != nil || string(line) != want {
		t.Errorf("header = %s, want %s", line, want)
	}
	digest := checkpointDigest(h.Log, 1, *r.Hash)
	if got := fmt.Sprintf("%x", digest); got != "4e6b3b17e5e167197e796947932e5b566705f0a574378aa0cb8890a958c29b5c" {
		t.Errorf("checkpoint digest = %s", got)
	}
	if _, err := ecdsa.SignASN1(rand.Reader, newKey(t), digest); err != nil {
		t.Error(err)
	}
}
