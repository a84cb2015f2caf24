package console

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"gatehouse/appliance/account"
	"gatehouse/appliance/console/allowlists"
	"gatehouse/appliance/console/auditlog"
	"gatehouse/appliance/console/certificates"
	"gatehouse/appliance/console/claim"
	"gatehouse/appliance/console/clock"
	"gatehouse/appliance/console/exposure"
	"gatehouse/appliance/console/factor"
	"gatehouse/appliance/console/keys"
	"gatehouse/appliance/console/locked"
	"gatehouse/appliance/console/metrics"
	"gatehouse/appliance/console/network"
	"gatehouse/appliance/console/portable"
	"gatehouse/appliance/console/profile"
	"gatehouse/appliance/console/recordings"
	"gatehouse/appliance/console/remote"
	"gatehouse/appliance/console/sessions"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/console/signin"
	"gatehouse/appliance/console/status"
	"gatehouse/appliance/console/system"
	"gatehouse/appliance/console/targets"
	"gatehouse/appliance/console/terminal"
	"gatehouse/appliance/console/tokens"
	"gatehouse/appliance/console/update"
	"gatehouse/appliance/console/welcome"
	"gatehouse/appliance/console/xterm"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/intake"
	"gatehouse/netfilter/allowlist"
)

// table is every route of the console. A route that is not in it does not
// exist; the test of the table walks it with every kind of visitor.
func (s *console) table(state control.State) []shell.Route {
	routes := append(shell.Assets(), status.Brief(state))
	if state == control.StateLocked {
		return append(routes, locked.Routes(s.reason, s.lockedPorts())...)
	}
	exposed := exposure.New(s.exposure)
	guarded := keys.New(s.keyPorts())
	updates := update.New(s.updatePorts())
	inside := sessions.New(sessions.Ports{Sessions: s.broker.Sessions, End: s.broker.End, Notice: s.broker.Notice})
	for _, pages := range [][]shell.Route{
		claim.New(s.claimer, s.identity.SHA256).Routes(),
		signin.New().Routes(),
		welcome.New(s.settings, s.setClock, updates.Window).Routes(),
		factor.New(s.settings, s.steady).Routes(),
		status.New(s.settings, status.Ports{Sites: s.hub.Sites, Log: s.auditReader(), Exposure: exposed.Card, Inside: inside.Card, Keys: guarded.Known, Update: updates.Line}).Routes(),
		guarded.Routes(),
		exposed.Routes(),
		targets.New(s.targetPorts()).Routes(),
		inside.Routes(),
		terminal.New(terminal.Ports{Target: s.broker.Target}).Routes(),
		recordings.New(recordings.Ports{Recordings: s.broker.Recordings, Cast: s.broker.Cast, RemoveRecording: s.broker.RemoveRecording}).Routes(),
		allowlists.New(s.listPorts()).Routes(),
		network.New(s.networkPorts()).Routes(),
		clock.New(clock.Ports{Set: s.setClock, ResetFloor: s.resetFloor, Network: s.networkPorts().Network}).Routes(),
		certificates.New(s.keeper).Routes(),
		auditlog.New(s.auditReader()).Routes(),
		system.New(system.Ports{Power: told(s, change(s, control.OpPower)), Sessions: s.broker.Live, AtOnce: s.herald.AtOnce, Log: s.readLog, Erase: change(s, control.OpErase), Released: s.releasedStatement}).Routes(),
		updates.Routes(),
		portable.New(s.portablePorts(), func() portable.Database { return s.db }).Routes(),
		tokens.New().Routes(),
		metrics.Routes(metrics.Ports{Exposure: s.exposure, Lists: s.listPorts().Lists, Expires: func() time.Time { return s.keeper.View().Shown.Until }}),
		profile.New().Routes(),
		remote.Routes(s.broker),
		xterm.Routes(),
		s.siteRoutes(),
	} {
		routes = append(routes, pages...)
	}
	return routes
}

// targetPorts are what the pages of targets ask of the broker.
func (s *console) targetPorts() targets.Ports {
	return targets.Ports{Targets: s.broker.Targets, Target: s.broker.Target, Declare: s.broker.Declare, Remove: s.broker.Remove,
		SetCredential: s.broker.SetCredential, ForgetHostKeys: s.broker.ForgetHostKeys}
}

func (s *console) keys(ctx context.Context) (control.Keys, error) {
	return control.OpKeys.Call(ctx, s.control, control.None{})
}

// lockedPorts are the requests of a locked box.
func (s *console) lockedPorts() locked.Ports {
	return locked.Ports{
		Keys: s.keys, Unlock: change(s, control.OpUnlock), Steady: s.steady,
		UnlockKey: func(ctx context.Context) (control.UnlockKey, error) {
			return control.OpUnlockKey.Call(ctx, s.control, control.None{})
		},
	}
}

// keyPorts are the requests about the keys.
func (s *console) keyPorts() keys.Ports {
	return keys.Ports{
		Keys: s.keys,
		MakeRecovery: func(ctx context.Context, q control.By) (control.RecoveryKey, error) {
			return control.OpRecoveryMake.Call(ctx, s.control, q)
		},
		ConfirmRecovery: change(s, control.OpRecoveryConfirm),
		Rotate:          change(s, control.OpKeyRotate),
		SetPassphrase:   change(s, control.OpPassphraseSet),
		TakeTPM:         change(s, control.OpTPMTake),
		Enrol:           change(s, control.OpSecureBootEnrol),
		Steady:          s.steady,
	}
}

