package boot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"gatehouse/appliance/host"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// Two starts of one machine: before and after enrolment (tpm/eventlog/testdata).
const (
	pcr7Without = "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068"
	pcr7With    = "5e70a9d7cb27c11b06e09e7342f161e050375babc03011ab8820df2c71a1b3af"
)

func started(t *testing.T, name, pcr7 string) *measured {
	t.Helper()
	raw, err := os.ReadFile("../../tpm/eventlog/testdata/ovmf-" + name + ".log")
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	v, err := hex.DecodeString(pcr7)
	if err != nil {
		t.Fatal(err)
	}
	return &measured{log: l, registers: pcr.Values{7: [pcr.Size]byte(v)}}
}

// change is the signed change of a variable as far as its content goes.
func change(content []byte) []byte {
	b := make([]byte, timeSize+certificateSize+100)
	binary.LittleEndian.PutUint32(b[timeSize:], certificateSize+100)
	return append(b, content...)
}

// enrolledImage is the folder of an image with the keys that the second start knows.
func enrolledImage(t *testing.T) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	for _, e := range started(t, "secure", pcr7With).log.Events {
		if e.PCR != 7 || e.Type != eventlog.VariableConfig {
			continue
		}
		name, content := variableOf(e.Data)
		if slices.Contains(enrolOrder, name) {
			out[secureBootFolder+"/"+name+".auth"] = &fstest.MapFile{Data: change(content)}
		}
	}
	if len(out) != 3 {
		t.Fatalf("%d keys in the log", len(out))
	}
	return out
}

// variableOf takes UEFI_VARIABLE_DATA apart.
func variableOf(b []byte) (name string, content []byte) {
	n := binary.LittleEndian.Uint64(b[16:])
	for i := range n {
		name += string(rune(b[32+2*i]))
	}
	return name, b[32+2*n:]
}

func TestBOX5_KeysOfTheImageAreReadStrictly(t *testing.T) {
	good := enrolledImage(t)
	db := good[secureBootFolder+"/db.auth"].Data
	for name, bad := range map[string][]byte{
		"empty": nil, "a time alone": db[:timeSize], "cut in the signature": db[:timeSize+certificateSize+50], "cut in the list": db[:len(db)-1],
		"more behind": append(bytes.Clone(db), 0), "endless": append(bytes.Clone(db), make([]byte, 64<<10)...),
		"a signature without end":  append(append(bytes.Clone(db[:timeSize]), 0xff, 0xff, 0xff, 0xff), db[timeSize+4:]...),
		"a signature of no length": append(append(bytes.Clone(db[:timeSize]), 0, 0, 0, 0), db[timeSize+4:]...),
		"two certificates":         change(bytes.Repeat(good[secureBootFolder+"/db.auth"].Data[timeSize+certificateSize+100:], 2)),
	} {
		tree := enrolledImage(t)
		tree[secureBootFolder+"/db.auth"] = &fstest.MapFile{Data: bad}
		if _, err := readEnrolment(tree); err == nil {
			t.Errorf("%s: read", name)
		}
	}
	if _, err := readEnrolment(fstest.MapFS{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an image without keys: %v", err)
	}
}

// Every start after a power cut between two writes is foreseen, and the last
// one is what the machine really measured with these keys.
func TestBOX5_EachStepOfEnrolmentIsForeseen(t *testing.T) {
	e, err := readEnrolment(enrolledImage(t))
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.foreseen(started(t, "setup", pcr7Without))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{pcr7Without: true}
	for _, v := range got {
		seen[hex.EncodeToString(v[:])] = true
	}
	if len(got) != 3 || len(seen) != 4 || hex.EncodeToString(got[2][:]) != pcr7With {
		t.Errorf("foreseen %x, the last was %s", got, pcr7With)
	}
	for name, m := range map[string]*measured{
		"no TPM": {}, "no log": {registers: pcr.Values{7: {}}}, "a log that cannot be read": {registers: pcr.Values{7: {}}, problem: eventlog.ErrFormat},
		"a log of another start": started(t, "setup", pcr7With),
	} {
		if v, err := e.foreseen(m); err == nil || !strings.Contains(err.Error(), "PCR 7") {
			t.Errorf("%s: %x, %v", name, v, err)
		}
	}
}

// store is a firmware that takes changes until its power is cut.
type store struct {
	variables map[string][]byte
	writes    []string
	cut       int // after so many writes
	off       bool
}

var errCut = errors.New("the power was cut")

func (s *store) SecureBoot() (host.SecureBoot, error) {
	setup := s.variables["PK"] == nil
	return host.SecureBoot{Known: true, SetupMode: setup, Enabled: !setup && !s.off}, nil
}

func (s *store) Started() (host.Started, error)   { return host.Started{}, nil }
func (s *store) LoaderPartition() (string, error) { return "", fs.ErrNotExist }
func (s *store) Parameter(string) (string, bool)  { return "", false }

func (s *store) SecureBootKeys(name string) ([]byte, error) { return s.variables[name], nil }

func (s *store) EnrolSecureBoot(name string, change []byte) error {
	return s.ChangeSecureBoot(name, change)
}

func (s *store) ChangeSecureBoot(name string, change []byte) error {
	if len(s.writes) == s.cut {
		return errCut
	}
	content, err := payloadOf(change)
	s.variables[name], s.writes = content, append(s.writes, name)
	return err
}

func TestBOX5_EnrolmentGoesOnAfterAPowerCut(t *testing.T) {
	e, err := readEnrolment(enrolledImage(t))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range 4 {
		s := &store{variables: map[string][]byte{}, cut: cut}
		if err := e.write(s); (cut < 3) != errors.Is(err, errCut) {
			t.Errorf("cut after %d writes: %v", cut, err)
		}
		if cut < 3 && s.variables["PK"] != nil {
			t.Errorf("cut after %d writes, and PK is written", cut)
		}
		s.cut = 3
		if err := e.write(s); err != nil || !slices.Equal(s.writes, enrolOrder) {
			t.Errorf("cut after %d writes, then tried again: %v, %v", cut, s.writes, err)
		}
	}
}

// What is known of the start reaches the ladder.
func TestKEY3_StartReachesTheLadder(t *testing.T) {
	m := started(t, "setup", pcr7Without)
	m.problem = fs.ErrNotExist
	if s := m.explain(eventlog.SecureBoot{Known: true}, true); s.Problem != nil || s.Release.Brought || s.Log != m.log || !s.SecureBoot.Known {
		t.Errorf("%+v", s)
	}
}
