// Package console is the role that serves the pages and the API, and keeps the database.
package console

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/account"
	"gatehouse/appliance/admission"
	"gatehouse/appliance/audit"
	"gatehouse/appliance/broker"
	"gatehouse/appliance/cert"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/hub"
	"gatehouse/appliance/handover"
	"gatehouse/appliance/herald"
	"gatehouse/appliance/intake"
	"gatehouse/appliance/setup"
	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/store"
	"gatehouse/appliance/task"
	"gatehouse/appliance/token"
	"gatehouse/netfilter/allowlist"
)

// databaseFile is the database in the role's folder.
const databaseFile = "console.db"

// console is the running role.
type console struct {
	env     control.Environment
	control *control.Client
	log     *slog.Logger
	box     *shell.Box
	names   []string

	db       *store.DB // nil while locked
	settings setup.Settings
	claimer  *setup.Claimer
	hub      *hub.Hub
	broker   *broker.Broker      // nil while locked
	identity control.Certificate // the box's own one, that tools pin
	keeper   *keeper.Keeper      // nil while locked
	intake   *intake.Intake      // nil while locked, as the mirror
	mirror   *intake.Mirror
	herald   *herald.Herald // nil while locked
	reason   string         // why locked
	steady   func() time.Time
	lists    *admission.Watch
	staging  sync.Mutex // of allowlists

	mu      sync.Mutex
	shown   control.Certificate // what answers at the printed address, with the words of the identity
	extra   []string            // names of the certificate that are not the box's otherwise
	router  http.Handler
	handler atomic.Pointer[http.Handler]
}

// Run serves until ctx ends or something fails that the role cannot be without.
func Run(ctx context.Context, env control.Environment, c *control.Client, log *slog.Logger) error {
	debug.SetGCPercent(50) // a small heap that is mostly idle
	file := env.Files[control.FileGateway]
	if file == nil {
		return errors.New("the socket towards the gateway was not handed over: the supervisor's table is wrong")
	}
	listener, err := handover.NewListener(file, log)
	if err != nil {
		return fmt.Errorf("opening the socket towards the gateway: %w", err)
	}
	defer listener.Close()
	status, err := control.OpStatus.Call(ctx, c, control.None{})
	if err != nil {
		return err
	}
	lists := admission.Open(env.Admission, log)
	lists.OnChange(func() {
		if n := cut(listener, lists.Scopes); n > 0 {
			log.Info("connections of sources that no list admits any more were closed", "connections", n)
		}
	})
	s := &console{env: env, control: c, log: log, names: hostNames(status), steady: steadyClock(), lists: lists}
	s.box = &shell.Box{Name: status.Name, Wall: time.Now, Scopes: lists.Scopes, Log: log, Status: s.status, Audit: s.audit}
	tlsConfig, err := s.open(ctx)
	if err != nil {
		return err
	}
	if s.db != nil {
		defer s.db.Close()
	}
	if s.broker != nil {
		// Whatever way the bytes of a session go, its ends are told.
		lists.OnChange(func() {
			s.broker.Recheck(ctx, func(a netip.Addr) bool { return lists.Scopes(a)&allowlist.Console != 0 })
		})
	}
	tasks := []task.Task{lists, task.Func("web", func(ctx context.Context) error {
		return serve(ctx, listener, tlsConfig, s, log)
	})}
	if s.keeper != nil {
		tasks = append(tasks, s.keeper.Tasks()...)
	}
	if s.broker != nil {
		tasks = append(tasks, s.broker.Task(), s.herald.Task(), s.mirror.Task())
	}
	return task.Run(ctx, tasks...)
}

// cut closes the connections of sources that may not have what they are for.
func cut(l *handover.Listener, scopes func(netip.Addr) allowlist.Scope) int {
	return l.Cut(func(a netip.Addr, need allowlist.Scope) bool { return scopes(a)&need != 0 })
}

// steadyClock is the wall clock of now that goes on by the monotonic one, so
// that setting the clock moves no session.
func steadyClock() func() time.Time {
	start := time.Now()
	return func() time.Time { return start.Add(time.Since(start)) }
}

func hostNames(st control.Status) []string {
	names := []string{strings.ToLower(st.Name), strings.ToLower(st.Name) + ".local"}
	if u, err := url.Parse(st.URL); err == nil && u.Hostname() != "" {
		names = append(names, strings.ToLower(u.Hostname()))
	}
	for _, n := range st.Names {
		names = append(names, strings.ToLower(n))
	}
	return names
}

func (s *console) status(ctx context.Context) (control.Status, error) {
	return control.OpStatus.Call(ctx, s.control, control.None{})
}

