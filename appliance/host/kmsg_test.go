package host

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseKernelLineRefuses(t *testing.T) {
	for _, s := range []string{"", ";", "6,1,2", "6,1;x", "x,1,2,-;x", "6,x,2,-;x", "6,1,x,-;x", "6,1,-2,-;x",
		"6,1,99999999999999999999,-;x", "6,1,9223372036854775807,-;x", "-6,1,2,-;x", "30,1,2,-;from a daemon", "12,1,2,-;from userspace"} {
		if l, ok := parseKernelLine([]byte(s)); ok {
			t.Errorf("%q is %+v", s, l)
		}
	}
}

func TestParseKernelLine(t *testing.T) {
	l, ok := parseKernelLine([]byte("4,339,5140900,-;usb 1-1: new \x1b[2Jdevice\x00 é\n SUBSYSTEM=usb\n DEVICE=c1:2\n"))
	want := KernelLine{Priority: 4, Sequence: 339, Since: 5140900 * time.Microsecond, Text: "usb 1-1: new ·[2Jdevice· é"}
	if !ok || l != want {
		t.Errorf("got %+v, want %+v", l, want)
	}
	if l, ok := parseKernelLine([]byte("6,1,2,c,x=y,z;long " + strings.Repeat("é", 5000))); !ok || len(l.Text) > maxKernelText || len(l.Text) < maxKernelText-4 {
		t.Errorf("a long line: %d bytes, %v", len(l.Text), ok)
	}
}

func FuzzParseKernelLine(f *testing.F) {
	f.Add([]byte("6,339,5140900,-;NET: Registered\n K=V\n"))
	f.Fuzz(func(t *testing.T, record []byte) {
		l, ok := parseKernelLine(record)
		if !ok {
			return
		}
		if l.Priority < 0 || l.Priority > 7 || l.Since < 0 || len(l.Text) > maxKernelText {
			t.Errorf("%q is %+v", record, l)
		}
		for _, r := range l.Text {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				t.Errorf("%q lets %q through", record, r)
			}
		}
	})
}

// The real device: what is there is read, and the end of the context ends a
// read that waits for more.
func TestKernelLog(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lines := make(chan KernelLine, 1)
	done := make(chan error, 1)
	go func() {
		done <- New(slog.New(slog.DiscardHandler)).KernelLog(func(l KernelLine) {
			select {
			case lines <- l:
			default:
			}
		}).Run(ctx)
	}()
	if l := <-lines; l.Text == "" {
		t.Errorf("the first line is %+v", l)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
	if err := newTree(t, nil).KernelLog(nil).Run(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the device: %v", err)
	}
}

// dog is a watchdog that remembers.
type dog struct {
	kicks  int
	err    error
	closed bool
	kicked chan struct{}
}

func (d *dog) KeepAlive() error {
	d.kicks++
	if d.kicked != nil {
		close(d.kicked)
		d.kicked = nil
	}
	return d.err
}

func (d *dog) MagicClose() error { d.closed = true; return d.err }

func TestBOX12_Watchdog(t *testing.T) {
	d := &dog{kicked: make(chan struct{})}
	kicked := d.kicked
	w := &Watchdog{device: d, name: "watchdog0", timeout: time.Minute}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	<-kicked
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || d.closed {
		t.Errorf("Run = %v, disarmed %v: a hanging shutdown would not end", err, d.closed)
	}
	if err := w.Disarm(); err != nil || !d.closed {
		t.Errorf("Disarm = %v", err)
	}
	ill := &dog{}
	w = &Watchdog{device: ill, timeout: time.Minute, healthy: func() bool { cancel(); return false }}
	if err := w.Run(ctx); !errors.Is(err, context.Canceled) || ill.kicks != 0 {
		t.Errorf("an ill PID 1: %v, %d kicks", err, ill.kicks)
	}
	w = &Watchdog{device: &dog{err: unix.EIO}, name: "watchdog0", timeout: time.Minute, last: 0x21}
	if err := w.Run(t.Context()); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "watchdog0") {
		t.Errorf("a broken one: %v", err)
	}
	if got := w.LastReset(); got != "the watchdog reset the machine; the processor was too hot" {
		t.Errorf("LastReset = %q", got)
	}
}

func TestOpenWatchdogWithoutOne(t *testing.T) {
	if w, err := newTree(t, nil).OpenWatchdog(time.Minute, nil); w != nil || err != nil {
		t.Errorf("OpenWatchdog = %v, %v", w, err)
	}
	x := newTree(t, map[string]string{
		"sys/class/watchdog/watchdog0/identity": "Software Watchdog\n", "sys/class/watchdog/watchdog1/identity": "iTCO_wdt\n",
	})
	if x.softness("/dev/watchdog0") != 1 || x.softness("/dev/watchdog1") != 0 || x.softness("/dev/watchdog2") != 0 {
		t.Error("softdog is not told from hardware")
	}
}
