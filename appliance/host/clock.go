package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// ReadRTC reads the clock chip, in UTC. Boards without one give an error; what
// the chip says is not trusted, only compared with the floor.
func (h *Host) ReadRTC() (time.Time, error) {
	t, err := h.calls.ReadRTC()
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the clock chip: %w", err)
	}
	return t, nil
}

// SetClock sets the system clock and, where there is one, the clock chip. A
// chip that refuses is logged: the system clock counts.
func (h *Host) SetClock(t time.Time) error {
	// 32-bit seconds end in 2038 on some chips and file formats; anything past
	// 2100 is a mistake of the asker, and no clock can be set back from there
	// by a floor.
	if t.Year() < 2024 || t.Year() > 2100 {
		return fmt.Errorf("setting the clock to %s: not a year that this system can be in", t.UTC().Format(time.RFC3339))
	}
	if err := h.calls.Settime(t); err != nil {
		return fmt.Errorf("setting the system clock: %w", err)
	}
	if err := h.calls.SetRTC(t); err != nil {
		h.log.Info("the clock chip was not set; the time will be asked for again at the next start", "error", err)
	}
	return nil
}

// WaitEntropy returns once the kernel's random generator is seeded. It asks
// without blocking, so that ctx can end the wait and no thread hangs. What
// seeds it (RDSEED, virtio-rng, the TPM, interrupts) is the kernel's affair.
func (h *Host) WaitEntropy(ctx context.Context) error {
	buf := make([]byte, 1)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		switch _, err := h.calls.Getrandom(buf, unix.GRND_NONBLOCK); {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("asking the kernel for random bytes: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the kernel's random generator to be seeded (a virtio-rng device or a TPM would help): %w", ctx.Err())
		case <-tick.C:
		}
	}
}
