package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/enroll/report"
)

const (
	handshakeTime = 10 * time.Second
	requestTime   = 20 * time.Second
)

// link is one TLS connection to the hub on which both sides have proved that
// they hold the API key's keys.
type link struct {
	keys    enroll.Keys
	name    string // host name to ask for
	conn    *tls.Conn
	channel enroll.Channel
	client  *http.Client
	now     func() time.Time
}

// connect sets up TLS without judging the certificate, and the link must not
// be used for anything but enrol before enrol has succeeded.
//
// Why that is enough: what is signed in TLS says nothing to a site that never
// saw this hub, so any certificate would have to be taken at first. The
// answer to the enrolment is under the MAC of keys that only site and hub have
// and includes the exporter of this connection. Whoever ends the TLS in
// between has two connections with two exporters: it cannot make an answer for
// ours, nor will the hub take our message on theirs. What it learns by trying
// is the enrolment message, in which nothing is secret.
func connect(ctx context.Context, dial func(context.Context) (net.Conn, error), keys enroll.Keys, name string, now func() time.Time) (*link, error) {
	raw, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to the hub: %w", err)
	}
	l := &link{keys: keys, name: name, now: now}
	l.conn = tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, // see above
		ServerName:         name,
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"http/1.1"},
	})
	hctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := l.conn.HandshakeContext(hctx); err != nil {
		return nil, errors.Join(fmt.Errorf("setting up TLS with the hub: %w", err), raw.Close())
	}
	cs := l.conn.ConnectionState()
	if l.channel, err = enroll.ChannelOf(&cs); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	var used atomic.Bool
	l.client = &http.Client{
		Timeout:       requestTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			MaxConnsPerHost: 1,
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				// A second connection would be another channel, on which
				// nobody has proved anything.
				if used.Swap(true) {
					return nil, errors.New("the connection to the hub has ended")
				}
				return l.conn, nil
			},
		},
	}
	return l, nil
}

func (l *link) close() { l.conn.Close() }

// enrol says who we are and checks the answer.
func (l *link) enrol(ctx context.Context, e enroll.Enrol) (enroll.Answer, error) {
	nonce, err := enroll.NewNonce(rand.Reader)
	if err != nil {
		return enroll.Answer{}, err
	}
	e.Time, e.Nonce, e.Channel = l.now(), nonce, l.channel
	body, err := l.keys.SealEnrol(e)
	if err != nil {
		return enroll.Answer{}, fmt.Errorf("enrolling: %w", err)
	}
	answer, err := l.post(ctx, enroll.PathEnrol, body, "", http.StatusOK)
	if err != nil {
		return enroll.Answer{}, fmt.Errorf("enrolling: %w", err)
	}
	a, err := l.keys.OpenAnswer(answer, e)
	if err != nil {
		return enroll.Answer{}, fmt.Errorf("enrolling: %w", err)
	}
	return a, nil
}

// report sends one report, signed.
func (l *link) report(ctx context.Context, r report.Report) error {
	r.Version = enroll.Version
	if err := r.Validate(); err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	body, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	nonce, err := enroll.NewNonce(rand.Reader)
	if err != nil {
		return err
	}
	req := enroll.Request{Method: http.MethodPost, Path: enroll.PathReport, Body: body, Channel: l.channel}
	if _, err := l.post(ctx, enroll.PathReport, body, l.keys.Authorize(req, l.now(), nonce), http.StatusNoContent); err != nil {
		return fmt.Errorf("reporting: %w", err)
	}
	return nil
}

// upgrade switches the connection to another protocol by a signed request.
func (l *link) upgrade(ctx context.Context, path, protocol string) (io.ReadWriteCloser, error) {
	nonce, err := enroll.NewNonce(rand.Reader)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.name+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "gatehouse-agent")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	req.Header.Set("Authorization", l.keys.Authorize(enroll.Request{Method: http.MethodPost, Path: path, Channel: l.channel}, l.now(), nonce))
	late := time.AfterFunc(requestTime, l.close) // a client's timeout would end the line too
	resp, err := l.client.Transport.RoundTrip(req)
	late.Stop()
	if err != nil {
		return nil, fmt.Errorf("waiting for the hub's word: %w", err)
	}
	c, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		defer resp.Body.Close()
		return nil, fmt.Errorf("waiting for the hub's word: %w", refused(resp))
	}
	return c, nil
}

func (l *link) post(ctx context.Context, path string, body []byte, authorization string, want int) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.name+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "gatehouse-agent")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return nil, refused(resp)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, enroll.MaxMessage+1))
	if err != nil {
		return nil, fmt.Errorf("reading the hub's answer: %w", err)
	}
	return b, nil
}

// refused is the error of an answer that is not the wanted one.
func refused(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, enroll.MaxMessage+1))
	if err != nil {
		return fmt.Errorf("reading the hub's answer: %w", err)
	}
	var f hub.Refusal
	if json.Unmarshal(b, &f) != nil || enroll.CheckText(f.Text, 512) != nil || enroll.CheckText(f.Code, 32) != nil || f.Code == "" {
		return fmt.Errorf("the hub answers %s", resp.Status)
	}
	return fmt.Errorf("the hub refuses (%s): %s", f.Code, f.Text)
}
