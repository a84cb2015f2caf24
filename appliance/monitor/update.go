package monitor

import (
	"context"

	"gatehouse/appliance/control"
)

// Systems is the two systems of a box. An error is shown to the person who asked.
type Systems interface {
	View(ctx context.Context) (control.Update, error)
	Begin(ctx context.Context, q control.UpdateBegin) (control.UpdateOffset, error)
	Write(ctx context.Context, q control.UpdateWrite) (control.UpdateOffset, error)
	// Start has the machine restarted into what was received; when it returns nil
	// that is about to happen, or waits for the window.
	Start(ctx context.Context, q control.UpdateStart) error
	Cancel(ctx context.Context) error
	Set(ctx context.Context, s control.UpdateSettings) error
}

// noSystems is why this box cannot be updated from here.
func (m *Monitor) noSystems() error {
	text := "this form of Gatehouse runs on a system of somebody else's: it is updated as its packages are"
	if m.cfg.NoSystems != "" {
		text = "no update can be taken: " + m.cfg.NoSystems
	}
	return &control.Error{Code: control.CodeState, Text: text}
}

func (m *Monitor) registerUpdate(s *control.Server) {
	control.Handle(s, control.OpUpdate, func(ctx context.Context, _ control.Role, _ control.None) (control.Update, error) {
		if m.cfg.Systems == nil {
			return control.Update{}, m.noSystems()
		}
		return m.cfg.Systems.View(ctx)
	})
	control.Handle(s, control.OpUpdateBegin, func(ctx context.Context, _ control.Role, q control.UpdateBegin) (at control.UpdateOffset, err error) {
		err = m.changeSystems(ctx, q.By, "update offered", "", func(u Systems) error {
			at, err = u.Begin(ctx, q)
			return err
		})
		return at, err
	})
	// A piece is not an event: what began, and what came of it, are.
	control.Handle(s, control.OpUpdateWrite, func(ctx context.Context, _ control.Role, q control.UpdateWrite) (control.UpdateOffset, error) {
		if m.cfg.Systems == nil {
			return control.UpdateOffset{}, m.noSystems()
		}
		if len(q.Data) > control.MaxUpdateWrite {
			return control.UpdateOffset{}, &control.Error{Code: control.CodeInvalid, Text: "a piece of a system is too long"}
		}
		return m.cfg.Systems.Write(ctx, q)
	})
	control.Handle(s, control.OpUpdateStart, func(ctx context.Context, _ control.Role, q control.UpdateStart) (control.None, error) {
		return control.None{}, m.changeSystems(ctx, q.By, "update started", "", func(u Systems) error { return u.Start(ctx, q) })
	})
	control.Handle(s, control.OpUpdateCancel, func(ctx context.Context, _ control.Role, by control.By) (control.None, error) {
		return control.None{}, m.changeSystems(ctx, by, "update cancelled", "", func(u Systems) error { return u.Cancel(ctx) })
	})
	control.Handle(s, control.OpUpdateSet, func(ctx context.Context, _ control.Role, q control.UpdateSet) (control.None, error) {
		return control.None{}, m.changeSystems(ctx, q.By, "update settings changed", q.Settings.Mirror, func(u Systems) error { return u.Set(ctx, q.Settings) })
	})
}

// changeSystems records the wish, then has it carried out: what cannot be
// recorded does not happen. A failure is recorded too.
func (m *Monitor) changeSystems(ctx context.Context, by control.By, action, object string, f func(Systems) error) error {
	if m.cfg.Systems == nil {
		return m.noSystems()
	}
	if m.State() != control.StateReady {
		return &control.Error{Code: control.CodeState, Text: "systems are changed on a box that has an owner and is open"}
	}
	event := control.Event{Actor: by.Actor, From: by.From, Action: action, Object: object}
	if err := m.audit(ctx, event); err != nil {
		return err
	}
	return m.outcome(ctx, event, f(m.cfg.Systems))
}

// Record writes an event of the box's own: of what happens without a question.
func (m *Monitor) Record(ctx context.Context, e control.Event) error { return m.audit(ctx, e) }
