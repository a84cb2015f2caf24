package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"gatehouse/appliance/control"
)

const (
	lineLimit     = 4 << 10 // bytes; a longer line is cut into several
	linesPerBurst = 1000    // at once, as a role that ends in a panic writes them
	// linesPerSecond is what it may go on with. Strangers cause lines: more of
	// them would push what a person looks for out of the log within minutes,
	// and write gigabytes a day to flash. What is beyond is counted, not kept.
	linesPerSecond = 20
	reportLines    = 200
	reportsKept    = 20
)

// listen takes the output of an incarnation line by line until its end, and
// one second more: a process that it left behind may hold the pipe open.
func (s *Supervisor) listen(name control.Role, out *os.File, c *child) (last func() []string) {
	lines := make(chan []string, 1)
	go func() {
		defer out.Close()
		lines <- s.lines(name, out)
	}()
	return func() []string {
		<-c.done
		select {
		case last := <-lines:
			return last
		case <-time.After(time.Second):
		}
		// Closed in the meantime is as good as a deadline that has passed.
		_ = out.SetReadDeadline(time.Now())
		return <-lines
	}
}

// lines passes on what it reads and gives the newest at the end. A role that
// floods is read on, because one that blocks on its log would look frozen.
func (s *Supervisor) lines(name control.Role, r io.Reader) (last []string) {
	var (
		in     = bufio.NewReaderSize(r, lineLimit)
		window = s.config.Now()
		left   = linesPerBurst
		lost   int
	)
	for {
		b, _, err := in.ReadLine()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrDeadlineExceeded) {
				s.config.Log.Warn("role output lost", "role", name, "err", err)
			}
			break
		}
		line := string(b)
		if len(last) == 2*reportLines {
			last = slices.Delete(last, 0, reportLines)
		}
		last = append(last, line)
		if now := s.config.Now(); now.Sub(window) >= time.Second {
			left = min(linesPerBurst, left+int(min(now.Sub(window), time.Hour)/time.Second)*linesPerSecond)
			if lost > 0 {
				s.config.Output(name, dropped(lost))
			}
			window, lost = now, 0
		}
		if left == 0 {
			lost++
			continue
		}
		left--
		s.config.Output(name, line)
	}
	if lost > 0 {
		s.config.Output(name, dropped(lost))
	}
	return last[max(0, len(last)-reportLines):]
}

func dropped(lines int) string {
	return fmt.Sprintf("%d lines dropped: more than %d a second", lines, linesPerSecond)
}

// report writes a crash report and removes the oldest beyond the number kept.
// The newest lines come last. A power cut leaves a short report or none, which
// is no harm: nothing depends on one.
func report(dir string, name control.Role, pid int, at time.Time, how string, lines []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("writing a crash report: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "role: %s\npid: %d\ntime: %s\nend: %s\nlast %d lines:\n", name, pid, at.UTC().Format(time.RFC3339Nano), how, len(lines))
	for _, l := range lines {
		b.WriteString(strings.ToValidUTF8(l, "�"))
		b.WriteByte('\n')
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%s-%d.txt", at.UTC().Format("20060102T150405.000"), name, pid))
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing a crash report: %w", err)
	}
	_, err = f.WriteString(b.String())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing a crash report: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return fmt.Errorf("counting crash reports: %w", err)
	}
	slices.Sort(names) // by time: the names begin with it
	for _, old := range names[:max(0, len(names)-reportsKept)] {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("removing an old crash report: %w", err)
		}
	}
	return nil
}
