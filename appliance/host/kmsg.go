package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/task"
)

// A KernelLine is one record of the kernel's log.
type KernelLine struct {
	Priority int           // 0 emergency … 7 debug
	Sequence uint64        // of the kernel's log
	Since    time.Duration // of the kernel's start
	Text     string        // one line, printable, at most 1 KiB
}

// maxKernelText bounds a line; the kernel's own bound is about 1 KiB too.
const maxKernelText = 1 << 10

// KernelLog is the task that hands every record of the kernel's log to line,
// beginning with the oldest that is still there. Records that userspace wrote
// are left out: they are in our own log already.
func (h *Host) KernelLog(line func(KernelLine)) task.Task {
	return task.Func("kernel log", func(ctx context.Context) error {
		f, err := os.Open(h.path("/dev/kmsg"))
		if err != nil {
			return fmt.Errorf("opening the kernel's log: %w", err)
		}
		defer f.Close()
		// Closing ends a Read that waits: /dev/kmsg can be polled.
		stop := context.AfterFunc(ctx, func() { f.Close() })
		defer stop()
		// Each read is one record; one that does not fit is EINVAL.
		buf := make([]byte, 16<<10)
		for {
			n, err := f.Read(buf)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case errors.Is(err, unix.EPIPE): // records were overwritten before they were read
				continue
			case err != nil:
				return fmt.Errorf("reading the kernel's log: %w", err)
			}
			if l, ok := parseKernelLine(buf[:n]); ok {
				line(l)
			}
		}
	})
}

// parseKernelLine parses one record: "PREFIX,SEQUENCE,MICROSECONDS,FLAGS;TEXT\n"
// and continuation lines that begin with a space (Documentation/ABI/testing/dev-kmsg).
func parseKernelLine(record []byte) (KernelLine, bool) {
	head, text, ok := strings.Cut(string(record), ";")
	fields := strings.SplitN(head, ",", 4)
	if !ok || len(fields) < 3 {
		return KernelLine{}, false
	}
	prefix, err1 := strconv.ParseUint(fields[0], 10, 32)
	sequence, err2 := strconv.ParseUint(fields[1], 10, 64)
	micro, err3 := strconv.ParseInt(fields[2], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || micro < 0 || micro > int64(1<<62)/1000 {
		return KernelLine{}, false
	}
	if prefix>>3 != 0 { // facility: 0 is the kernel
		return KernelLine{}, false
	}
	text, _, _ = strings.Cut(text, "\n")
	return KernelLine{
		Priority: int(prefix & 7),
		Sequence: sequence,
		Since:    time.Duration(micro) * time.Microsecond,
		Text:     printable(text),
	}, true
}

// printable bounds a text and takes what could steer a terminal out of it.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !strconv.IsPrint(r) {
			return '·'
		}
		return r
	}, s)
	for len(s) > maxKernelText {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
