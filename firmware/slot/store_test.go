package slot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"
)

// meta is META in memory, as far as the record.
type meta struct {
	b   []byte
	log [][2]int64
	err error
}

func newMeta() *meta { return &meta{b: make([]byte, recordAt+recordPlaces*recordPlace)} }

func (m *meta) ReadAt(b []byte, off int64) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	return bytes.NewReader(m.b).ReadAt(b, off)
}

func (m *meta) WriteAt(b []byte, off int64) (int, error) {
	m.log = append(m.log, [2]int64{off, off + int64(len(b))})
	return copy(m.b[off:], b), m.err
}

func (m *meta) Sync() error { return m.err }

// full is a record with all that it can have.
func full(t testing.TB) Record {
	a, b := system(1), system(2)
	r := Record{}.With(A, &a).With(B, &b)
	for n := range uint32(30) {
		s := system(n + 3)
		r = r.With(B, &s)
		var err error
		if r, err = r.Begin(B, false, now.Add(time.Duration(n)*time.Second+time.Nanosecond)); err != nil {
			t.Fatal(err)
		}
		r, _ = Judge(r, with(back, func(e *Evidence) { e.Panic = strings.Repeat("long and \x00 strange \xff ü", 100) }), now)
	}
	r, err := r.With(B, &b).Begin(B, false, now)
	if err != nil {
		t.Fatal(err)
	}
	return r.Ending("no\nlease", true)
}

func TestRecordReadsBack(t *testing.T) {
	for name, r := range map[string]Record{"new": {}, "full": full(t)} {
		raw, err := r.Encode(7)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, g, err := Decode(append(raw, make([]byte, 100)...))
		if err != nil || g != 7 || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: generation %d, %v\n%+v\n%+v", name, g, err, got, r)
		}
	}
	r := full(t)
	if len(r.Verdicts) != maxVerdicts || r.Trial.End.Reason != "no lease" {
		t.Errorf("%d verdicts, end %+v", len(r.Verdicts), r.Trial.End)
	}
	for _, v := range r.Verdicts {
		if len(v.Reason) > maxReason+len("…") || strings.ContainsAny(v.Reason, "\x00\n") {
			t.Errorf("reason %q", v.Reason)
		}
	}
}

// sealed is text with a right head and sum, so that a test shows the rule.
func sealed(text string) []byte {
	buf := append([]byte(recordMagic), binary.BigEndian.AppendUint64(nil, 1)...)
	buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(text))), text...)
	sum := sha256.Sum256(buf)
	return append(buf, sum[:]...)
}

func TestDecodeRefuses(t *testing.T) {
	good, err := full(t).Encode(1)
	if err != nil {
		t.Fatal(err)
	}
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	sys := `{"version":"1.2.0","epoch":1,"size":5,"sha256":"` + strings.Repeat("ab", 32) + `"}`
	verdict := `{"system":` + sys + `,"when":"2026-11-29T09:30:00Z","tries":1,"reason":"x"}`
	for name, b := range map[string][]byte{
		"nothing":                        nil,
		"short":                          good[:len(good)-1],
		"blank":                          make([]byte, 1000),
		"another magic":                  flip(3),
		"another generation":             flip(12),
		"another length":                 flip(19),
		"a bit of its text":              flip(100),
		"a bit of its sum":               flip(len(good) - 1),
		"a length beyond all":            append([]byte(recordMagic), bytes.Repeat([]byte{0xff}, 200)...),
		"no JSON":                        sealed("slots"),
		"an unknown field":               sealed(`{"boot":"a"}`),
		"a space":                        sealed(`{ }`),
		"something behind":               sealed(`{}{}`),
		"a field twice":                  sealed(`{"a":` + sys + `,"a":` + sys + `}`),
		"null":                           sealed(`null`),
		"a third slot":                   sealed(`{"trial":{"slot":"c","system":` + sys + `,"began":"2026-11-29T09:30:00Z","tries":1}}`),
		"no slot":                        sealed(`{"trial":{"slot":"","system":` + sys + `,"began":"2026-11-29T09:30:00Z","tries":1}}`),
		"no tries":                       sealed(`{"trial":{"slot":"b","system":` + sys + `,"began":"2026-11-29T09:30:00Z","tries":0}}`),
		"tries without end":              sealed(`{"trial":{"slot":"b","system":` + sys + `,"began":"2026-11-29T09:30:00Z","tries":9999999}}`),
		"a time of another place":        sealed(`{"trial":{"slot":"b","system":` + sys + `,"began":"2026-11-29T09:30:00.5Z","tries":1}}`),
		"a system without a size":        sealed(`{"a":` + strings.Replace(sys, `:5,`, `:0,`, 1) + `}`),
		"a system too large":             sealed(`{"a":` + strings.Replace(sys, `:5,`, `:67108865,`, 1) + `}`),
		"no digest":                      sealed(`{"a":` + strings.Replace(sys, strings.Repeat("ab", 32), "", 1) + `}`),
		"a digest of zeros":              sealed(`{"a":` + strings.Replace(sys, strings.Repeat("ab", 32), strings.Repeat("00", 32), 1) + `}`),
		"a digest in capitals":           sealed(`{"a":` + strings.Replace(sys, strings.Repeat("ab", 32), strings.Repeat("AB", 32), 1) + `}`),
		"two verdicts of one":            sealed(`{"verdicts":[` + verdict + `,` + verdict + `]}`),
		"a verdict of two lines":         sealed(`{"verdicts":[` + strings.Replace(verdict, `"x"`, `"x\ny"`, 1) + `]}`),
		"a long verdict":                 sealed(`{"verdicts":[` + strings.Replace(verdict, `"x"`, `"`+strings.Repeat("x", 1000)+`"`, 1) + `]}`),
		"a verdict both kept and failed": sealed(`{"verdicts":[` + strings.Replace(verdict, `"tries"`, `"kept":true,"explained":true,"tries"`, 1) + `]}`),
		"a generation that no other can follow": func() []byte {
			b := bytes.Clone(good)
			b[8] = 0xff
			sum := sha256.Sum256(b[:len(b)-32])
			return append(b[:len(b)-32], sum[:]...)
		}(),
	} {
		if r, _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: read as %+v (%v)", name, r, err)
		}
	}
	var many []string
	for n := range maxVerdicts + 1 {
		many = append(many, strings.Replace(verdict, "abab", fmt.Sprintf("%04x", n+1), 1))
	}
	if _, _, err := Decode(sealed(`{"verdicts":[` + strings.Join(many[1:], ",") + `]}`)); err != nil {
		t.Errorf("as many verdicts as may be: %v", err)
	}
	if _, _, err := Decode(sealed(`{"verdicts":[` + strings.Join(many, ",") + `]}`)); !errors.Is(err, ErrRecord) {
		t.Errorf("too many verdicts: %v", err)
	}
}

