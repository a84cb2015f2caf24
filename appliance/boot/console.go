package boot

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/panel"
	"gatehouse/appliance/task"
	"gatehouse/appliance/vault"
)

// panel is the status block and the menu on display and serial line.
func (b *box) panel(m *monitor.Monitor) task.Task {
	var terminals []panel.Terminal
	for _, t := range []struct {
		path   string
		screen bool
	}{{"/dev/tty1", true}, {"/dev/ttyS0", false}} {
		f, err := os.OpenFile(t.path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			b.log.Info("there is no console here", "terminal", t.path, "err", err)
			continue
		}
		terminals = append(terminals, panel.Terminal{Name: t.path, ReadWriter: f, Screen: t.screen})
	}
	return panel.New(panel.Config{
		Terminals: terminals, Actions: m, Network: m, Now: time.Now, Log: b.log,
		Read: func() (control.Status, string) { return m.Status(), m.Code() },
	})
}

// erase forgets everything: the header of the keys first, without which the
// data volume is noise, then what the TPM remembers of this installation.
func (b *box) erase(ctx context.Context) error {
	if b.config.Meta == nil {
		return errors.New("there is no disk of this box to erase")
	}
	if err := vault.Erase(ctx, b.config); err != nil {
		return err
	}
	b.log.Warn("erased: the next start makes this a new box")
	return nil
}

func statusLine(m *monitor.Monitor) string { return panel.Line(m.Status(), m.Code()) }
