package eventlog

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/tpm/pcr"
)

var update = flag.Bool("update", false, "write the golden file anew")

// good is a start as it should be: Secure Boot with our keys, a release that is
// approved, the key sealed to it.
func good(t testing.TB) Start {
	t.Helper()
	l, values := start(t, "secure")
	values[13] = [pcr.Size]byte{}
	return Start{Log: l, Registers: values, SecureBoot: SecureBoot{Known: true, Enabled: true},
		Release: Release{Brought: true, Epoch: 1, Path: "loader-secure", Sealed: true},
		Trust:   control.Trust{Grade: "A", Sentence: "Sealed to this machine's TPM for releases that we approved."}}
}

// open is the same without keys in the firmware.
func open(t testing.TB) Start {
	t.Helper()
	s := good(t)
	l, values := start(t, "setup")
	values[13] = [pcr.Size]byte{}
	s.Log, s.Registers, s.SecureBoot, s.Release.Path = l, values, SecureBoot{Known: true, SetupMode: true}, "loader"
	s.Trust = control.Trust{Grade: "B", Sentence: "Sealed to this machine's TPM; the boot chain is not enforced."}
	return s
}

// states are those of the five rungs, a letter each: Checked, Unchecked,
// unAvailable, Broken.
func states(rungs []control.Rung) string {
	letters := map[string]string{control.RungChecked: "C", control.RungUnchecked: "U", control.RungUnavailable: "A", control.RungBroken: "B"}
	var s strings.Builder
	for _, r := range rungs {
		s.WriteString(letters[r.State])
	}
	return s.String()
}

// Each way in which the ladder can break or be worth less, with its words in a
// golden file. None of them says checked where nobody checked.
func TestKEY3_LadderSaysWhatWasChecked(t *testing.T) {
	var got strings.Builder
	for _, c := range []struct {
		name, states string
		from         func(testing.TB) Start
		change       func(*Start)
	}{
		{"as it should be", "UCCCC", good, func(*Start) {}},
		{"no keys in the firmware", "UUUUC", open, func(*Start) {}},
		{"Secure Boot switched off", "UUUUC", open, func(s *Start) { s.SecureBoot.SetupMode = false }},
		{"without UEFI", "UUUUC", open, func(s *Start) { s.SecureBoot = SecureBoot{} }},
		{"without a TPM", "AUAUC", open, func(s *Start) {
			s.Log, s.Registers, s.Trust = nil, nil, control.Trust{Grade: "C", Sentence: "Bound to an identifier of this machine: not hardware-protected."}
		}},
		{"without a TPM, under Secure Boot", "ACAUC", good, func(s *Start) {
			s.Log, s.Registers, s.Trust = nil, nil, control.Trust{Grade: "P", Sentence: "Protected by a passphrase given at each start."}
		}},
		{"the firmware keeps no log", "ACCCC", good, func(s *Start) { s.Log = nil }},
		{"the log cannot be read", "ACCCC", good, func(s *Start) { s.Log, s.Problem = nil, errors.New("the event at byte 77: it ends in the middle") }},
		{"the log lacks an event of the firmware", "BCCCC", good, func(s *Start) { s.Log.Events = s.Log.Events[1:] }},
		{"the log lacks who vouched", "UBCCC", good, func(s *Start) {
			for i, e := range s.Log.Events {
				if e.Type == VariableAuthority {
					s.Log.Events = append(s.Log.Events[:i], s.Log.Events[i+1:]...)
					return
				}
			}
		}},
		{"a program was started that the log does not name", "UBCCC", good, func(s *Start) { s.Registers[4] = pcr.Extend(s.Registers[4], [pcr.Size]byte{1}) }},
		{"it says on, and measured off", "UBUUC", open, func(s *Start) { s.SecureBoot = SecureBoot{Known: true, Enabled: true}; s.Release.Sealed = false }},
		{"Secure Boot, key sealed without releases", "UCUUC", good, func(s *Start) {
			s.Release.Sealed = false
			s.Trust = control.Trust{Grade: "B", Sentence: "Sealed to this machine's TPM; the boot chain is not enforced."}
		}},
		{"a kernel started by itself", "UUUUC", open, func(s *Start) { s.Release = Release{} }},
		{"another system", "UCBBA", good, func(s *Start) {
			s.Release.Path, s.Registers[11], s.Locked = "", [pcr.Size]byte{1}, "PCR 11 was 00… and is 01…: another system was started."
		}},
		{"another command line besides", "UCBBA", good, func(s *Start) {
			s.Log.Events = append(s.Log.Events, Event{PCR: 12, Type: IPL, Digest: [pcr.Size]byte{1}})
			s.Release.Path, s.Registers[12], s.Locked = "", [pcr.Size]byte{1}, "No approval is for the system that was started."
		}},
		{"an extension beside it", "UCBBA", good, func(s *Start) {
			s.Release.Path, s.Registers[13], s.Locked = "", [pcr.Size]byte{1}, "No approval is for the system that was started."
		}},
		{"locked by a change of keys in the firmware", "UCUBA", good, func(s *Start) { s.Locked = "PCR 7 was 00… and is 01…: the keys of Secure Boot are others." }},
		{"the data volume is broken", "UCCCB", good, func(s *Start) { s.Data = "The data volume does not open: its file system is broken." }},
		{"older data were put back", "UCCCB", good, func(s *Start) { s.Behind = "The audit log ends before entry 17, which the TPM remembers." }},
		{"nothing is known", "AUAAA", func(testing.TB) Start { return Start{} }, func(*Start) {}},
	} {
		s := c.from(t)
		c.change(&s)
		rungs := Explain(s)
		if states(rungs) != c.states {
			t.Errorf("%s: %s, want %s", c.name, states(rungs), c.states)
		}
		fmt.Fprintf(&got, "## %s\n", c.name)
		for i, r := range rungs {
			if r.Name != []string{"firmware", "loader", "system", "keys", "data"}[i] {
				t.Errorf("%s: rung %d is %q", c.name, i, r.Name)
			}
			fmt.Fprintf(&got, "%s, %s: %s\n", r.Name, r.State, r.Sentence)
		}
		fmt.Fprintln(&got)
	}
	const golden = "testdata/ladder.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the words are others than in %s (-update writes it):\n%s", golden, got.String())
	}
}

// Names in the log are other people's: they are shown, and do nothing.
func TestNamesOfTheLogAreData(t *testing.T) {
	if got := printable("a\nb\x1b[31m“c”\xff" + strings.Repeat("x", 100)); strings.ContainsAny(got, "\n\x1b“”") || len([]rune(got)) != 65 {
		t.Errorf("%q", got)
	}
	s := good(t)
	for i, e := range s.Log.Events {
		if e.Type == VariableAuthority {
			v := variable{imageSecurity, "db", []byte("no certificate")}
			s.Log.Events[i].Data = v.bytes()
		}
	}
	if r := s.loader(); r.State != control.RungChecked || strings.Contains(r.Sentence, "vouched") {
		t.Errorf("an entry that does not have its digest: %+v", r)
	}
	if got := (variable{imageSecurity, "MokList\n", bytes.Repeat([]byte{1}, 40)}).voucher(); got != "an entry of MokList? without a name" {
		t.Errorf("%q", got)
	}
	p := policy{authorities: make([]variable, 5)}
	if got := p.vouchers(); !strings.HasSuffix(got, "2 more") {
		t.Errorf("%q", got)
	}
}
