package shell

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/handover"
	"gatehouse/appliance/token"
	"gatehouse/netfilter/allowlist"
)

// Box is what the pages work with.
type Box struct {
	Name     string
	Accounts *account.Accounts // nil while locked
	Tokens   *token.Tokens     // nil while locked
	Wall     func() time.Time
	// Scopes is what a source may reach now; nil: everything.
	Scopes func(netip.Addr) allowlist.Scope
	Status func(context.Context) (control.Status, error)
	// Audit returns when the event is on disk. A handler calls it before the
	// change it is about, and does not make the change if it fails.
	Audit func(context.Context, control.Event) error
	Log   interface {
		Error(msg string, args ...any)
	}
}

// Visit is one request of one browser.
type Visit struct {
	W       http.ResponseWriter
	R       *http.Request
	Box     *Box
	Route   Route
	Origin  account.Origin
	Session account.Session // zero for Anyone
	router  *Router
	token   string
}

// Ctx is the request's context.
func (v *Visit) Ctx() context.Context { return v.R.Context() }

// Person is who asks.
func (v *Visit) Person() account.Person { return v.Session.Person }

// Address is the exact address that the connection comes from; not valid for
// the box's own agent.
func (v *Visit) Address() netip.Addr {
	a, err := netip.ParseAddrPort(v.R.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap().WithZone("")
}

// Local is the address of the box that the connection goes to.
func (v *Visit) Local() netip.Addr {
	if c := connOf(v.R); c != nil {
		return c.Meta().Local.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// Arrived is Local with the port.
func (v *Visit) Arrived() netip.AddrPort {
	if c := connOf(v.R); c != nil {
		return netip.AddrPortFrom(v.Local(), c.Meta().Local.Port())
	}
	return netip.AddrPort{}
}

// Accepted is when the connection was accepted, in ns of CLOCK_BOOTTIME.
func (v *Visit) Accepted() int64 {
	if c := connOf(v.R); c != nil {
		return c.Meta().Accepted
	}
	return 0
}

// CloseAfter ends the connection once the answer is sent, so that what the
// browser does next comes over a new one. For HTTP/2 the server says GOAWAY.
func (v *Visit) CloseAfter() { v.W.Header().Set("Connection", "close") }

// inScope judges the source by the lists of now, not by those of when it
// connected: a browser keeps a connection for hours.
func (v *Visit) inScope() bool {
	if v.Box.Scopes == nil {
		return true
	}
	if c := connOf(v.R); c != nil && c.Meta().Kind == handover.Agent {
		return true // the box itself
	}
	return v.Box.Scopes(v.Address())&v.Route.scope() != 0
}

// bind has the connection end when its source loses the route's scope. HTTP/1.1
// does one thing at a time on a connection, and a route that takes it over
// (Upgrade) does nothing else on it any more; HTTP/2 carries many, each judged
// when it begins. It comes before the first judgement, or a change of the lists
// between the two would be missed.
func (v *Visit) bind() {
	if c := connOf(v.R); c != nil && v.R.ProtoMajor == 1 {
		c.Bind(v.Route.scope())
	}
}

// From is the asker's address, for the audit log.
func (v *Visit) From() string { return v.Origin.From() }

// The cookies. __Host- makes browsers insist on Secure, this host and path /.
const (
	sessionCookie = "__Host-gatehouse"
	deviceCookie  = "__Host-gatehouse-browser"
)

const maxBody = 64 << 10

func (v *Visit) serve(route Route) {
	v.Route = route
	v.Origin = originOf(v.R)
	if !route.API || v.R.Method == http.MethodPost && !strings.HasPrefix(route.Path, "/api/v1/site/") {
		v.R.Body = http.MaxBytesReader(v.W, v.R.Body, max(maxBody, route.Body))
	}
	v.bind()
	if !v.inScope() {
		v.fail(http.StatusForbidden, "Your address is in no allowlist for this.", "Someone who gets in can add "+v.Address().String()+" to a list for it.")
		return
	}
	ok, err := v.admitted()
	if err == nil && ok {
		err = route.Handle(v)
	}
	v.answer(err)
}

// answer says what went wrong, in words to the person or in the log.
func (v *Visit) answer(err error) {
	var tooBig *http.MaxBytesError
	refusal, refused := asRefusal(err)
	switch {
	case err == nil:
	case refused:
		v.fail(http.StatusForbidden, refusal.Text, "")
	case errors.As(err, &tooBig):
		v.fail(http.StatusRequestEntityTooLarge, "What was sent is too large.", "")
	case errors.Is(err, context.Canceled) && v.Ctx().Err() != nil: // the browser went away
	default:
		v.Box.Log.Error("a request failed", "method", v.R.Method, "path", v.Route.Path, "err", err)
		more := "" // strangers are not told how we are made
		if v.Session.ID != 0 {
			more = err.Error()
		}
		v.fail(http.StatusInternalServerError, "That did not work. The log of the console says why.", more)
	}
}

// admitted looks at the session and says whether the handler may run; if not,
// the answer has been given.
func (v *Visit) admitted() (bool, error) {
	switch v.Route.Need {
	case Anyone:
		return true, nil
	case Program:
		return v.program()
	}
	if c, err := v.R.Cookie(sessionCookie); err == nil {
		v.token = c.Value
	}
	s, err := v.Box.Accounts.Session(v.Ctx(), v.token, !v.Route.Quiet)
	switch {
	case errors.Is(err, account.ErrNoSession):
		return false, v.elsewhere(http.StatusUnauthorized, "/sign-in", "Sign in first.")
	case err != nil:
		return false, err
	}
	v.Session = s
	switch need := v.Route.Need; {
	case need == Code && s.Stage == account.StageCode, need == Enrol && s.Stage == account.StageEnrol:
		return true, nil
	case s.Stage == account.StageCode:
		return false, v.elsewhere(http.StatusUnauthorized, "/sign-in/code", "The second step of the sign-in is missing.")
	case need == Code:
		return false, v.elsewhere(http.StatusConflict, "/", "You are signed in.")
	case s.Stage == account.StageEnrol:
		return false, v.elsewhere(http.StatusForbidden, "/welcome/clock", "A second factor has to be set up first.")
	case need == Enrol:
		return true, nil
	case !right.May(s.Person.Role, v.Route.Right):
		return false, v.elsewhere(http.StatusForbidden, "", "Your role ("+string(s.Person.Role)+") has no right to this.")
	case v.Route.Fresh && !v.Box.Accounts.Fresh(s):
		return false, v.elsewhere(http.StatusForbidden, "/account/confirm", "Confirm that it is you first.")
	}
	return true, nil
}

// elsewhere sends a person on, and a program away.
func (v *Visit) elsewhere(status int, path, why string) error {
	if v.Route.API || v.Route.Quiet || path == "" {
		v.fail(status, why, "")
		return nil
	}
	if next := v.router.page(v.R.Method, v.R.URL.Path); path != "/" && next != "/" {
		path += "?next=" + url.QueryEscape(next)
	}
	v.Redirect(path)
	return nil
}

// Redirect answers 303 to a path of our own.
func (v *Visit) Redirect(path string) {
	v.W.Header().Set("Location", path)
	v.W.WriteHeader(http.StatusSeeOther)
}

// Next is the path to go on to that the form or address names, if it is one of
// our pages, else fallback. Anything but a plain path would be an open redirect.
func (v *Visit) Next(fallback string) string {
	next := v.R.FormValue("next")
	if len(next) < 2 || len(next) > 100 || next[0] != '/' || strings.Trim(next, "abcdefghijklmnopqrstuvwxyz-/.") != "" || strings.Contains(next, "//") {
		return fallback
	}
	return next
}

// Record appends an event of this person to the audit log.
func (v *Visit) Record(action, object string, detail map[string]string) error {
	return v.RecordAs(v.Person().Email, action, object, "ok", detail)
}

// RecordAs is Record for someone who is not signed in yet.
func (v *Visit) RecordAs(actor, action, object, outcome string, detail map[string]string) error {
	err := v.Box.Audit(v.Ctx(), control.Event{Actor: actor, Action: action, Object: object, From: v.From(), Outcome: outcome, Detail: detail})
	if err != nil {
		return fmt.Errorf("the audit log could not be written, so %s was not done: %w", action, err)
	}
	return nil
}

// SignIn opens a session at a stage in the place of the one before.
func (v *Visit) SignIn(p account.Person, stage account.Stage) error {
	if v.token == "" {
		if c, err := v.R.Cookie(sessionCookie); err == nil {
			v.token = c.Value
		}
	}
	token, s, err := v.Box.Accounts.Start(v.Ctx(), p, stage, v.Origin, v.token)
	if err != nil {
		return err
	}
	v.Session, v.token = s, token
	setCookie(v.W, sessionCookie, token, 0)
	if stage != account.StageFull {
		return nil
	}
	device, err := v.Box.Accounts.KnowDevice(v.Ctx(), p, v.Origin.Device)
	if err != nil {
		return err
	}
	v.Origin.Device = device
	setCookie(v.W, deviceCookie, device, 400*24*time.Hour)
	return nil
}

// SignOut ends the session and removes its cookie.
func (v *Visit) SignOut() error {
	setCookie(v.W, sessionCookie, "", -1)
	return v.Box.Accounts.End(v.Ctx(), v.Person(), v.Session.ID)
}

func setCookie(w http.ResponseWriter, name, value string, age time.Duration) {
	http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", MaxAge: int(age / time.Second), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// JSON answers with a document.
func (v *Visit) JSON(status int, document any) error {
	b, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	v.W.Header().Set("Content-Type", "application/json")
	v.W.WriteHeader(status)
	_, err = v.W.Write(append(b, '\n'))
	return err
}

// Decode reads a JSON document with known fields only.
func (v *Visit) Decode(into any) error {
	if ct, _, _ := strings.Cut(v.R.Header.Get("Content-Type"), ";"); ct != "application/json" {
		return Refuse("Send a document of type application/json.")
	}
	d := json.NewDecoder(v.R.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil || d.More() {
		return Refuse("The document is not the JSON that is expected here.")
	}
	return nil
}

// asRefusal finds what a person may be told of an error: our own refusals, and
// those of the privileged process, which are sentences too.
func asRefusal(err error) (*account.Refusal, bool) {
	var r *account.Refusal
	if errors.As(err, &r) {
		return r, true
	}
	var c *control.Error
	if errors.As(err, &c) && c.Code != control.CodeDenied {
		return &account.Refusal{Text: Sentence(c.Text)}, true
	}
	return nil, false
}

// Sentence makes one of an error's text.
func Sentence(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + strings.TrimSuffix(s[1:], ".") + "."
}

// Refuse is an error that is shown to the person in these words.
func Refuse(text string) error { return &account.Refusal{Text: text} }

type originKey struct{}

// Connected notes the connection that a request came over.
func Connected(ctx context.Context, conn *handover.Conn) context.Context {
	return context.WithValue(ctx, originKey{}, conn)
}

func connOf(r *http.Request) *handover.Conn {
	c, _ := r.Context().Value(originKey{}).(*handover.Conn)
	return c
}

// originOf takes the address from the connection alone: headers of proxies
// can be written by anyone (ASVS 4.1.3).
func originOf(r *http.Request) account.Origin {
	o := account.Origin{Source: netip.PrefixFrom(netip.IPv6Unspecified(), 128), Agent: r.UserAgent()}
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		o.Source, o.Address = handover.Source(a.Addr()), a.Addr().Unmap().WithZone("")
	}
	if c, err := r.Cookie(deviceCookie); err == nil {
		o.Device = c.Value
	}
	return o
}
