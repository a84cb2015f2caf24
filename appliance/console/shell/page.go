package shell

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
)

//go:embed layout.html assets
var files embed.FS

// Page is one parsed page: the layout with a template of its own.
type Page struct{ t *template.Template }

// Parse reads a page's template, which defines "title" and "main", together
// with the layout. Templates are parsed when the console starts, never before:
// the other roles share the program and have no use for them.
func Parse(pages fs.FS, names ...string) Page {
	t := template.Must(template.New("layout.html").Funcs(functions).ParseFS(files, "layout.html"))
	return Page{template.Must(t.ParseFS(pages, names...))}
}

// View is what a template sees.
type View struct {
	Box    string
	Path   string
	Person account.Person
	Nav    []navEntry
	Bar    []navEntry // those of Nav that a narrow window has room for
	More   []navEntry // the others
	Error  string     // in words, above the form
	Note   string     // what was done
	Data   any
}

type navEntry struct {
	Path, Name, Icon string
	Here             bool
}

var nav = []struct {
	path, name, icon string
	right            right.Right
}{
	{"/", "Status", "status", right.ReadStatus},
	{"/targets", "Targets", "target", right.UseSessions},
	{"/sessions", "Sessions", "session", right.UseSessions},
	{"/recordings", "Recordings", "film", right.ReadRecordings},
	{"/allowlists", "Allowlists", "gate", right.Configure},
	{"/network", "Network", "net", right.Configure},
	{"/certificates", "Certificates", "seal", right.Configure},
	{"/keys", "Keys", "key", right.ManageKeys},
	{"/audit", "Audit", "audit", right.ReadAudit},
	{"/system", "System", "system", right.ReadLogs},
	{"/account", "Account", "account", right.OwnAccount},
}

func (v *Visit) view() View {
	view := View{Box: v.Box.Name, Path: v.R.URL.Path, Person: v.Person()}
	if v.Session.Stage == account.StageFull && !strings.HasPrefix(view.Path, "/welcome/") {
		for _, n := range nav {
			if right.May(view.Person.Role, n.right) {
				here := n.path == view.Path || n.path != "/" && strings.HasPrefix(view.Path, n.path+"/")
				view.Nav = append(view.Nav, navEntry{n.path, n.name, n.icon, here})
			}
		}
		view.Bar = view.Nav
		if len(view.Nav) > barRoom {
			view.Bar, view.More = view.Nav[:barRoom], view.Nav[barRoom:]
		}
	}
	return view
}

// barRoom is how many pages stand at the bottom of a phone, beside More.
const barRoom = 4

// Show answers with a page.
func (v *Visit) Show(p Page, data any) error {
	return v.show(http.StatusOK, p, "layout.html", "", data)
}

// ShowPart answers with one template of a page, without the layout.
func (v *Visit) ShowPart(p Page, name string, data any) error {
	return v.show(http.StatusOK, p, name, "", data)
}

// Part is one template of a page as a piece of another.
func (v *Visit) Part(p Page, name string, data any) (template.HTML, error) {
	view := v.view()
	view.Data = data
	var b strings.Builder
	if err := p.t.ExecuteTemplate(&b, name, view); err != nil {
		return "", fmt.Errorf("writing a part of the page: %w", err)
	}
	return template.HTML(b.String()), nil // escaped by the template that made it
}

// ShowAgain answers with a form that was filled in wrongly and says why, if
// err is a refusal; other errors are returned.
func (v *Visit) ShowAgain(p Page, data any, err error) error {
	if r, ok := asRefusal(err); ok {
		return v.show(http.StatusUnprocessableEntity, p, "layout.html", r.Text, data)
	}
	return err
}

func (v *Visit) show(status int, p Page, name, problem string, data any) error {
	view := v.view()
	view.Error, view.Data = problem, data
	view.Note = notes[v.R.URL.Query().Get("done")]
	var b bytes.Buffer // so that an error of the template is not half a page
	if err := p.t.ExecuteTemplate(&b, name, view); err != nil {
		return fmt.Errorf("writing the page: %w", err)
	}
	v.W.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.W.WriteHeader(status)
	_, err := v.W.Write(b.Bytes())
	return err
}

// notes are what a page says after something was done. They are chosen by a
// word in the address, so that nobody can make a page say something else.
var notes = map[string]string{
	"password": "The password was changed. All other sessions were ended.",
	"factor":   "The new second factor is in use.",
	"codes":    "The new recovery codes are in use; the old ones are worthless now.",
	"session":  "The session was ended.",
	"sessions": "All other sessions were ended.",
	"place":    "The settings were stored.",
	"out":      "You are signed out.",
	"clock":    "The clock was set.",
	"floor":    "The floor of the clock is the time the program was built again.",
	"tried":    "The change is in effect. Keep it below, or it goes back by itself.",
	"kept":     "The change is kept.",
	"reverted": "The change was taken back.",

	"certificate": "The source was chosen. Your browser may have to be told about the certificate that it sees now.",
	"imported":    "The certificate is good, and in use.",
	"renewing":    "A new certificate is being got.",
	"revoked":     "The certificate was revoked. Browsers see the box’s own one again.",
	"token":       "The token was revoked.",

	"recovery":        "The recovery key is confirmed. An older one is worthless now.",
	"rotated":         "The key was made anew.",
	"passphrase":      "The passphrase is asked for from the next start on.",
	"passphrase-gone": "No passphrase is asked for any more.",
	"tpm":             "The keys are sealed to the TPM.",
	"received":        "The release is here, and verified. It starts when you say so.",
	"waiting":         "The release starts by itself.",
	"restart-later":   "Planned. Who is in a session is told.",
	"stays":           "The box stays as it is.",
	"cancelled":       "It was cancelled. What runs goes on.",
	"looking":         "The mirror is being asked.",
	"updates":         "The settings of updates were stored.",

	"enrolled": "The keys are in the firmware. Restart now: Secure Boot is on from then.",

	"target":            "The target was stored.",
	"target-removed":    "The target was removed.",
	"credential":        "The credential is kept. Nobody is shown it again.",
	"credential-gone":   "The credential was removed.",
	"host-key":          "The host key was forgotten. The next terminal shows the one that is there, and asks.",
	"session-ended":     "The session was ended.",
	"recording-removed": "The recording was removed.",
}

