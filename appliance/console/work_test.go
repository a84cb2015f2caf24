package console

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// The box's own work is no reason to lose the answer to a change.
func TestNET7_ChangesMayBeWork(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := httptest.NewUnstartedServer(patient(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(300 * time.Millisecond)
			io.WriteString(w, "done")
		})))
		s.Config.WriteTimeout = 100 * time.Millisecond
		s.EnableHTTP2 = h2
		s.StartTLS()
		t.Cleanup(s.Close)
		if r, err := s.Client().Get(s.URL); err == nil {
			r.Body.Close()
			t.Errorf("HTTP/2 %v: a page had more than its time", h2)
		}
		r, err := s.Client().Post(s.URL, "text/plain", nil)
		if err != nil {
			t.Errorf("HTTP/2 %v: %v", h2, err)
			continue
		}
		b, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || string(b) != "done" {
			t.Errorf("HTTP/2 %v: %q, %v", h2, b, err)
		}
	}
}