func TestBOX4_RecordSurvivesPowerCuts(t *testing.T) {
	m := newMeta()
	if r, err := ReadRecord(m); err != nil || !reflect.DeepEqual(r, Record{}) {
		t.Fatalf("blank META: %+v, %v", r, err)
	}
	var before Record
	for n := range uint32(5) {
		s := system(n + 1)
		next := Record{}.With(A, &s)
		old := bytes.Clone(m.b)
		if err := WriteRecord(m, next); err != nil {
			t.Fatal(err)
		}
		w := m.log[len(m.log)-1]
		if w[0] < recordAt || w[1] > recordAt+recordPlaces*recordPlace || w[0]%blockSize != 0 || w[1]%blockSize != 0 {
			t.Errorf("wrote bytes %d to %d", w[0], w[1])
		}
		for cut := w[0]; cut < min(w[1], w[0]+600); cut += 7 {
			torn := &meta{b: bytes.Clone(old)}
			copy(torn.b[w[0]:cut], m.b[w[0]:cut])
			got, err := ReadRecord(torn)
			if err != nil || !reflect.DeepEqual(got, before) && !reflect.DeepEqual(got, next) {
				t.Fatalf("cut after %d bytes of write %d: %+v, %v", cut-w[0], n, got, err)
			}
			// And the next write is the newest, whatever the cut left.
			if err := WriteRecord(torn, next); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadRecord(torn); err != nil || !reflect.DeepEqual(got, next) {
				t.Fatalf("written again after a cut after %d bytes: %+v, %v", cut-w[0], got, err)
			}
		}
		before = next
	}
}

// sick is a device on which a range cannot be read, or not be written.
type sick struct {
	*meta
	read, write [2]int64
}

var errSick = errors.New("input/output error")

func hits(r [2]int64, off int64, n int) bool { return off < r[1] && off+int64(n) > r[0] }

func (d *sick) ReadAt(b []byte, off int64) (int, error) {
	if hits(d.read, off, len(b)) {
		return 0, errSick
	}
	return d.meta.ReadAt(b, off)
}

func (d *sick) WriteAt(b []byte, off int64) (int, error) {
	if hits(d.write, off, len(b)) {
		return 0, errSick
	}
	return d.meta.WriteAt(b, off)
}

