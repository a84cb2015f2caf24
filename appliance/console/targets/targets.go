// Package targets is the pages of what sessions can reach: machines of the network, their credentials and host keys.
package targets

import (
	"context"
	"embed"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/remote"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

//go:embed *.html
var files embed.FS

// Ports are what this package asks of the broker, which writes the audit log
// before each effect.
type Ports struct {
	Targets        func(context.Context) ([]api.Target, error)
	Target         func(context.Context, int64) (api.Target, error)
	Declare        func(context.Context, broker.Who, api.TargetNew) (api.Target, error)
	Remove         func(context.Context, broker.Who, int64) error
	SetCredential  func(context.Context, broker.Who, api.CredentialSet) error
	ForgetHostKeys func(context.Context, broker.Who, int64) error
}

// Pages are the routes of the targets.
type Pages struct {
	Ports
	list, edit, credential, ask shell.Page
}

// New makes the pages.
func New(p Ports) *Pages {
	parse := func(name string) shell.Page { return shell.Parse(files, name, "parts.html") }
	return &Pages{p, parse("targets.html"), parse("edit.html"), parse("credential.html"), parse("ask.html")}
}

// Routes are this package's rows of the table. Who may open sessions sees what
// there is to open them to.
func (p *Pages) Routes() []shell.Route {
	row := func(method, path string, r right.Right, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: r, Handle: h}
	}
	routes := []shell.Route{row("GET", "/targets", right.UseSessions, p.show)}
	for _, f := range []struct {
		path    string
		get, do func(*shell.Visit) error
	}{
		{"/targets/new", p.openNew, p.store},
		{"/targets/edit", p.openEdit, p.store},
		{"/targets/credential", p.openCredential, p.setCredential},
		{"/targets/host-key", p.openHostKey, p.forget},
		{"/targets/remove", p.openRemove, p.remove},
	} {
		routes = append(routes, row("GET", f.path, right.ManageTargets, f.get), row("POST", f.path, right.ManageTargets, f.do))
	}
	return routes
}

// Row is a target as the list shows it.
type Row struct {
	api.Target
	Terminal string // address of the page that opens one
	Command  string // of the tool, where a browser cannot open the target
	Address  string
}

func rowOf(t api.Target) Row {
	r := Row{Target: t, Address: address(t.Target)}
	switch t.Kind {
	case session.Box, session.SSH:
		r.Terminal = "/sessions/terminal?" + url.Values{"target": {strconv.FormatInt(t.ID, 10)}}.Encode()
	case session.HTTP, session.HTTPS:
		r.Command = "gatehouse open " + quote(t.Name)
	default:
		r.Command = "gatehouse connect " + quote(t.Name) + " --forward " + strconv.Itoa(local(t.Port))
	}
	return r
}

// address is what follows the kind: host and port, short where the port is the usual one.
func address(t session.Target) string {
	host := t.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if t.Kind == session.Box || t.Port == t.Kind.UsualPort() {
		return t.Host
	}
	return host + ":" + strconv.Itoa(int(t.Port))
}

// local is a port on the technician's machine that anyone may take.
func local(port uint16) int {
	if port < 1024 {
		return int(port) + 10000
	}
	return int(port)
}

// quote writes a name as one word of a POSIX shell.
func quote(name string) string {
	if name != "" && !strings.HasPrefix(name, "-") && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == "" {
		return name
	}
	return "'" + strings.ReplaceAll(shell.Told(name), "'", `'\''`) + "'"
}

type listView struct {
	Rows   []Row
	Own    bool // there is no target but the box itself
	Manage bool
}

func (p *Pages) show(v *shell.Visit) error {
	list, err := p.Targets(v.Ctx())
	if err != nil {
		return err
	}
	w := listView{Own: true, Manage: right.May(v.Person().Role, right.ManageTargets)}
	for _, t := range list {
		w.Rows = append(w.Rows, rowOf(t))
		w.Own = w.Own && t.Kind == session.Box
	}
	return v.Show(p.list, w)
}