var errorPage = `{{define "title"}}{{.Data.Title}}{{end}}{{define "main"}}<div class="narrow"><h1>{{.Data.Title}}</h1>
<p>{{.Data.Text}}</p>{{with .Data.More}}<p class="quiet">{{.}}</p>{{end}}<p><a href="/">Go to the first page</a></p></div>{{end}}`

// fail answers with a problem: a page for people, RFC 9457 for programs.
func (v *Visit) fail(status int, text, more string) {
	if v.Route.API || strings.HasPrefix(v.R.URL.Path, "/api/") {
		b, _ := json.Marshal(map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": strings.TrimSpace(text + " " + more)})
		v.W.Header().Set("Content-Type", "application/problem+json")
		v.W.WriteHeader(status)
		v.W.Write(append(b, '\n'))
		return
	}
	t := template.Must(template.New("layout.html").Funcs(functions).ParseFS(files, "layout.html"))
	p := Page{template.Must(t.Parse(errorPage))}
	if err := v.show(status, p, "layout.html", "", map[string]string{"Title": http.StatusText(status), "Text": text, "More": more}); err != nil {
		v.Box.Log.Error("an error could not be shown", "err", err)
	}
}

func (v *Visit) notFound() {
	v.fail(http.StatusNotFound, "There is nothing at this address.", "")
}

var functions = template.FuncMap{
	"asset": func(name string) (string, error) {
		b, err := files.ReadFile("assets/" + name)
		return AssetAddress(name, b), err
	},
	// Both are made by package onetime; html/template does not know the schemes.
	"dataimage": func(s string) template.URL { return template.URL(s) },
	"otpauth":   func(s string) template.URL { return template.URL(s) },
	"utc":       func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"iso":       func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"sentence":  Sentence,
	// The page of a kind of change that waits to be kept.
	"changepage": func(about string) string {
		if about == control.AboutNetwork {
			return "/network"
		}
		return "/allowlists"
	},
	"browser": browserName,
	"size":    Size,
	"ago":     Ago,
	"n":       Number,
	"told":    Told,
	"printed": Printed,
	"bytes":   func(n int64) string { return Size(uint64(max(n, 0))) },
}

// ParseTime reads a time of day as a person types it, in UTC.
func ParseTime(s string) (time.Time, error) {
	s = strings.TrimSuffix(strings.TrimSpace(strings.Replace(s, "T", " ", 1)), " UTC")
	for _, form := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04"} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, Refuse(fmt.Sprintf("%.40q is not a time. Give it in UTC as 2026-11-22 19:40:00.", s))
}

// browserName shortens what a browser calls itself to what its person calls it.
// Anyone can send any text here, so it is a hint and nothing more.
func browserName(agent string) string {
	name, system := "", ""
	for _, b := range [][2]string{{"Edg/", "Edge"}, {"OPR/", "Opera"}, {"Firefox/", "Firefox"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"}} {
		if name == "" && strings.Contains(agent, b[0]) {
			name = b[1]
		}
	}
	for _, s := range [][2]string{{"Android", "Android"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Windows", "Windows"}, {"Mac OS", "macOS"}, {"CrOS", "ChromeOS"}, {"Linux", "Linux"}} {
		if system == "" && strings.Contains(agent, s[0]) {
			system = s[1]
		}
	}
	switch {
	case agent == "":
		return "unnamed"
	case name == "" || system == "":
		return agent
	}
	return name + " on " + system
}

// Size writes bytes for people.
func Size(n uint64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.0f kB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.0f MB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
}

// Ago writes a duration for people.
func Ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%d days", d/(24*time.Hour))
}

// Number writes a number in groups of three, with the narrow space that does not break.
func Number(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

// longestTold is how much of a foreign text a page shows, in characters.
const longestTold = 300

// Told is a text that another machine sent, as it can stand in a page: one line,
// not endless, and without the characters that turn or hide what is around
// them. The template makes harmless what looks like markup.
func Told(s string) string {
	n := 0
	for i := range s {
		if n++; n > longestTold {
			return Printed(s[:i]) + "…"
		}
	}
	return Printed(s)
}

// Printed is Told of a text that is not cut, since all of it counts.
func Printed(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r == '\r':
			return ' '
		case !unicode.IsPrint(r): // controls, and those of writing direction
			return utf8.RuneError
		}
		return r
	}, s)
}

// Assets are the routes of style, script and images.
func Assets() []Route {
	entries, err := files.ReadDir("assets")
	if err != nil {
		panic(err) // the folder is part of the program
	}
	var routes []Route
	for _, e := range entries {
		routes = append(routes, Route{
			Method: http.MethodGet, Path: "/assets/" + e.Name(), States: []control.State{control.StateUnclaimed, control.StateReady, control.StateLocked},
			Handle: func(v *Visit) error {
				b, err := files.ReadFile("assets/" + e.Name())
				if err != nil {
					return err
				}
				v.W.Header().Set("Content-Type", assetTypes[path.Ext(e.Name())])
				// The address carries a hash of the content.
				v.W.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
				_, err = v.W.Write(b)
				return err
			},
		})
	}
	return routes
}
