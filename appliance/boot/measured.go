package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"gatehouse/firmware/approval"
	"gatehouse/tpm/eventlog"
	"gatehouse/tpm/pcr"
)

// measured is what is known of how firmware started this system.
type measured struct {
	release   *approval.System // what the image says of itself; nil: nothing
	log       *eventlog.Log    // of the firmware; nil: there is none, or it cannot be read
	problem   error            // why there is no log
	registers pcr.Values       // as the kernel shows them; nil: there is no TPM
}

// shown are the registers of the line on the console: who may sign, and the
// release with what came beside it.
var shown = []int{7, 11, 12, 13}

// measurements notes how the firmware started this system. Nothing is decided
// by it: the policy of the sealed key compares the registers, in the TPM.
func (b *box) measurements(context.Context) error {
	var errs []error
	m := &b.measured
	note := func(err error) {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	var err error
	m.release, err = b.machine.Approved()
	note(err)
	m.log, m.problem = b.machine.EventLog()
	note(m.problem)
	m.registers, err = b.machine.Registers(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13)
	note(err)
	if m.registers != nil {
		line := m.line()
		b.log.Info(line)
		fmt.Fprintf(os.Stderr, "gatehouse: %s\n", line)
	}
	return errors.Join(errs...)
}

// path is the approved way in which this system was started; "" if none is.
func (m *measured) path() string {
	if m.release == nil || m.registers == nil {
		return ""
	}
	path, _ := m.release.Started(pcr.Values{11: m.registers[11], 12: m.registers[12], 13: m.registers[13]})
	return path
}

// line says it for automation, in the form of the line of the state.
func (m *measured) line() string {
	path, epoch := m.path(), "-"
	if path == "" {
		path = "-"
	}
	if m.release != nil {
		epoch = fmt.Sprint(m.release.Epoch)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "measured path=%s epoch=%s", path, epoch)
	for _, i := range shown {
		v := m.registers[i]
		fmt.Fprintf(&s, " pcr%d=%s", i, hex.EncodeToString(v[:]))
	}
	return s.String()
}
