package intake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
	"gatehouse/appliance/control"
	"gatehouse/firmware"
)

// What a mirror may cost. It is the owner's choice and still nobody's friend: it
// may send without an end, a byte a minute, or elsewhere.
const (
	maxAddress = 500
	patience   = 30 * time.Second // until its answer begins, and for the whole manifest
	slowest    = 60 * time.Second // for each 64 KiB of a system
	pause      = 10 * time.Second // after a cut, more each time
)

// errMirror is in what asking again does not change.
var errMirror = errors.New("the mirror does not serve a release as it should")

// CheckMirror judges the address of a mirror as a person typed it; "" is none.
func CheckMirror(address string) error {
	if address == "" {
		return nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" || len(address) > maxAddress {
		return invalid("the address of a mirror begins with https:// or http://, and has no user, ? or #; %.80q is none", address)
	}
	return nil
}

// Check judges where releases are asked for, and who vouches for that server.
func Check(s control.UpdateSettings) error {
	if err := CheckMirror(s.Mirror); err != nil || s.Roots == "" {
		return err
	}
	if !strings.HasPrefix(s.Mirror, "https://") {
		return invalid("certificates vouch for a mirror whose address begins with https://: give such an address, or leave them out")
	}
	if len(s.Roots) > control.MaxUpdateRoots {
		return invalid("the certificates that vouch for the mirror have %d bytes, at most %d are taken: only the authority's own is needed", len(s.Roots), control.MaxUpdateRoots)
	}
	if _, err := pair.ParseChain([]byte(s.Roots)); err != nil {
		return invalid("the certificates that vouch for the mirror: %v", err)
	}
	return nil
}

// folder is a mirror's folder.
type folder struct {
	address string
	client  *http.Client
	end     func()
	slowest time.Duration
	pause   time.Duration
}

func newFolder(s control.UpdateSettings, now func() time.Time) (*folder, error) {
	if err := Check(s); err != nil {
		return nil, err
	}
	pool, err := order.Authorities([]byte(s.Roots))
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, Time: now},
		TLSHandshakeTimeout:    15 * time.Second,
		ResponseHeaderTimeout:  patience,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConns:           1,
		DisableCompression:     true, // what is counted is what was sent
		DialContext:            (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
	}
	return &folder{
		address: strings.TrimSuffix(s.Mirror, "/") + "/", end: transport.CloseIdleConnections, slowest: slowest, pause: pause,
		client: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}, nil
}

func (f *folder) close() { f.end() }

func (f *folder) name(file string) string { return f.address + file }

// get asks for a file from offset on.
func (f *folder) get(ctx context.Context, file string, offset int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, f.name(file), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "gatehouse")
	if offset > 0 {
		r.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := f.client.Do(r)
	var told *url.Error // it names the address again
	if errors.As(err, &told) {
		err = told.Err
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		err = fmt.Errorf("%w: none of the authorities that count here vouches for its certificate. If it is that of an authority of your own, put the authority's certificate into the settings (%w)", errMirror, err)
	}
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent && offset > 0:
		return resp, nil
	case resp.StatusCode/100 == 3:
		err = fmt.Errorf("%w: it sends the box to another address, which is not followed. Give that one as the mirror", errMirror)
	case resp.StatusCode/100 == 5, resp.StatusCode == http.StatusTooManyRequests:
		err = fmt.Errorf("it answers %d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	default:
		err = fmt.Errorf("%w: it answers %d %s", errMirror, resp.StatusCode, http.StatusText(resp.StatusCode))
	}
	resp.Body.Close()
	return nil, err
}

// manifest reads the file "release".
func (f *folder) manifest(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	resp, err := f.get(ctx, "release", 0)
	if err != nil {
		return nil, fmt.Errorf("asking the mirror for %s: %w", f.name("release"), err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, firmware.MaxManifest+1))
	if err == nil && len(b) > firmware.MaxManifest {
		err = fmt.Errorf("%w: the file has more than %d bytes", errMirror, firmware.MaxManifest)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.name("release"), err)
	}
	return b, nil
}

// system opens a system from at on. Reading it fails when it comes too slowly;
// end closes it.
func (f *folder) system(ctx context.Context, file string, at control.UpdateOffset) (body io.Reader, end func(), err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	resp, err := f.get(ctx, file, at.Offset)
	if err != nil {
		cancel(nil)
		return nil, nil, err
	}
	timer := time.AfterFunc(f.slowest, func() {
		cancel(fmt.Errorf("it sends less than %d KiB in %s", control.MaxUpdateWrite>>10, f.slowest))
	})
	end = func() {
		timer.Stop()
		cancel(nil)
		resp.Body.Close()
	}
	body = &paced{ctx: ctx, r: resp.Body, timer: timer, slowest: f.slowest}
	if err := f.begins(resp, at, body); err != nil {
		end()
		return nil, nil, err
	}
	return body, end, nil
}

// begins makes sure that the body begins at the offset: a server that knows no
// ranges sends the whole, which is read over.
func (f *folder) begins(resp *http.Response, at control.UpdateOffset, body io.Reader) error {
	whole := resp.ContentLength
	if resp.StatusCode == http.StatusPartialContent {
		if want := fmt.Sprintf("bytes %d-%d/%d", at.Offset, at.Size-1, at.Size); resp.Header.Get("Content-Range") != want {
			return fmt.Errorf("%w: it was asked for %s and sends %.60s", errMirror, want, strconv.Quote(resp.Header.Get("Content-Range")))
		}
		return nil
	}
	if whole >= 0 && whole != at.Size {
		return fmt.Errorf("%w: the file has %d bytes, and the manifest names %d", errMirror, whole, at.Size)
	}
	_, err := io.CopyN(io.Discard, body, at.Offset)
	return err
}

// paced has its timer start anew with each piece that came.
type paced struct {
	ctx     context.Context
	r       io.Reader
	timer   *time.Timer
	slowest time.Duration
	came    int
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.came += n; p.came >= control.MaxUpdateWrite {
		p.came = 0
		p.timer.Reset(p.slowest)
	}
	if cause := context.Cause(p.ctx); err != nil && cause != nil {
		err = cause
	}
	return n, err
}
