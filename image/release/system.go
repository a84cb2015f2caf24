package release

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	"gatehouse/firmware"
	"gatehouse/firmware/approval"
	"gatehouse/image/initramfs"
	"gatehouse/image/uki"
)

// inside is what a system says of itself.
type inside struct {
	sections  []uki.Section
	approvals approval.System
	version   string
	next      firmware.Keys // who signs the release after it
	program   *debug.BuildInfo
}

// look reads a system. Nothing in it is believed here but its shape.
func look(program []byte) (in inside, err error) {
	if in.sections, err = uki.Read(program); err != nil {
		return in, err
	}
	section := func(name string) []byte {
		for _, s := range in.sections {
			if s.Name == name {
				return s.Content
			}
		}
		return nil
	}
	if in.approvals, err = approval.Open(section(".pcrsig"), section(".pcrpkey")); err != nil {
		return in, err
	}
	for line := range strings.Lines(string(section(".osrel"))) {
		if v, ok := strings.CutPrefix(line, "VERSION_ID="); ok {
			in.version = strings.Trim(v, "\"\n")
		}
	}
	files, err := initramfs.Read(section(".initrd"))
	if err != nil {
		return in, err
	}
	text, ok := files[firmware.KeysFile]
	if !ok {
		return in, fmt.Errorf("it lacks %s: a box that runs it could take no release after it", firmware.KeysFile)
	}
	if in.next, err = firmware.ParseKeys(string(text)); err != nil {
		return in, fmt.Errorf("%s in it: %w", firmware.KeysFile, err)
	}
	if in.program, err = buildinfo.Read(bytes.NewReader(files["init"])); err != nil {
		return in, fmt.Errorf("its program: %w", err)
	}
	return in, nil
}

// Program says what the program of a system was linked from.
func Program(system []byte) (*debug.BuildInfo, error) {
	in, err := look(system)
	if err != nil {
		return nil, fmt.Errorf("reading a system: %w", err)
	}
	return in.program, nil
}

// registers computes anew what the sections lead to, and says whether that is
// what was approved, for each way of starting.
func (in inside) registers() error {
	ways := uki.Paths()
	if len(ways) != len(in.approvals.Starts) {
		return fmt.Errorf("%d ways of starting are approved, and there are %d", len(in.approvals.Starts), len(ways))
	}
	for _, way := range ways {
		values, err := uki.Registers(in.sections, way)
		if err != nil {
			return err
		}
		if got, ok := in.approvals.Started(values); !ok || got != string(way) {
			return fmt.Errorf("PCR 11, 12 and 13 after the start %q are others than those approved: the system was changed after it was approved", way)
		}
	}
	return nil
}

// same says whether the approvals in a system are those of its manifest.
func (in inside) same(m firmware.Manifest, s firmware.System) error {
	switch {
	case m.Approver == nil || !m.Approver.Equal(in.approvals.Key):
		return errors.New("the manifest names another approver than the system has")
	case m.Epoch != in.approvals.Epoch:
		return fmt.Errorf("the manifest is of epoch %d, and the approvals in the system are of %d", m.Epoch, in.approvals.Epoch)
	}
	want := starts(in.approvals)
	if len(want) != len(s.Starts) {
		return fmt.Errorf("the manifest has %d approvals, and the system %d", len(s.Starts), len(want))
	}
	for i, w := range want {
		if s.Starts[i].Path != w.Path || s.Starts[i].Approval.Policy != w.Approval.Policy {
			return fmt.Errorf("the manifest approves other registers for the start %q than the system", w.Path)
		}
	}
	return nil
}

// numbers are the three of a version, before what a build adds to them.
func numbers(version string) string {
	n, _, _ := strings.Cut(version, "+")
	return n
}
