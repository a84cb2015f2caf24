// Package agent is the role that speaks for this machine to its hub, which is the box itself first.
//
// It uses the messages that a site elsewhere uses, so the way of a remote site
// is walked on every box, all the time.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"gatehouse/appliance/agent/machine"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/enroll/report"
	"gatehouse/appliance/task"
)

const (
	inventoryEvery = time.Hour
	firstPause     = time.Second
	longestPause   = 30 * time.Second
)

// Run is the agent until ctx ends.
func Run(ctx context.Context, env control.Environment, c *control.Client, log *slog.Logger) error {
	if env.Locked || env.State == "" {
		return errors.New("the agent has nothing to work with: the box is locked")
	}
	if env.Gateway == "" {
		return fmt.Errorf("%s is not set: the supervisor sets it", control.EnvGateway)
	}
	own, err := control.OpKey.Call(ctx, c, control.KeyRequest{Purpose: control.PurposeSelfSite})
	if err != nil {
		return err
	}
	if len(own.Key) != len(enroll.APIKey{}) {
		return fmt.Errorf("the key of the own site has %d bytes", len(own.Key))
	}
	keys, err := enroll.APIKey(own.Key).Keys()
	if err != nil {
		return err
	}
	secrets, err := control.OpKey.Call(ctx, c, control.KeyRequest{Purpose: control.PurposeAgentSecrets})
	if err != nil {
		return err
	}
	id, err := loadIdentity(env.State, secrets.Key)
	if err != nil {
		return err
	}
	status, err := control.OpStatus.Call(ctx, c, control.None{})
	if err != nil {
		return err
	}
	a := &site{
		keys: keys, id: id, name: status.Name, version: env.Version, state: env.State,
		root: os.DirFS("/"), statfs: statfs, now: time.Now, log: log,
		dial: func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", env.Gateway)
		},
		pause: pause,
		told: func(ctx context.Context, up bool) {
			if _, err := control.OpHubLine.Call(ctx, c, control.HubLine{Up: up}); err != nil && ctx.Err() == nil {
				log.Warn("telling of the line to the hub", "err", err)
			}
		},
	}
	a.told(ctx, false) // one that was killed did not say so
	desk, err := a.openDesk(env, c)
	if err != nil {
		return err
	}
	return task.Run(ctx, task.Func("reports", a.run), task.Func("line", func(ctx context.Context) error {
		return a.again(ctx, "the line to the hub is cut", func(ctx context.Context) (bool, error) { return a.wait(ctx, desk) })
	}), desk.lists, desk.leftovers)
}

// site is this machine towards one hub.
type site struct {
	keys          enroll.Keys
	id            identity
	name, version string
	state         string // its folder, on the data volume
	root          fs.FS
	statfs        func(path string) (report.Usage, error)
	now           func() time.Time
	log           *slog.Logger
	dial          func(context.Context) (net.Conn, error)
	pause         func(context.Context, time.Duration)
	told          func(ctx context.Context, up bool) // whether the line to the hub stands
}

// run connects, enrols and reports, again and again, with growing pauses while
// that fails.
func (s *site) run(ctx context.Context) error {
	return s.again(ctx, "the hub is not reached", s.attend)
}

// again does it again and again. One that worked for a while begins anew with
// the shortest pause.
func (s *site) again(ctx context.Context, failed string, do func(context.Context) (worked bool, err error)) error {
	wait := firstPause
	for ctx.Err() == nil {
		worked, err := do(ctx)
		if ctx.Err() != nil {
			break
		}
		if worked {
			wait = firstPause
		}
		s.log.Warn(failed, "err", err, "again_in", wait)
		s.pause(ctx, jitter(wait))
		wait = min(2*wait, longestPause)
	}
	return ctx.Err()
}

// attend is the life of one connection. It ends with an error always.
func (s *site) attend(ctx context.Context) (enrolled bool, err error) {
	l, answer, err := s.enrol(ctx)
	if err != nil {
		return false, err
	}
	defer l.close()
	s.log.Info("enrolled at the hub", "site", s.id.site, "interval", answer.Interval)
	next := s.now()
	for {
		var r report.Report
		health, err := s.health()
		if err != nil {
			return true, err
		}
		r.Health = &health
		if now := s.now(); !now.Before(next) {
			inventory := s.inventory()
			r.Inventory, next = &inventory, now.Add(inventoryEvery)
		}
		if err := l.report(ctx, r); err != nil {
			return true, err
		}
		s.pause(ctx, answer.Interval)
		if ctx.Err() != nil {
			return true, ctx.Err()
		}
	}
}

// enrol connects and says who we are.
func (s *site) enrol(ctx context.Context) (*link, enroll.Answer, error) {
	device, err := s.id.public()
	if err != nil {
		return nil, enroll.Answer{}, err
	}
	l, err := connect(ctx, s.dial, s.keys, s.name, s.now)
	if err != nil {
		return nil, enroll.Answer{}, err
	}
	inventory := s.inventory()
	answer, err := l.enrol(ctx, enroll.Enrol{
		Site: s.id.site, Device: device,
		Metadata: enroll.Metadata{
			Name: s.name, Version: s.version, System: inventory.System,
			Hardware: inventory.Machine.Product,
		},
	})
	if err != nil {
		l.close()
		return nil, answer, err
	}
	return l, answer, nil
}

// wait is the life of one line, on a connection of its own.
func (s *site) wait(ctx context.Context, d *desk) (worked bool, err error) {
	l, _, err := s.enrol(ctx)
	if err != nil {
		return false, err
	}
	defer l.close()
	c, err := l.upgrade(ctx, attend.Path, attend.Protocol)
	if err != nil {
		return false, err
	}
	s.told(ctx, true)
	defer s.told(ctx, false)
	return true, d.Wait(ctx, c)
}

func (s *site) inventory() report.Inventory {
	i := machine.Inventory(s.root, s.now())
	i.Host, i.Version, i.System = s.name, s.version, runtime.GOOS+"/"+runtime.GOARCH
	return i
}

func (s *site) health() (report.Health, error) {
	h, err := machine.Health(s.root, s.now())
	if err != nil {
		return h, err
	}
	u, err := s.statfs(s.state)
	if err != nil {
		return h, err
	}
	h.Volumes = append(h.Volumes, report.Volume{Name: "data", Usage: u})
	return h, nil
}

func statfs(path string) (report.Usage, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return report.Usage{}, fmt.Errorf("asking how full %s is: %w", path, err)
	}
	size := uint64(st.Bsize)
	return report.Usage{Total: st.Blocks * size, Available: min(st.Bavail, st.Blocks) * size}, nil
}

// jitter spreads d over half to one and a half of it, so that many sites do
// not come back to a hub at once.
func jitter(d time.Duration) time.Duration {
	var b [2]byte
	if _, err := rand.Read(b[:]); err != nil {
		return d
	}
	return d/2 + d*time.Duration(binary.BigEndian.Uint16(b[:]))>>16
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