// choice is a kind of target as the form offers it.
type choice struct {
	Kind session.Kind
	Text string
}

var kinds = []choice{
	{session.SSH, "SSH: terminal, files, forwarded ports"},
	{session.HTTP, "Web page (HTTP)"},
	{session.HTTPS, "Web page (HTTPS)"},
	{session.RDP, "Windows desktop (RDP)"},
	{session.VNC, "Desktop (VNC)"},
	{session.TCP, "Any other TCP port"},
}

type form struct {
	ID                     int64
	Name, Host, Port, Idle string
	Kind                   session.Kind
	Recording              session.Recording
	Kinds                  []choice
	Kept                   bool // a credential or a host key, which goes if the target moves
}

func formOf(t api.Target) form {
	f := form{ID: t.ID, Name: t.Name, Host: t.Host, Kind: t.Kind, Recording: t.Recording, Idle: strconv.Itoa(t.Idle), Kinds: kinds, Kept: t.Credential != "" || len(t.HostKeys) > 0}
	if t.Port != 0 {
		f.Port = strconv.Itoa(int(t.Port))
	}
	return f
}

func (p *Pages) openNew(v *shell.Visit) error {
	return v.Show(p.edit, form{Kind: session.SSH, Recording: session.RecordingAllowed, Idle: "30", Kinds: kinds})
}

// named is the target that the address or the form names.
func (p *Pages) named(v *shell.Visit) (api.Target, error) {
	id, err := strconv.ParseInt(v.R.FormValue("id"), 10, 64)
	if err != nil || id < 0 {
		return api.Target{}, shell.Refuse("There is no such target. It may have been removed; the page Targets lists those that are.")
	}
	return p.Target(v.Ctx(), id)
}

// declared is one that a person has declared, which the box itself is not.
func (p *Pages) declared(v *shell.Visit) (api.Target, error) {
	t, err := p.named(v)
	if err == nil && t.Kind == session.Box {
		err = shell.Refuse("The box itself is always a target. It cannot be changed or removed.")
	}
	return t, err
}

func (p *Pages) openEdit(v *shell.Visit) error {
	t, err := p.declared(v)
	if err != nil {
		return err
	}
	return v.Show(p.edit, formOf(t))
}

func (p *Pages) store(v *shell.Visit) error {
	value := func(name string) string { return strings.TrimSpace(v.R.PostFormValue(name)) }
	f := form{Name: value("name"), Kind: session.Kind(value("kind")), Host: strings.ToLower(value("host")), Port: value("port"), Idle: value("idle"),
		Recording: session.Recording(value("recording")), Kinds: kinds}
	if v.Route.Path == "/targets/edit" {
		t, err := p.declared(v)
		if err != nil {
			return err
		}
		f.ID, f.Kept = t.ID, t.Credential != "" || len(t.HostKeys) > 0
	}
	q, err := f.read()
	if err == nil {
		_, err = p.Declare(v.Ctx(), remote.Who(v), q)
	}
	if err != nil {
		return v.ShowAgain(p.edit, f, err)
	}
	v.Redirect("/targets?done=target")
	return nil
}

// read makes a target of what was typed. What may be one the broker judges.
func (f form) read() (api.TargetNew, error) {
	t := session.Target{Name: f.Name, Kind: f.Kind, Host: f.Host, Port: f.Kind.UsualPort()}
	if !slices.ContainsFunc(kinds, func(k choice) bool { return k.Kind == f.Kind }) {
		return api.TargetNew{}, shell.Refuse("Choose what speaks there.")
	}
	if f.Port != "" {
		n, err := strconv.ParseUint(f.Port, 10, 16)
		if err != nil || n == 0 {
			return api.TargetNew{}, shell.Refuse("The port is a number from 1 to 65535.")
		}
		t.Port = uint16(n)
	}
	if t.Port == 0 {
		return api.TargetNew{}, shell.Refuse("There is no usual port for this kind: give one, from 1 to 65535.")
	}
	idle, err := strconv.Atoi(f.Idle)
	if err != nil {
		return api.TargetNew{}, shell.Refuse("Say after how many minutes without input a session ends, or 0 for never.")
	}
	return api.TargetNew{ID: f.ID, Target: t, Recording: f.Recording, Idle: idle}, nil
}

