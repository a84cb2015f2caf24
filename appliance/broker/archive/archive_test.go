package archive

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
)

// TestSES9_DamagedRecordingSaysWhereItEnds: what comes before the damage is
// right and is there, what comes after is not, and the end says why.
func TestSES9_DamagedRecordingSaysWhereItEnds(t *testing.T) {
	private, public, err := recording.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	a, err := Open(t.TempDir(), private, func() (uint64, error) { return 1 << 40, nil })
	if err != nil {
		t.Fatal(err)
	}
	id := session.ID{1}
	var file bytes.Buffer
	w, err := recording.NewWriter(&file, public, recording.Header{Session: id.String(), Width: 80, Height: 24, Started: time.Unix(1e9, 0)})
	if err != nil {
		t.Fatal(err)
	}
	var middle int
	for i, text := range []string{"before", "damaged", "after"} {
		if i == 1 {
			middle = file.Len()
		}
		if err := errors.Join(w.Output(time.Duration(i+1)*time.Second, []byte(text)), w.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	begun := 0
	export := func() error {
		out.Reset()
		return a.Export(id, &out, func() error { begun++; return nil })
	}
	if err := export(); !errors.Is(err, asker.ErrNone) || begun != 0 || out.Len() > 0 {
		t.Errorf("without a recording: %v, begun %d, %q", err, begun, out.String())
	}
	if n, err := a.Append(id, 0, file.Bytes()); err != nil || n != int64(file.Len()) {
		t.Fatalf("%d, %v", n, err)
	}
	if err := export(); err != nil || !strings.Contains(out.String(), "after") || strings.Contains(out.String(), "not shown") || !a.Look(id).Whole {
		t.Errorf("whole: %v, %s", err, out.String())
	}
	b := bytes.Clone(file.Bytes())
	b[middle+20] ^= 1
	if err := os.WriteFile(a.file(id), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := export(); err != nil || !strings.Contains(out.String(), "before") || strings.Contains(out.String(), "damaged") || strings.Contains(out.String(), `"after"`) || !strings.Contains(out.String(), "not shown") {
		t.Errorf("damaged: %v, %s", err, out.String())
	}
	lost := errors.New("the log is full")
	if err := a.Export(id, &out, func() error { return lost }); !errors.Is(err, lost) {
		t.Errorf("what cannot be recorded is shown: %v", err)
	}
}
