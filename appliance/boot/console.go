package boot

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/panel"
	"gatehouse/appliance/task"
)

// panel is the status block and the menu on display and serial line.
func (b *box) panel(m *monitor.Monitor) task.Task {
	terminals := b.terminals()
	c := panel.Config{
		Terminals: terminals, Actions: m, Network: m, Now: time.Now, Log: b.log, Notice: b.erasedBefore(),
		Read: func() (control.Status, string) { return m.Status(), m.Code() },
	}
	if b.install != nil {
		c.Installer = b.install
	}
	return panel.New(c)
}

// terminals opens display and serial line, those that there are.
func (b *box) terminals() (all []panel.Terminal) {
	type terminal struct {
		path   string
		screen bool
	}
	want := []terminal{{"/dev/tty1", true}}
	for _, name := range b.machine.SerialConsoles() {
		want = append(want, terminal{"/dev/" + name, false})
	}
	for _, t := range want {
		f, err := os.OpenFile(t.path, os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			b.log.Info("there is no console here", "terminal", t.path, "err", err)
			continue
		}
		all = append(all, panel.Terminal{Name: t.path, ReadWriter: f, Screen: t.screen, Echo: echo(f)})
	}
	return all
}

// echo switches the kernel's echo of a terminal.
func echo(f *os.File) func(on bool) error {
	return func(on bool) error {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		err = raw.Control(func(fd uintptr) {
			t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
			if err == nil {
				t.Lflag &^= unix.ECHO
				if on {
					t.Lflag |= unix.ECHO
				}
				err = unix.IoctlSetTermios(int(fd), unix.TCSETS, t)
			}
			failed = err
		})
		return errors.Join(err, failed)
	}
}