// A sector that cannot be read or written, anywhere in one of the two copies, costs no more
// than that copy: what is written is read again, and who asks is told.
func TestBOX4_OneSickCopyOfTheRecordIsNoEnd(t *testing.T) {
	const second = recordAt + recordPlace
	record := func(n uint32) Record {
		s := system(n)
		return Record{}.With(A, &s)
	}
	for name, at := range map[string]int64{
		"the first sector": recordAt, "behind the text": recordAt + recordPlace - 512, "the first sector of the other": second, "behind the text of the other": second + recordPlace - 512,
	} {
		for _, writes := range []uint32{1, 2, 3} { // which copy is the newest
			for kind, sicken := range map[string]func(*sick){
				"read":  func(d *sick) { d.read = [2]int64{at, at + 512} },
				"write": func(d *sick) { d.write = [2]int64{at, at + 512} },
				"both":  func(d *sick) { d.read = [2]int64{at, at + 512}; d.write = d.read },
			} {
				d := &sick{meta: newMeta()}
				for n := range writes {
					if err := WriteRecord(d, record(n+1)); err != nil {
						t.Fatal(err)
					}
				}
				sicken(d)
				first := at%recordPlace == 0
				got, err := ReadRecord(d)
				newest, other := record(writes), record(writes-1)
				if writes == 1 && kind != "write" && at == recordAt {
					// The one copy that ever was. Nobody may take it for a new box.
					if !errors.Is(err, errSick) || errors.Is(err, ErrRecord) {
						t.Errorf("%s, %s, the only copy: %+v, %v", name, kind, got, err)
					}
					continue
				}
				if err != nil || !reflect.DeepEqual(got, newest) && !(first && reflect.DeepEqual(got, other)) {
					t.Errorf("%s, %s, %d writes: %+v, %v", name, kind, writes, got, err)
				}
				told := false
				for n := writes + 1; n < writes+4; n++ {
					failed, err := KeepRecord(d, record(n))
					if err != nil {
						t.Fatalf("%s, %s, %d writes: %v", name, kind, writes, err)
					}
					told = told || errors.Is(failed, errSick)
					if got, err := ReadRecord(d); err != nil || !reflect.DeepEqual(got, record(n)) {
						t.Errorf("%s, %s, %d writes: wrote %d, read %+v, %v", name, kind, writes, n, got, err)
					}
					// And should the sector be read again, what it held is not the newest.
					if got, err := ReadRecord(d.meta); err != nil || !reflect.DeepEqual(got, record(n)) {
						t.Errorf("%s, %s, %d writes: wrote %d, of a disk that reads again %+v, %v", name, kind, writes, n, got, err)
					}
				}
				if told != first {
					t.Errorf("%s, %s, %d writes: told %v", name, kind, writes, told)
				}
			}
		}
	}
	all := &sick{meta: newMeta(), write: [2]int64{recordAt, recordAt + recordPlaces*recordPlace}}
	if _, err := KeepRecord(all, record(1)); !errors.Is(err, errSick) {
		t.Errorf("neither copy can be written: %v", err)
	}
	if _, err := ReadRecord(&sick{meta: newMeta(), read: all.write}); !errors.Is(err, errSick) {
		t.Errorf("neither copy can be read: %v", err)
	}
}

func TestReadRecordSaysWhatIsWrong(t *testing.T) {
	m := newMeta()
	copy(m.b[recordAt:], "noise")
	copy(m.b[recordAt+recordPlace:], "noise")
	if _, err := ReadRecord(m); !errors.Is(err, ErrRecord) {
		t.Errorf("two broken copies: %v", err)
	}
	if err := WriteRecord(m, Record{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRecord(m); err != nil {
		t.Errorf("a write does not mend it: %v", err)
	}
	m.err = io.ErrUnexpectedEOF
	if _, err := ReadRecord(m); !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrRecord) {
		t.Errorf("META cannot be read: %v", err)
	}
	if err := WriteRecord(m, Record{}); err == nil {
		t.Error("META cannot be written, and nobody is told")
	}
	if err := WriteRecord(newMeta(), Record{Trial: &Trial{}}); !errors.Is(err, ErrRecord) {
		t.Errorf("wrote what it would not read: %v", err)
	}
}

func TestBeginRefuses(t *testing.T) {
	r := Record{}
	if _, err := r.Begin(B, true, now); err == nil {
		t.Error("tried an empty slot")
	}
	r = updated(t)
	if _, err := r.Begin(B, true, now); !errors.Is(err, ErrTrial) {
		t.Errorf("two trials at once: %v", err)
	}
	c := r.Cancel()
	if len(c.Verdicts) != 0 || c.Trial != nil {
		t.Errorf("cancelled: %+v", c)
	}
	if r := (Record{}).Ending("x", true).Keep(now); !reflect.DeepEqual(r, Record{}) {
		t.Errorf("ended what was not begun: %+v", r)
	}
}

func TestNamed(t *testing.T) {
	for name, want := range map[string]Slot{
		"gatehouse-a.efi": A, `\EFI\Linux\gatehouse-b.efi`: B, "/EFI/LINUX/GATEHOUSE-A.EFI": A,
		"": 0, `\EFI\BOOT\BOOTX64.EFI`: 0, "gatehouse-c.efi": 0, "gatehouse-a.efi.old": 0, "xgatehouse-a.efi": 0,
	} {
		if got, ok := Named(name); got != want || ok != (want != 0) {
			t.Errorf("Named(%q) = %s, %v", name, got, ok)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range []Record{{}, full(f)} {
		raw, err := r.Encode(3)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw[recordHead : len(raw)-sha256.Size])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		raw := sealed(string(text))
		r, g, err := Decode(raw)
		if err != nil {
			return
		}
		again, err := r.Encode(g)
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("two forms of one record (%v)", err)
		}
		for _, e := range []Evidence{back, {Default: A, Running: B, Selected: B}, {Running: B}} {
			next, _ := Judge(r, e, now)
			if err := next.check(); err != nil {
				t.Fatalf("Judge makes a record that cannot be written: %v", err)
			}
		}
	})
}