// portablePorts are what has a part in an export.
func (s *console) portablePorts() portable.Ports {
	net := s.networkPorts()
	return portable.Ports{
		Dir: s.env.State, Place: s.settings, Targets: s.broker.Store, Certificates: s.keeper, Lists: s.listPorts(), Steady: s.steady,
		People:  func() *account.Accounts { return s.box.Accounts },
		Network: net.Network, TryNetwork: net.Try, Update: s.systems, SetUpdate: change(s, control.OpUpdateSet),
		Imported: func(ctx context.Context) error {
			s.broker.EndAll(ctx, "a configuration was imported")
			_, err := s.report(ctx, "")
			return err
		},
	}
}

// updatePorts are the requests about the box's two systems. Those that may have
// it restart are told on, to who is in a session.
func (s *console) updatePorts() update.Ports {
	return update.Ports{
		Update: s.systems, Start: told(s, change(s, control.OpUpdateStart)), Cancel: told(s, change(s, control.OpUpdateCancel)), Set: told(s, change(s, control.OpUpdateSet)),
		Intake: s.intake, Mirror: s.mirror, Sessions: s.broker.Live, AtOnce: s.herald.AtOnce,
	}
}

func (s *console) systems(ctx context.Context) (control.Update, error) {
	return control.OpUpdate.Call(ctx, s.control, control.None{})
}

// planned is the restart that comes by itself next.
func (s *console) planned(ctx context.Context) (*control.Restart, error) {
	st, err := s.status(ctx)
	return st.Restart, err
}

// told has the herald look after a change.
func told[Q any](s *console, f func(context.Context, Q) error) func(context.Context, Q) error {
	return func(ctx context.Context, q Q) error {
		defer s.herald.Look()
		return f(ctx, q)
	}
}

// openIntake makes what brings releases in.
func (s *console) openIntake() {
	s.intake = intake.New(intake.Ports{
		Begin: func(ctx context.Context, q control.UpdateBegin) (control.UpdateOffset, error) {
			return control.OpUpdateBegin.Call(ctx, s.control, q)
		},
		Write: func(ctx context.Context, q control.UpdateWrite) (control.UpdateOffset, error) {
			return control.OpUpdateWrite.Call(ctx, s.control, q)
		},
	})
	s.mirror = intake.NewMirror(s.intake, intake.MirrorConfig{View: s.systems, Start: change(s, control.OpUpdateStart), Now: time.Now, Log: s.log})
}

// change is a request whose answer is only that it was done.
func change[Q any](s *console, op control.Op[Q, control.None]) func(context.Context, Q) error {
	return func(ctx context.Context, q Q) error {
		_, err := op.Call(ctx, s.control, q)
		return err
	}
}

// siteRoutes are authenticated by the site's own key, not by a session.
func (s *console) siteRoutes() []shell.Route {
	site := func(path string, h http.HandlerFunc) shell.Route {
		return shell.Route{Method: http.MethodPost, Path: path, States: shell.InEach, Scope: allowlist.Sites, API: true,
			Handle: func(v *shell.Visit) error { h(v.W, v.R); return nil }}
	}
	return []shell.Route{site(enroll.PathEnrol, s.hub.HandleEnrol), site(enroll.PathReport, s.hub.HandleReport), site(attend.Path, s.hub.HandleAttend)}
}

func (s *console) setClock(ctx context.Context, q control.ClockSet) (control.Clock, error) {
	return control.OpClockSet.Call(ctx, s.control, q)
}

func (s *console) resetFloor(ctx context.Context, q control.ClockFloor) (control.Clock, error) {
	return control.OpClockFloor.Call(ctx, s.control, q)
}

func (s *console) releasedStatement(ctx context.Context, q control.ReleaseAsk) (control.Released, error) {
	return control.OpReleased.Call(ctx, s.control, q)
}

func (s *console) exposure(ctx context.Context) (control.Exposure, error) {
	return control.OpExposure.Call(ctx, s.control, control.None{})
}

// listPorts are the requests about allowlists.
func (s *console) listPorts() allowlists.Ports {
	return allowlists.Ports{
		Lists: func(ctx context.Context) (control.Lists, error) {
			return control.OpLists.Call(ctx, s.control, control.None{})
		},
		Read: func(ctx context.Context, q control.ListsRead) (control.ListsPart, error) {
			return control.OpListsRead.Call(ctx, s.control, q)
		},
		Stage: func(ctx context.Context, q control.ListsStage) error {
			_, err := control.OpListsStage.Call(ctx, s.control, q)
			return err
		},
		Try: func(ctx context.Context, q control.ListsTry) (control.ListsReport, error) {
			return control.OpListsTry.Call(ctx, s.control, q)
		},
		Exposure: s.exposure, Staging: &s.staging,
		Keep: s.keep, Revert: s.revert,
		Judge: func(a netip.Addr) ([]string, allowlist.Scope) { return s.lists.Lists(a), s.lists.Scopes(a) },
	}
}

func (s *console) keep(ctx context.Context, q control.Keep) error {
	_, err := control.OpKeep.Call(ctx, s.control, q)
	return err
}

func (s *console) revert(ctx context.Context, q control.Revert) error {
	_, err := control.OpRevert.Call(ctx, s.control, q)
	return err
}

// networkPorts are the requests about the network.
func (s *console) networkPorts() network.Ports {
	return network.Ports{
		Network: func(ctx context.Context) (control.NetworkState, error) {
			return control.OpNetwork.Call(ctx, s.control, control.None{})
		},
		Try: func(ctx context.Context, q control.NetworkTry) (control.NetworkReport, error) {
			return control.OpNetworkTry.Call(ctx, s.control, q)
		},
		Keep: s.keep, Revert: s.revert, Steady: s.steady,
	}
}

func (s *console) readLog(ctx context.Context, q control.LogQuery) (control.LogLines, error) {
	return control.OpLog.Call(ctx, s.control, q)
}