// credentialForm never holds a secret: what was typed wrongly is typed again.
type credentialForm struct {
	api.Target
	Typed string // user
}

func (p *Pages) withCredential(v *shell.Visit) (api.Target, error) {
	t, err := p.named(v)
	if err == nil && t.Kind != session.SSH {
		err = shell.Refuse("Only for SSH does the agent sign in for people. What else there is asks them itself.")
	}
	return t, err
}

func (p *Pages) openCredential(v *shell.Visit) error {
	t, err := p.withCredential(v)
	if err != nil {
		return err
	}
	return v.Show(p.credential, credentialForm{t, t.User})
}

func (p *Pages) setCredential(v *shell.Visit) error {
	t, err := p.withCredential(v)
	if err != nil {
		return err
	}
	if v.R.PostFormValue("do") == "remove" {
		if err := p.SetCredential(v.Ctx(), remote.Who(v), api.CredentialSet{ID: t.ID}); err != nil {
			return err
		}
		v.Redirect("/targets?done=credential-gone")
		return nil
	}
	q := api.CredentialSet{ID: t.ID, User: strings.TrimSpace(v.R.PostFormValue("user")), Password: v.R.PostFormValue("password"),
		PrivateKey: strings.ReplaceAll(strings.TrimSpace(v.R.PostFormValue("private-key")), "\r\n", "\n")}
	if q.PrivateKey != "" {
		q.PrivateKey += "\n"
	}
	if err = checkCredential(q); err == nil {
		err = p.SetCredential(v.Ctx(), remote.Who(v), q)
	}
	if err != nil {
		return v.ShowAgain(p.credential, credentialForm{t, q.User}, err)
	}
	v.Redirect("/targets?done=credential")
	return nil
}

func checkCredential(q api.CredentialSet) error {
	switch {
	case q.User == "":
		return shell.Refuse("Say as which user the agent signs in there.")
	case q.Password == "" && q.PrivateKey == "":
		return shell.Refuse("Give the password or a private key. Nothing was changed.")
	case q.Password != "" && q.PrivateKey != "":
		return shell.Refuse("Give the password or a private key, not both: one target has one credential.")
	}
	return nil
}

// question is something that is asked before it is done.
type question struct {
	api.Target
	Keys bool // host keys are forgotten; else the target goes
}

func (p *Pages) openHostKey(v *shell.Visit) error {
	t, err := p.named(v)
	if err == nil && len(t.HostKeys) == 0 {
		err = shell.Refuse("No host key of this target is pinned. Its first terminal shows the key and asks.")
	}
	if err != nil {
		return err
	}
	return v.Show(p.ask, question{t, true})
}

func (p *Pages) forget(v *shell.Visit) error {
	t, err := p.named(v)
	if err == nil {
		err = p.ForgetHostKeys(v.Ctx(), remote.Who(v), t.ID)
	}
	if err != nil {
		return err
	}
	v.Redirect("/targets?done=host-key")
	return nil
}

func (p *Pages) openRemove(v *shell.Visit) error {
	t, err := p.declared(v)
	if err != nil {
		return err
	}
	return v.Show(p.ask, question{t, false})
}

func (p *Pages) remove(v *shell.Visit) error {
	t, err := p.declared(v)
	if err == nil {
		err = p.Remove(v.Ctx(), remote.Who(v), t.ID)
	}
	if err != nil {
		return err
	}
	v.Redirect("/targets?done=target-removed")
	return nil
}
