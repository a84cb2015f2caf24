// Package hub answers sites: it takes their enrolment and their reports, and keeps the newest of each in memory.
package hub

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/enroll/report"
)

// Interval is how often a site is asked to report its health.
const Interval = 10 * time.Second

// maxSites bounds what is kept in memory; each site is at most a report.
const maxSites = 1024

// Store knows the sites whose key a person gave.
type Store interface {
	// Keys returns the keys of an id, or enroll.ErrUnknownID.
	Keys(ctx context.Context, id enroll.ID) (enroll.Keys, error)
	// Enrolled is told of each enrolment that was verified, before it is
	// answered; an error refuses it.
	Enrolled(ctx context.Context, e enroll.Enrol) error
}

// Own is the Store of a box that has no site but itself.
type Own enroll.Keys

// Keys knows one id.
func (o Own) Keys(_ context.Context, id enroll.ID) (enroll.Keys, error) {
	if id != o.ID {
		return enroll.Keys{}, enroll.ErrUnknownID
	}
	return enroll.Keys(o), nil
}

// Enrolled has nothing to keep: whoever has the own key is this box.
func (o Own) Enrolled(context.Context, enroll.Enrol) error { return nil }

// Site is what is known of one site now.
type Site struct {
	ID          enroll.ID
	Site        string // its own id
	Metadata    enroll.Metadata
	Device      []byte // its key, PKIX DER
	From        string // address and port it came from, "" or "@" for the local socket
	EnrolledAt  time.Time
	Inventory   *report.Inventory // nil until reported; not to be changed
	InventoryAt time.Time         // by the hub's clock
	Health      *report.Health    // nil until reported; not to be changed
	HealthAt    time.Time         // by the hub's clock
}

// Hub is the hub's side. Its methods may run at the same time.
type Hub struct {
	store Store
	now   func() time.Time
	log   *slog.Logger
	seen  *enroll.Replay
	serve Line

	mu    sync.Mutex
	sites map[enroll.ID]*Site
}

// Line serves the connection on which a site waits for our word, until it
// ends, and closes it. What was read of it before is in r.
type Line func(ctx context.Context, site string, c net.Conn, r io.Reader) error

// New makes a Hub.
func New(store Store, serve Line, now func() time.Time, log *slog.Logger) *Hub {
	return &Hub{store: store, serve: serve, now: now, log: log, seen: enroll.NewReplay(), sites: make(map[enroll.ID]*Site)}
}

// Sites returns what is known, newest report first.
func (h *Hub) Sites() []Site {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Site, 0, len(h.sites))
	for _, s := range h.sites {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Site) int {
		return cmp.Or(b.HealthAt.Compare(a.HealthAt), cmp.Compare(a.Site, b.Site))
	})
	return out
}