func (s *console) audit(ctx context.Context, e control.Event) error {
	// The browser's going away must not leave it open whether the event was written.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := control.OpAudit.Call(ctx, s.control, e)
	return err
}

func (s *console) subkey(ctx context.Context, purpose string) ([]byte, error) {
	k, err := control.OpKey.Call(ctx, s.control, control.KeyRequest{Purpose: purpose})
	return k.Key, err
}

// open opens what the state of the box allows, and returns how TLS is served.
// What cannot be opened makes the box locked, and is never made anew.
func (s *console) open(ctx context.Context) (*tls.Config, error) {
	if s.env.Locked || s.env.State == "" {
		return s.openLocked(ctx, "")
	}
	fields, err := s.subkey(ctx, control.PurposeConsoleFields)
	if err != nil {
		return nil, err
	}
	identity, err := cert.LoadOrCreate(s.env.State, fields, s.box.Name)
	if err != nil {
		return s.openLocked(ctx, fmt.Sprintf("the certificate of the page cannot be used: %v", err))
	}
	s.show(identity)
	if err := s.openDatabase(ctx, fields); err != nil {
		var p *store.Problem
		if errors.As(err, &p) {
			return s.openLocked(ctx, p.Error())
		}
		return nil, err
	}
	if err := s.openBroker(ctx); err != nil {
		return nil, err
	}
	s.openIntake()
	s.herald = herald.New(herald.Config{Planned: s.planned, Announce: s.broker.Announce, End: s.broker.EndAll, Now: time.Now, Log: s.log})
	if err := s.openHub(ctx); err != nil {
		return nil, err
	}
	s.keeper = s.openKeeper(identity, fields)
	state, err := s.claimer.Settle(ctx)
	if err != nil {
		return nil, err
	}
	s.reason = state.Reason
	if state.ResetFactor != "" {
		if err := s.resetFactor(ctx, state.ResetFactor); err != nil {
			return nil, err
		}
	}
	return s.keeper.TLSConfig(protocols...), s.follow(state.State)
}

// resetFactor carries out what a person at the box ordered, before anybody is
// served. A crash between the two steps does the first again at the next
// start, which changes nothing: nobody could set up a new factor meanwhile.
func (s *console) resetFactor(ctx context.Context, order string) error {
	if err := s.box.Accounts.ResetFactor(ctx); err != nil {
		return err
	}
	s.log.Info("the owner's second factor was removed, as ordered at the box")
	if _, err := control.OpFactorReset.Call(ctx, s.control, control.FactorReset{Order: order}); err != nil {
		return fmt.Errorf("acknowledging that the second factor was removed: %w", err)
	}
	return nil
}

// protocols are those of the web server.
var protocols = []string{"h2", "http/1.1"}

func (s *console) show(c tls.Certificate) {
	spki := cert.SPKI(c)
	s.identity = control.Certificate{SHA256: cert.Fingerprint(c), SPKI: hex.EncodeToString(spki[:]), Words: proof.Words(spki)}
	s.shown = s.identity
}

// openLocked serves the one page that says why, under a certificate that is
// kept nowhere.
func (s *console) openLocked(ctx context.Context, problem string) (*tls.Config, error) {
	c, err := cert.Ephemeral(s.box.Name)
	if err != nil {
		return nil, err
	}
	s.keeper = nil
	s.show(c)
	ready := control.ConsoleReady{Database: control.DatabaseUnclaimed, Certificate: s.shown, Problem: problem}
	state, err := control.OpConsoleReady.Call(ctx, s.control, ready)
	if err != nil {
		return nil, err
	}
	if s.reason = state.Reason; s.reason == "" {
		s.reason = problem
	}
	return cert.ServerConfig(c, protocols...), s.follow(control.StateLocked)
}

func (s *console) openDatabase(ctx context.Context, fields []byte) error {
	pepper, err := s.subkey(ctx, control.PurposeSignInPepper)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.env.State, 0o700); err != nil {
		return fmt.Errorf("making the console's folder: %w", err)
	}
	s.db, err = store.Open(ctx, filepath.Join(s.env.State, databaseFile), store.Keys{Fields: fields, Pepper: pepper}, append([]store.Domain{account.Domain(), setup.Domain(), token.Domain()}, broker.Domains()...)...)
	if err != nil {
		return err
	}
	s.settings = setup.Settings{DB: s.db}
	s.box.Accounts = account.New(account.Config{DB: s.db, Wall: time.Now, Steady: s.steady})
	s.box.Tokens = token.New(s.db, s.box.Accounts, time.Now, s.steady)
	s.claimer = setup.NewClaimer(setup.Config{
		Box: s.box.Name, Accounts: s.box.Accounts, Now: s.steady,
		Material: func(ctx context.Context) (control.ClaimMaterial, error) {
			return control.OpClaimMaterial.Call(ctx, s.control, control.None{})
		},
		Commit: func(ctx context.Context, q control.ClaimCommit) error {
			_, err := control.OpClaimCommit.Call(ctx, s.control, q)
			return err
		},
		Report: func(ctx context.Context) (control.ConsoleState, error) { return s.report(ctx, "") },
		RefuseSeed: func(ctx context.Context, why string) (control.ConsoleState, error) {
			if err := s.box.Accounts.DiscardPending(ctx); err != nil {
				return control.ConsoleState{}, err
			}
			return s.report(ctx, why)
		},
		Claimed: func() error { return s.follow(control.StateReady) },
	})
	return nil
}

