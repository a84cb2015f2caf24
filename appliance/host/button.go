package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gatehouse/appliance/task"
)

// An input event of the kernel (include/uapi/linux/input.h) on 64-bit
// machines: two words of time, then type, code and value.
const (
	eventSize   = 24
	eventKey    = 1
	keyPower    = 116
	valuePress  = 1
	wordOfPower = keyPower / 64
)

// PowerButton is the task that calls pressed whenever someone presses the
// machine's power button. Machines without one have nothing to watch.
func (h *Host) PowerButton(pressed func()) task.Task {
	return task.Func("power button", func(ctx context.Context) error {
		var tasks []task.Task
		for _, name := range h.powerButtons() {
			tasks = append(tasks, task.Func(name, func(ctx context.Context) error {
				f, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("watching the power button: %w", err)
				}
				stop := context.AfterFunc(ctx, func() { f.Close() })
				defer stop()
				defer f.Close()
				err = readPresses(f, pressed)
				if ctx.Err() != nil {
					return ctx.Err()
				}
				// A button that is pulled out is no reason to end the box.
				h.log.Warn("the power button is gone", "device", name, "err", err)
				<-ctx.Done()
				return ctx.Err()
			}))
		}
		if len(tasks) == 0 {
			<-ctx.Done()
			return ctx.Err()
		}
		return task.Run(ctx, tasks...)
	})
}

// powerButtons are the input devices that have a power key.
func (h *Host) powerButtons() []string {
	found, err := filepath.Glob(h.path("/sys/class/input/event*"))
	if err != nil {
		return nil
	}
	var out []string
	for _, dir := range found {
		name := filepath.Base(dir)
		bits, err := h.readLine("/sys/class/input/" + name + "/device/capabilities/key")
		if err == nil && hasPowerKey(bits) {
			out = append(out, h.path("/dev/input/"+name))
		}
	}
	return out
}

// hasPowerKey reads the kernel's bit map: hexadecimal words of 64 bits, the
// highest first.
func hasPowerKey(bits string) bool {
	words := strings.Fields(bits)
	if len(words) <= wordOfPower {
		return false
	}
	n, err := strconv.ParseUint(words[len(words)-1-wordOfPower], 16, 64)
	return err == nil && n>>(keyPower%64)&1 == 1
}

func readPresses(r io.Reader, pressed func()) error {
	var e [eventSize]byte
	for {
		if _, err := io.ReadFull(r, e[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		kind, code, value := binary.NativeEndian.Uint16(e[16:]), binary.NativeEndian.Uint16(e[18:]), binary.NativeEndian.Uint32(e[20:])
		if kind == eventKey && code == keyPower && value == valuePress {
			pressed()
		}
	}
}