// HandleEnrol answers POST enroll.PathEnrol.
func (h *Hub) HandleEnrol(w http.ResponseWriter, r *http.Request) {
	answer, err := h.enrol(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if _, err := w.Write(answer); err != nil {
		h.log.Info("a site did not take its answer", "from", r.RemoteAddr, "err", err)
	}
}

func (h *Hub) enrol(r *http.Request) ([]byte, error) {
	body, ch, err := read(r, enroll.MaxMessage)
	if err != nil {
		return nil, err
	}
	id, err := enroll.Claims(body)
	if err != nil {
		return nil, err
	}
	keys, err := h.store.Keys(r.Context(), id)
	if err != nil {
		return nil, err
	}
	now := h.now()
	e, err := keys.OpenEnrol(body, now, ch, h.seen)
	if err != nil {
		return nil, err
	}
	if err := h.store.Enrolled(r.Context(), e); err != nil {
		return nil, err
	}
	answer, err := keys.SealAnswer(e, now, Interval)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sites[id]
	if s == nil {
		if len(h.sites) >= maxSites {
			return nil, fmt.Errorf("%d sites are connected, the limit of this hub", maxSites)
		}
		s = &Site{ID: id}
		h.sites[id] = s
	}
	s.Site, s.Metadata, s.Device, s.From, s.EnrolledAt = e.Site, e.Metadata, e.Device, r.RemoteAddr, now
	return answer, nil
}

// HandleReport answers POST enroll.PathReport: 204.
func (h *Hub) HandleReport(w http.ResponseWriter, r *http.Request) {
	if err := h.report(r); err != nil {
		h.refuse(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (h *Hub) report(r *http.Request) error {
	id, body, err := h.authentic(r)
	if err != nil {
		return err
	}
	rep, err := report.Parse(body)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sites[id]
	if s == nil {
		return errEnrolFirst
	}
	now := h.now()
	if rep.Inventory != nil {
		s.Inventory, s.InventoryAt = rep.Inventory, now
	}
	if rep.Health != nil {
		s.Health, s.HealthAt = rep.Health, now
	}
	return nil
}

// authentic checks a signed request and returns who sent it, and its body.
func (h *Hub) authentic(r *http.Request) (enroll.ID, []byte, error) {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return enroll.ID{}, nil, fmt.Errorf("%w: there are %d Authorization headers", enroll.ErrMalformed, len(headers))
	}
	auth, err := enroll.ParseAuthorization(headers[0])
	if err != nil {
		return enroll.ID{}, nil, err
	}
	keys, err := h.store.Keys(r.Context(), auth.ID)
	if err != nil {
		return enroll.ID{}, nil, err
	}
	body, ch, err := read(r, report.MaxReport)
	if err != nil {
		return enroll.ID{}, nil, err
	}
	req := enroll.Request{Method: r.Method, Path: r.URL.RequestURI(), Body: body, Channel: ch}
	return auth.ID, body, keys.Verify(auth, req, h.now(), h.seen)
}

// HandleAttend answers POST attend.Path: it switches the connection to the
// line on which the site waits, and serves that until it ends. Of HTTP/1.1 the
// whole connection is the request's, so the line is on the channel that was
// proved.
func (h *Hub) HandleAttend(w http.ResponseWriter, r *http.Request) {
	site, err := h.attending(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		h.refuse(w, r, fmt.Errorf("%w: the line needs HTTP/1.1", enroll.ErrMalformed))
		return
	}
	_, err = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + attend.Protocol + "\r\n\r\n")
	if err = errors.Join(err, rw.Flush()); err != nil {
		c.Close()
		return
	}
	// The handler's place is given back: a line stays for as long as it can.
	go func() {
		if err := h.serve(context.WithoutCancel(r.Context()), site, c, rw.Reader); err != nil {
			h.log.Info("a site's line ended", "err", err)
		}
	}()
}

func (h *Hub) attending(r *http.Request) (string, error) {
	id, _, err := h.authentic(r)
	if err != nil {
		return "", err
	}
	if r.Header.Get("Upgrade") != attend.Protocol {
		return "", fmt.Errorf("%w: the line speaks %s", enroll.ErrMalformed, attend.Protocol)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sites[id]
	if s == nil {
		return "", errEnrolFirst
	}
	return s.Site, nil
}

var (
	errEnrolFirst = errors.New("the hub was started anew: enrol again")
	errTooLarge   = errors.New("the request is too large")
)

func read(r *http.Request, limit int64) ([]byte, enroll.Channel, error) {
	ch, err := enroll.ChannelOf(r.TLS)
	if err != nil {
		return nil, ch, err
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, ch, fmt.Errorf("%w: it could not be read: %w", enroll.ErrMalformed, err)
	}
	if int64(len(b)) > limit {
		return nil, ch, fmt.Errorf("%w: over %d bytes", errTooLarge, limit)
	}
	return b, ch, nil
}

// refusals maps reasons to what goes over the wire; docs/protocol.md lists them.
var refusals = []struct {
	err    error
	status int
	code   string
}{
	{errTooLarge, http.StatusRequestEntityTooLarge, "too-large"},
	{errEnrolFirst, http.StatusConflict, "enrol-first"},
	{enroll.ErrUnknownID, http.StatusForbidden, "unknown-key"},
	{enroll.ErrMAC, http.StatusForbidden, "mac"},
	{enroll.ErrExporter, http.StatusForbidden, "channel"},
	{enroll.ErrSkew, http.StatusForbidden, "clock"},
	{enroll.ErrReplay, http.StatusForbidden, "replay"},
	{enroll.ErrVersion, http.StatusBadRequest, "version"},
	{enroll.ErrMalformed, http.StatusBadRequest, "malformed"},
}

// Refusal is the body of an answer that refuses.
type Refusal struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

func (h *Hub) refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, f := http.StatusInternalServerError, Refusal{"failed", "the hub could not do it; its log says why"}
	for _, x := range refusals {
		if errors.Is(err, x.err) {
			status, f = x.status, Refusal{x.code, err.Error()}
			break
		}
	}
	h.log.Warn("a site was refused", "path", r.URL.Path, "from", r.RemoteAddr, "code", f.Code, "err", err)
	b, err := json.Marshal(f)
	if err != nil {
		h.log.Error("writing a refusal", "err", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if _, err := w.Write(b); err != nil {
		h.log.Info("a site did not take its refusal", "from", r.RemoteAddr, "err", err)
	}
}
