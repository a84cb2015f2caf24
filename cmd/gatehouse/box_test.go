package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// answers is a box that says one thing, whatever it is asked.
func answers(t *testing.T, say http.HandlerFunc) *box {
	t.Helper()
	s := httptest.NewTLSServer(say)
	t.Cleanup(s.Close)
	b, err := openBox(t.Context(), s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A box has as many targets and recordings as it has; each verb on one of them
// reads the whole list first.
func TestSES9_LongListsAreReadWhole(t *testing.T) {
	const many = 5000
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	var list api.TargetList
	var recordings api.RecordingList
	for i := range many {
		target := targets.Target{Name: fmt.Sprintf("nas-%04d", i), Kind: targets.SSH, Host: "192.168.1.5", Port: 22}
		list.Targets = append(list.Targets, api.Target{ID: int64(i), Target: target, Created: at, User: "backup", Credential: "password", HostKeys: []string{"ssh-ed25519 SHA256:" + strings.Repeat("A", 43)}})
		recordings.Recordings = append(recordings.Recordings, api.RecordingInfo{Session: targets.ID{1, byte(i), byte(i >> 8)}, Technician: "ada@example.org", Target: target, Started: at, Size: 148000, Seconds: 3600.123, Whole: true})
	}
	b := answers(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == api.Targets {
			answer(w, list)
		} else {
			answer(w, recordings)
		}
	})
	if got, err := b.targets(t.Context()); err != nil || len(got) != many || got[many-1].Name != "nas-4999" {
		t.Errorf("%d targets of %d, %v", len(got), many, err)
	}
	last := recordings.Recordings[many-1].Session
	if got, err := (&signed{box: b}).recording(t.Context(), last.String()); err != nil || got != last {
		t.Errorf("%v of %d recordings, %v", got, many, err)
	}
}

// What is longer than is read of a box is never taken for what was meant.
func TestUSE2_AnswersThatAreTooLongAreSaid(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, c := range map[string]struct {
		status int
		do     func(context.Context, *box) error
	}{
		"a list":       {http.StatusOK, func(ctx context.Context, b *box) error { _, err := b.targets(ctx); return err }},
		"a refusal":    {http.StatusNotFound, func(ctx context.Context, b *box) error { _, err := b.recordings(ctx); return err }},
		"no recording": {http.StatusNotFound, func(ctx context.Context, b *box) error { return b.cast(ctx, targets.ID{}, io.Discard) }},
		"no export": {http.StatusConflict, func(ctx context.Context, b *box) error {
			_, err := (&change{box: b}).ask(ctx, "/", "", nil)
			return err
		}},
		"a look": {http.StatusOK, func(ctx context.Context, b *box) error {
			_, err := (&change{box: b}).look(ctx, file, [2]string{})
			return err
		}},
		"a part it has": {http.StatusOK, func(ctx context.Context, b *box) error {
			_, err := (&change{box: b}).part(ctx, &bundle{File: file}, control.UpdateOffset{})
			return err
		}},
	} {
		b := answers(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // whatever it is
			w.WriteHeader(c.status)
			text, _ := json.Marshal(map[string]string{"detail": strings.Repeat("x", maxAnswer)})
			_, _ = w.Write(text) // it is not read to its end
		})
		if err := c.do(t.Context(), b); err == nil || !strings.Contains(err.Error(), "is longer than ") {
			t.Errorf("%s: %.200v", name, err)
		}
	}
}