// report tells the privileged process what the database says.
func (s *console) report(ctx context.Context, seedProblem string) (control.ConsoleState, error) {
	claim, owner, err := s.box.Accounts.Claim(ctx)
	if err != nil {
		return control.ConsoleState{}, fmt.Errorf("reading who owns the box: %w", err)
	}
	return control.OpConsoleReady.Call(ctx, s.control, control.ConsoleReady{
		Database: control.DatabaseClaim(claim), Owner: owner.Email, Certificate: s.certificate(), SeedProblem: seedProblem,
	})
}

func (s *console) openHub(ctx context.Context) error {
	key, err := s.subkey(ctx, control.PurposeSelfSite)
	if err != nil {
		return err
	}
	if len(key) != len(enroll.APIKey{}) {
		return fmt.Errorf("the key of the own site has %d bytes, want %d", len(key), len(enroll.APIKey{}))
	}
	keys, err := enroll.APIKey(key).Keys()
	if err != nil {
		return fmt.Errorf("deriving the keys of the own site: %w", err)
	}
	s.hub = hub.New(hub.Own(keys), s.broker.Attend, time.Now, s.log)
	return nil
}

// openBroker makes the part that grants sessions, and says whose grants count.
func (s *console) openBroker(ctx context.Context) (err error) {
	folder := filepath.Join(s.env.State, "recordings")
	s.broker, err = broker.Open(ctx, broker.Config{
		DB: s.db, Box: s.box.Name, Folder: folder, Wall: time.Now, Audit: s.audit, Log: s.log, SignedIn: s.box.Accounts.SignedIn,
		Meeting: func(ctx context.Context) (control.Meeting, error) {
			return control.OpMeeting.Call(ctx, s.control, control.None{})
		},
		Free: func() (uint64, error) {
			var st unix.Statfs_t
			if err := unix.Statfs(folder, &st); err != nil {
				return 0, fmt.Errorf("asking how full the disk is: %w", err)
			}
			return st.Bavail * uint64(st.Bsize), nil
		},
	})
	if err != nil {
		return err
	}
	_, err = control.OpMeetingSet.Call(ctx, s.control, control.Meeting{Organisation: s.broker.Organisation()})
	return err
}

// follow puts the routes of a state in the place of those before.
func (s *console) follow(state control.State) error {
	router, err := shell.NewRouter(s.box, state, s.table(state))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.router = router
	s.guard()
	s.log.Info("serving", "state", string(state))
	return nil
}

// guard puts the checks before the routes. The caller holds the lock.
func (s *console) guard() {
	h := shell.Guard(s.box, slices.Concat(s.names, s.extra), s.router)
	s.handler.Store(&h)
}

func (s *console) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*s.handler.Load()).ServeHTTP(w, r)
}

func (s *console) auditReader() audit.Reader { return audit.Reader{Dir: s.env.Audit} }

// serve runs the web server on the connections that the gateway hands over.
func serve(ctx context.Context, l net.Listener, c *tls.Config, h http.Handler, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           patient(h),
		TLSConfig:         inTurn(c),
		ReadHeaderTimeout: wholeRequest,
		ReadTimeout:       wholeRequest, // of a form; a visitor who is slower holds a place of all others
		WriteTimeout:      wholeAnswer,  // a client that does not take its answer gives its place back
		IdleTimeout:       90 * time.Second,
		MaxHeaderBytes:    16 << 10,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 32, MaxReadFrameSize: 16 << 10, MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 64 << 10,
			WriteByteTimeout: anyByte, SendPingTimeout: stillThere, PingTimeout: answerPing},
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ConnContext: meet,
	}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		done <- srv.Shutdown(ctx)
	})
	err := srv.ServeTLS(l, "", "")
	if !stop() {
		return errors.Join(ctx.Err(), <-done)
	}
	return fmt.Errorf("serving: %w", err)
}
