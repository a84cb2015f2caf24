// Package remote is the API of targets, sessions and recordings, as tool and pages call it (package session/api).
package remote

import (
	"bufio"
	"errors"
	"net/http"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/account/right"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// Who is the visitor as the broker knows people.
func Who(v *shell.Visit) broker.Who {
	return broker.Who{Person: v.Person(), SignIn: v.Session.ID, From: v.From(), Source: v.Address(), Host: v.R.Host, Local: v.Arrived()}
}

// Routes are this package's rows of the table.
func Routes(b *broker.Broker) []shell.Route {
	row := func(method, path string, r right.Right, h func(*shell.Visit) error) shell.Route {
		return shell.Route{Method: method, Path: path, States: []control.State{control.StateReady}, Need: shell.Full, Right: r, API: true, Handle: h}
	}
	a := handlers{b}
	notice := row("GET", api.NoticePath, right.UseSessions, a.notice)
	notice.Quiet = true
	return []shell.Route{
		row("GET", api.Targets, right.UseSessions, a.targets), row("POST", api.Targets, right.ManageTargets, a.declare(false)),
		row("POST", api.TargetChange, right.ManageTargets, a.declare(true)), row("POST", api.TargetRemove, right.ManageTargets, a.remove),
		row("POST", api.Credential, right.ManageTargets, a.credential), row("POST", api.HostKeys, right.ManageTargets, a.forget),
		row("GET", api.Sessions, right.UseSessions, a.sessions), row("POST", api.Sessions, right.UseSessions, a.ask),
		row("POST", api.Meet, right.UseSessions, a.meet), row("POST", api.Signal, right.UseSessions, a.signal), row("POST", api.End, right.UseSessions, a.end), notice,
		row("GET", api.Recordings, right.ReadRecordings, a.recordings), row("GET", api.Recording, right.ReadRecordings, a.cast),
		row("POST", api.RecordingEnd, right.ManageSessions, a.removeRecording),
	}
}

type handlers struct{ *broker.Broker }

// answer writes JSON, or passes the error on. What is not there is told apart
// from what is refused: a tool stops asking for it.
func answer[T any](v *shell.Visit, status int, t T, err error) error {
	var r *account.Refusal
	if errors.Is(err, broker.ErrNone) && errors.As(err, &r) {
		return v.JSON(http.StatusNotFound, map[string]string{"detail": r.Text})
	}
	if err != nil {
		return err
	}
	return v.JSON(status, t)
}

func (a handlers) targets(v *shell.Visit) error {
	list, err := a.Targets(v.Ctx())
	return answer(v, http.StatusOK, api.TargetList{Targets: list}, err)
}

func (a handlers) declare(known bool) func(*shell.Visit) error {
	status := http.StatusCreated
	if known {
		status = http.StatusOK
	}
	return func(v *shell.Visit) error {
		var q api.TargetNew
		if err := v.Decode(&q); err != nil {
			return err
		}
		if known != (q.ID != 0) {
			return shell.Refuse("A new target has no id, and a change names one.")
		}
		t, err := a.Declare(v.Ctx(), Who(v), q)
		return answer(v, status, t, err)
	}
}

func (a handlers) which(v *shell.Visit, do func(id int64) error) error {
	var q api.Which
	if err := v.Decode(&q); err != nil {
		return err
	}
	return answer(v, http.StatusOK, struct{}{}, do(q.ID))
}

func (a handlers) remove(v *shell.Visit) error {
	return a.which(v, func(id int64) error { return a.Remove(v.Ctx(), Who(v), id) })
}

func (a handlers) forget(v *shell.Visit) error {
	return a.which(v, func(id int64) error { return a.ForgetHostKeys(v.Ctx(), Who(v), id) })
}

func (a handlers) credential(v *shell.Visit) error {
	var q api.CredentialSet
	if err := v.Decode(&q); err != nil {
		return err
	}
	return answer(v, http.StatusOK, struct{}{}, a.SetCredential(v.Ctx(), Who(v), q))
}

func (a handlers) sessions(v *shell.Visit) error {
	list, err := a.Sessions(v.Ctx(), Who(v))
	return answer(v, http.StatusOK, api.SessionList{Sessions: list}, err)
}

func (a handlers) ask(v *shell.Visit) error {
	var q api.Ask
	if err := v.Decode(&q); err != nil {
		return err
	}
	g, err := a.Ask(v.Ctx(), Who(v), q)
	return answer(v, http.StatusCreated, g, err)
}

func (a handlers) meet(v *shell.Visit) error {
	var q api.MeetAsk
	if err := v.Decode(&q); err != nil {
		return err
	}
	m, err := a.Meet(v.Ctx(), Who(v), q.Session)
	return answer(v, http.StatusOK, m, err)
}

func (a handlers) signal(v *shell.Visit) error {
	var q api.SignalAsk
	if err := v.Decode(&q); err != nil {
		return err
	}
	s, err := a.Signal(v.Ctx(), Who(v), q)
	return answer(v, http.StatusOK, s, err)
}

func (a handlers) end(v *shell.Visit) error {
	var q api.EndAsk
	if err := v.Decode(&q); err != nil {
		return err
	}
	return answer(v, http.StatusOK, struct{}{}, a.End(v.Ctx(), Who(v), q.Session))
}

func (a handlers) notice(v *shell.Visit) error {
	return v.JSON(http.StatusOK, api.NoticeBoard{Notice: a.Notice()})
}

func (a handlers) recordings(v *shell.Visit) error {
	list, err := a.Recordings(v.Ctx())
	return answer(v, http.StatusOK, api.RecordingList{Recordings: list}, err)
}

// castTime is for a recording of a day over a slow line.
const castTime = 10 * time.Minute

func (a handlers) cast(v *shell.Visit) error {
	var id session.ID
	if id.UnmarshalText([]byte(v.R.URL.Query().Get("session"))) != nil {
		return shell.Refuse("Name the session, by its id of 32 hexadecimal digits.")
	}
	return Cast(v, a.Broker, id)
}

// Cast answers with a recording as asciicast v2, to be stored as a file.
func Cast(v *shell.Visit, b *broker.Broker, id session.ID) error {
	if err := http.NewResponseController(v.W).SetWriteDeadline(time.Now().Add(castTime)); err != nil {
		return err
	}
	w := bufio.NewWriterSize(headed{v.W, id}, 32<<10)
	if err := b.Cast(v.Ctx(), Who(v), id, w); err != nil {
		return err
	}
	return w.Flush()
}

// headed sets the headers at the first byte: an error before it is a page.
type headed struct {
	http.ResponseWriter
	id session.ID
}

func (h headed) Write(b []byte) (int, error) {
	h.Header().Set("Content-Type", "application/x-asciicast")
	h.Header().Set("Content-Disposition", `attachment; filename="session-`+h.id.String()+`.cast"`)
	return h.ResponseWriter.Write(b)
}

func (a handlers) removeRecording(v *shell.Visit) error {
	var q api.EndAsk
	if err := v.Decode(&q); err != nil {
		return err
	}
	return answer(v, http.StatusOK, struct{}{}, a.RemoveRecording(v.Ctx(), Who(v), q.Session))
}
