// Package bench measures what docs/performance.md states: sizes, memory, the start and the pages.
//
// Nothing here fails because it is slow. A figure is worth something only
// beside another of the same run, so each benchmark measures the two together:
// Gatehouse, and the same thing without it.
package bench

import (
	"context"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
)

// The built image and programs, from this folder.
const output = "../../build"

// patience ends what hangs. It says nothing of speed.
const patience = 8 * time.Minute

const (
	email    = "ada@example.org"
	password = "orbit walnut cathedral seven"
)

// built is a result of make image, by name.
func built(b *testing.B, name string) string {
	b.Helper()
	path, err := filepath.Abs(filepath.Join(output, name))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		b.Fatalf("%v: build the image first (make image)", err)
	}
	return path
}

// only reports the metrics given in the place of a time per operation that
// would mean nothing.
func only(b *testing.B) { b.ReportMetric(0, "ns/op") }

// percentile sorts the times and takes one.
func percentile(times []time.Duration, p int) time.Duration {
	slices.Sort(times)
	return times[min(len(times)-1, len(times)*p/100)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// spread reports median and 99th percentile of what was measured.
func spread(b *testing.B, times []time.Duration) {
	only(b)
	b.ReportMetric(milliseconds(percentile(times, 50)), "p50-ms")
	b.ReportMetric(milliseconds(percentile(times, 99)), "p99-ms")
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// A visitor is a browser without a screen.
type visitor struct {
	http.Client
	base string
}

func newVisitor(b *testing.B, base string, dial dialer) *visitor {
	b.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: dial, ForceAttemptHTTP2: true}
	b.Cleanup(transport.CloseIdleConnections)
	return &visitor{base: base, Client: http.Client{Jar: jar, Transport: transport, Timeout: 2 * time.Minute}}
}

// read returns status, path after redirects and body of an answer.
func read(r *http.Response, err error) (int, string, string, error) {
	if err != nil {
		return 0, "", "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	return r.StatusCode, r.Request.URL.Path, string(text), err
}

func (v *visitor) get(path string) (string, error) {
	status, _, text, err := read(v.Get(v.base + path))
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s answers %d: %.300s", path, status, text)
	}
	return text, err
}

// send posts a form and expects to be led to another page.
func (v *visitor) send(path, to string, fields ...string) error {
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	status, at, text, err := read(v.PostForm(v.base+path, form))
	if err == nil && at != to {
		err = fmt.Errorf("%s answers %d and leads to %s, not %s: %.300s", path, status, at, to, text)
	}
	return err
}

var secret = regexp.MustCompile(`secret=([A-Z2-7]{32})`)

// claim takes a box over on its page and stops before the second factor.
func (v *visitor) claim(code string) error {
	return v.send("/setup", "/welcome/clock", "claim-code", code, "name", "Ada Lovelace", "email", email, "password", password)
}

// own claims a box, second factor included, and stays signed in.
func (v *visitor) own(code string) error {
	if err := v.claim(code); err != nil {
		return err
	}
	text, err := v.get("/welcome/factor")
	if err != nil {
		return err
	}
	m := secret.FindStringSubmatch(html.UnescapeString(text))
	if m == nil {
		return errors.New("the page shows no secret for the second factor")
	}
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1])
	if err != nil {
		return err
	}
	return v.send("/welcome/factor", "/welcome/codes", "code", onetime.Code(key, onetime.Step(time.Now())))
}

var pair = regexp.MustCompile(`(\w+)=(\S+)`)

// fields reads the box's line for automation; "-" is no value.
func fields(line string) map[string]string {
	out := make(map[string]string)
	for _, m := range pair.FindAllStringSubmatch(line, -1) {
		if m[2] != "-" {
			out[m[1]] = m[2]
		}
	}
	return out
}

// statusLine is that line, complete, in a state.
func statusLine(state string) *regexp.Regexp {
	return regexp.MustCompile(`(?m)^gatehouse: (state=` + strings.Join(strings.Split(state, " "), "|") + ` [^\r\n]*url=https[^\r\n]*fingerprint=[0-9A-F][^\r\n]*)\r?\n`)
}
