package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"gatehouse/tpm/pcr"
)

// The logs of testdata are those of two starts of one image under OVMF (EDK II
// 2022.11 of Debian, 512 MB, q35), by the loader: once with no keys in the
// firmware, once with the keys of a development build. The registers are what
// /sys/class/tpm/tpm0/pcr-sha256 showed in the same start.
var captured = map[string]map[int]string{
	"setup": {
		0: "3d897a7c534d643c645fda0d1b4bae039a712e1ccef23fe3998cf611b3077451", 1: "762d59e5bf2257393a3240e7f00b37b122764a7cba1619ed6224f965a7bf3a25",
		2: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969", 3: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
		4: "00e2fea336cf04c44b96e17fb7832bfc2c381fc32b6df0b57852243280721aff", 5: "a6b7ee72351fe784bde0cb96a8702fbce172c65318a0968d253289a8ed428020",
		6: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969", 7: "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
		9:  "2531cbe20ab57826aab7ac27eb4e7dc2cec0c50756a12b918da4b09234624847",
		11: "4d002156106a87dab071a43fe8957cfd64d00dbc17f60556ed99c9e5d65505fb", 12: "2048f8e2e5045d15b1f6494fc4c84c2406054b2e89778168e5cf7ba025c710e0",
	},
	"secure": {
		0: "3d897a7c534d643c645fda0d1b4bae039a712e1ccef23fe3998cf611b3077451", 1: "3655caaa0ab9db28a7dbe2912754d5b1f4023fb9d841cb175f0144291774eb73",
		2: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969", 3: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
		4: "b342f58d4f60d5d6e1a369443e61ff8993aebec8c07eb399fe4ec4f3d6678683", 5: "a6b7ee72351fe784bde0cb96a8702fbce172c65318a0968d253289a8ed428020",
		6: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969", 7: "5e70a9d7cb27c11b06e09e7342f161e050375babc03011ab8820df2c71a1b3af",
		9:  "2531cbe20ab57826aab7ac27eb4e7dc2cec0c50756a12b918da4b09234624847",
		11: "4d002156106a87dab071a43fe8957cfd64d00dbc17f60556ed99c9e5d65505fb", 12: "c4cc7019c57475ad9edfe1b3f1129e0eaa63e3965f5d139e08bb67fdb2696e9f",
	},
}

