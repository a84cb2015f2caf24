package web

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/console/recordings"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// ofADay is a real recording of 24 hours, with a line each second, and what it showed.
func ofADay(t *testing.T) (rd *recording.Reader, shown string) {
	t.Helper()
	private, public, err := recording.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := recording.NewWriter(&sealed, public, recording.Header{Session: consoletest.SessionID(1).String(), Site: strings.Repeat("0", 32), Who: "ada@example.org", Target: "nas",
		Title: "a day <script>", Width: 80, Height: 24, Started: time.Now().Add(-25 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for s := range 24 * 3600 {
		line := fmt.Sprintf("\x1b[3%dmtick\x1b[0m %05d of the day, größe %d\r\n", s%8, s, s*7919%1000)
		if s == 60000 {
			line = "the pump in the east has stopped\r\n"
		}
		all.WriteString(line)
		if err := w.Output(time.Duration(s)*time.Second, []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if rd, err = recording.Open(bytes.NewReader(sealed.Bytes()), int64(sealed.Len()), private); err != nil {
		t.Fatal(err)
	}
	return rd, all.String()
}

// TestSES9_RecordingOfADay downloads a recording of 24 hours, which asciinema
// plays byte for byte, and has the player seek and search in it.
func TestSES9_RecordingOfADay(t *testing.T) {
	rd, shown := ofADay(t)
	id := consoletest.SessionID(1)
	info := api.RecordingInfo{Session: id, Technician: "ada@example.org", Target: session.Target{Name: "nas"}, Started: time.Now().Add(-25 * time.Hour), Seconds: rd.Length().Seconds(), Whole: rd.Whole}
	d := consoletest.NewDesk(t, func(*consoletest.Desk) []shell.Route {
		return append(xterm.Routes(), recordings.New(recordings.Ports{
			Recordings: func(context.Context) ([]api.RecordingInfo, error) { return []api.RecordingInfo{info}, nil },
			Cast:       func(_ context.Context, _ broker.Who, _ session.ID, w io.Writer) error { return rd.Export(w) },
		}).Routes()...)
	})
	dir := t.TempDir()
	cast, played := filepath.Join(dir, "day.cast"), filepath.Join(dir, "played")
	if err := os.WriteFile(cast, []byte(d.Open("/recordings/cast?session="+id.String()).Body), 0o600); err != nil {
		t.Fatal(err)
	}
	// It plays to a terminal alone, and script makes one.
	cmd := exec.CommandContext(t.Context(), "script", "-qec", "asciinema cat "+cast+" >"+played, "/dev/null")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("asciinema: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(played); err != nil || string(b) != shown {
		t.Errorf("asciinema played %d bytes, %v; want the %d that were shown", len(b), err, len(shown))
	}
	driveDesk(t, "day.mjs", d, "GATEHOUSE_WEB_ALL="+id.String())
}