func raw(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/ovmf-" + name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// start is a captured log and the registers of the same start.
func start(t testing.TB, name string) (*Log, pcr.Values) {
	t.Helper()
	l, err := Parse(raw(t, name))
	if err != nil {
		t.Fatal(err)
	}
	values := make(pcr.Values)
	for i, text := range captured[name] {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		values[i] = [pcr.Size]byte(b)
	}
	return l, values
}

func TestParseRefuses(t *testing.T) {
	good := raw(t, "setup")
	le := binary.LittleEndian
	change := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	const (
		banks  = headerEvent + 16 + 8 // how many there are
		first  = 77                   // first event after the header: PCR, type, count
		digest = first + 12           // its first algorithm
		length = first + 12 + 2 + 20 + 2 + 32 + 2 + 48 + 2 + 64
	)
	for name, b := range map[string][]byte{
		"nothing":                            nil,
		"zeros":                              make([]byte, 500),
		"all ones":                           bytes.Repeat([]byte{0xff}, 500),
		"more than is read":                  make([]byte, MaxSize+1),
		"header of another PCR":              change(0, 1),
		"header that is measured":            change(4, 4),
		"header with a digest":               change(8, 1),
		"header of another form":             change(headerEvent+8, 'X'),
		"header longer than the log":         change(28, 0xff, 0xff, 0xff, 0xff),
		"header longer than its banks":       change(28, 46),
		"no banks":                           change(banks, 0),
		"a thousand banks":                   change(banks, 0xe8, 3),
		"4 thousand million banks":           change(banks, 0xff, 0xff, 0xff, 0xff),
		"a bank twice":                       change(banks+4+4, 4),
		"a bank without digests":             change(banks+4+2, 0),
		"a bank of 65535 bytes":              change(banks+4+2, 0xff, 0xff),
		"SHA-256 of another length":          change(banks+4+4+2, 31),
		"no SHA-256":                         change(banks+4+4, 0x77),
		"a PCR that is none":                 change(first, 24),
		"PCR 4 thousand million":             change(first, 0xff, 0xff, 0xff, 0xff),
		"event without digests":              change(first+8, 0),
		"event with more digests than banks": change(first+8, 5),
		"event of 4 thousand million":        change(first+8, 0xff, 0xff, 0xff, 0xff),
		"event with a digest twice":          change(digest+22, 4),
		"event with an unknown digest":       change(digest, 0x99),
		"event longer than the log":          change(length, 0xff, 0xff, 0xff, 0xff),
		"event that ends the log short":      change(length, byte(len(good)-length-4+1), byte((len(good)-length-4+1)>>8)),
		"more bytes behind":                  append(bytes.Clone(good), 0),
		"endless events":                     append(bytes.Clone(good), bytes.Repeat(good[first:length+6], maxEvents)...),
	} {
		l, err := Parse(b)
		if !errors.Is(err, ErrFormat) || l != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Without one of its banks an event is fine, without SHA-256 it is not.
	event := func(alg uint16, size int) []byte {
		b := append(bytes.Clone(good), make([]byte, 12)...)
		le.PutUint32(b[len(good)+8:], 1)
		b = append(le.AppendUint16(b, alg), make([]byte, size)...)
		return le.AppendUint32(b, 0)
	}
	if _, err := Parse(event(algSHA256, 32)); err != nil {
		t.Errorf("an event with SHA-256 alone: %v", err)
	}
	if _, err := Parse(event(4, 20)); !errors.Is(err, ErrFormat) {
		t.Errorf("an event without SHA-256: %v", err)
	}
	for n := range good {
		if l, err := Parse(good[:n]); err == nil && len(l.Replay()) == len(captured["setup"]) && n < len(good)-1000 {
			t.Errorf("cut at %d it is whole", n)
		}
	}
}

// What a TPM held is what the log leads to, and the two agree about nothing else.
func TestKEY10_LogLeadsToTheRegisters(t *testing.T) {
	for name := range captured {
		l, values := start(t, name)
		got := l.Replay()
		if got.Selection() != values.Selection() {
			t.Errorf("%s: the log is about PCR %v, want %v", name, got.Selection(), values.Selection())
		}
		for _, c := range pcr.Changes(values, got) {
			t.Errorf("%s: by the log %v", name, c)
		}
		all := values.Selection().Indices()
		if d := l.Differ(values, all...); d != nil {
			t.Errorf("%s: Differ = %v", name, d)
		}
		values[4] = [pcr.Size]byte{1}
		if d := l.Differ(values, all...); len(d) != 1 || d[0].Index != 4 {
			t.Errorf("%s: PCR 4 is another, and Differ = %v", name, d)
		}
		if d := l.Differ(pcr.Values{13: {1}}, 13); len(d) != 1 {
			t.Errorf("%s: PCR 13 was extended by nobody, and Differ = %v", name, d)
		}
		l.Events[20].Digest[0] ^= 1
		_, values = start(t, name)
		if d := l.Differ(values, all...); len(d) != 1 || d[0].Index != l.Events[20].PCR {
			t.Errorf("%s: event 20 was edited, and Differ = %v", name, d)
		}
	}
}

func TestReplayKnowsWhereItBegan(t *testing.T) {
	l := &Log{locality: 3, Events: []Event{{PCR: 0, Type: NoAction}, {PCR: 0, Type: crtmVersion}, {PCR: 17, Type: IPL}}}
	got := l.Replay()
	if want := pcr.Extend([pcr.Size]byte{31: 3}, [pcr.Size]byte{}); got[0] != want || len(got) != 1 {
		t.Errorf("%x, want PCR 0 alone, %x", got, want)
	}
	b := raw(t, "setup")
	e := make([]byte, 8, 200)
	e[4] = byte(NoAction)
	e = append(binary.LittleEndian.AppendUint32(e, 1), algSHA256, 0)
	e = append(e, make([]byte, 32)...)
	e = append(append(e, 17, 0, 0, 0), (locality + "\x04")...)
	l, err := Parse(append(b, e...))
	if err != nil || l.locality != 4 {
		t.Errorf("locality %d, %v", l.locality, err)
	}
}

// One log of one machine gives the register of the other: keys enrolled in the
// running box are measured at its next start as here.
func TestBOX5_RegisterOfEnrolledKeysIsForeseen(t *testing.T) {
	before, now := start(t, "setup")
	after, want := start(t, "secure")
	keys := contents(t, after)
	got, err := PredictSecureBoot(before, keys)
	if err != nil {
		t.Fatal(err)
	}
	if got != want[policyPCR] {
		t.Errorf("foreseen was %x, and it was %x", got, want[policyPCR])
	}
	// The way back: a person takes the keys out again.
	got, err = PredictSecureBoot(after, State{PK: []byte{}, KEK: []byte{}, DB: []byte{}})
	if err != nil || got != now[policyPCR] {
		t.Errorf("without keys again: %x, %v, want %x", got, err, now[policyPCR])
	}
	// Nothing changes: what is in the log.
	if got, err := PredictSecureBoot(after, State{Enabled: true}); err != nil || got != want[policyPCR] {
		t.Errorf("as it is: %x, %v", got, err)
	}
	if got, err := PredictSecureBoot(after, keys); err != nil || got != want[policyPCR] {
		t.Errorf("the same keys again: %x, %v", got, err)
	}
	seen := map[[pcr.Size]byte]string{want[policyPCR]: "as it is"}
	for name, change := range map[string]func(*State){
		"another PK": func(s *State) { s.PK = append([]byte{1}, s.PK...) }, "another KEK": func(s *State) { s.KEK = append([]byte{1}, s.KEK...) },
		"a longer db": func(s *State) { s.DB = append(bytes.Clone(s.DB), 1) }, "a dbx": func(s *State) { s.DBX = []byte{1} },
		"off": func(s *State) { s.Enabled, s.Authority = false, nil },
	} {
		s := contents(t, after)
		change(&s)
		got, err := PredictSecureBoot(after, s)
		if other, twice := seen[got]; err != nil || twice {
			t.Errorf("%s: %v, the same as %q", name, err, other)
		}
		seen[got] = name
	}
}

// contents are those of the variables in a log.
func contents(t testing.TB, l *Log) State {
	t.Helper()
	p, err := l.policy()
	if err != nil {
		t.Fatal(err)
	}
	data := func(vendor guid, name string) []byte { return p.find(vendor, name).data }
	return State{Enabled: true, PK: data(globalVariable, "PK"), KEK: data(globalVariable, "KEK"), DB: data(imageSecurity, "db"),
		DBX: data(imageSecurity, "dbx"), Authority: p.authorities[0].data}
}

func TestBOX5_ForesightRefuses(t *testing.T) {
	after, _ := start(t, "secure")
	keys := contents(t, after)
	at := func(l *Log, kind Type, n int) *Event {
		for i := range l.Events {
			if l.Events[i].PCR == policyPCR && l.Events[i].Type == kind {
				if n == 0 {
					return &l.Events[i]
				}
				n--
			}
		}
		t.Fatalf("no event of type %#x", uint32(kind))
		return nil
	}
	for name, c := range map[string]struct {
		from   string
		change func(*Log, *State)
		want   string
	}{
		"no log to speak of":         {"setup", func(l *Log, _ *State) { l.Events = nil }, "separator"},
		"nobody vouches":             {"setup", func(_ *Log, s *State) { s.Authority = nil }, "which certificate"},
		"a stranger vouches":         {"setup", func(_ *Log, s *State) { s.Authority = []byte("stranger") }, "not in db"},
		"db is not changed with it":  {"setup", func(_ *Log, s *State) { s.DB = nil }, "not in db"},
		"no separator":               {"setup", func(l *Log, _ *State) { at(l, Separator, 0).PCR = 6 }, "separator"},
		"two separators":             {"setup", func(l *Log, _ *State) { l.Events = append(l.Events, *at(l, Separator, 0)) }, "order of its own"},
		"a variable after it":        {"setup", func(l *Log, _ *State) { l.Events = append(l.Events, *at(l, VariableConfig, 0)) }, "order of its own"},
		"a variable twice":           {"setup", func(l *Log, _ *State) { l.Events = append([]Event{*at(l, VariableConfig, 0)}, l.Events...) }, "order of its own"},
		"an action after it":         {"setup", func(l *Log, _ *State) { l.Events = append(l.Events, Event{PCR: 7, Type: IPL}) }, "order of its own"},
		"no db":                      {"setup", func(l *Log, _ *State) { at(l, VariableConfig, 3).PCR = 6 }, "variable db"},
		"no SecureBoot":              {"setup", func(l *Log, _ *State) { at(l, VariableConfig, 0).PCR = 6 }, "whether Secure Boot is on"},
		"another digest":             {"setup", func(l *Log, _ *State) { at(l, VariableConfig, 2).Digest[0] ^= 1 }, "way of its own"},
		"a name that is none":        {"setup", func(l *Log, _ *State) { at(l, VariableConfig, 1).Data = []byte("PK") }, "name and content"},
		"authority while off":        {"setup", func(l *Log, _ *State) { l.Events = append(l.Events, *at(after, VariableAuthority, 0)) }, "cannot be foreseen"},
		"authority before separator": {"secure", func(l *Log, _ *State) { l.Events = append([]Event{*at(l, VariableAuthority, 0)}, l.Events...) }, "order of its own"},
		"which of two authorities": {"secure", func(l *Log, s *State) {
			l.Events = append(l.Events, *at(l, VariableAuthority, 0))
			s.DB = append(bytes.Clone(s.DB), 1, 2, 3)
			s.Authority = []byte{1, 2, 3}
		}, "which of them"},
	} {
		l, _ := start(t, c.from)
		s := keys
		c.change(l, &s)
		if got, err := PredictSecureBoot(l, s); err == nil || !strings.Contains(err.Error(), c.want) || got != [pcr.Size]byte{} {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Few firmwares measure SetupMode; it follows from PK.
func TestSetupModeFollowsThePlatformKey(t *testing.T) {
	l, _ := start(t, "setup")
	after, _ := start(t, "secure")
	p, err := l.policy()
	if err != nil {
		t.Fatal(err)
	}
	p.before = append(p.before, entry{of: &variable{globalVariable, "SetupMode", []byte{1}}})
	if err := p.change(contents(t, after)); err != nil {
		t.Fatal(err)
	}
	if v := p.find(globalVariable, "SetupMode"); !bytes.Equal(v.data, []byte{0}) {
		t.Errorf("with a PK SetupMode is % x", v.data)
	}
}

func FuzzParse(f *testing.F) {
	for name := range captured {
		f.Add(raw(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrFormat) || len(err.Error()) > 500 {
				t.Errorf("%v", err)
			}
			return
		}
		l.Replay()
		if _, err := PredictSecureBoot(l, State{}); err != nil && len(err.Error()) > 500 {
			t.Errorf("%v", err)
		}
	})
}
