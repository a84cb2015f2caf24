package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume/gpt"
)

// A power cut at any moment of the first start, judged by our own reader: after
// each request to the disk, and after each sector of those to the partition
// table and the header, the box is the old one (blank) or the new one, never a
// mixture. Three such disks are started, with the TPM of that time.
func TestBOX2_PowerCutInTheFirstStart(t *testing.T) {
	blank := newDisk(t)
	box := stage{disk: filepath.Join(t.TempDir(), "disk.img"), state: t.TempDir()}
	copyDisk(t, blank, box.disk)
	m := box.machine(t)
	m.WriteLog = filepath.Join(t.TempDir(), "writes")
	if err := os.WriteFile(m.WriteLog, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	chip := watchTPM(t, box.state, m.WriteLog)
	guest := start(t, m)
	box.line = state(t, guest, "unclaimed", "url", "code")
	off(t, guest)
	moments := chip()
	log := readLog(t, m.WriteLog)

	j := newJudge(t, blank)
	for _, r := range log {
		if err := j.step(t, r); err != nil {
			t.Fatalf("a power cut at request %d: %v", j.requests, err)
		}
	}
	t.Logf("%d requests, %d disks judged; data partition after request %d, header from %d to %d; %d states of the TPM",
		len(log), j.judged, j.partitioned, j.header, j.committed, len(moments))
	if !j.new || j.partitioned == 0 || j.header <= j.partitioned || j.committed < j.header || len(moments) < 2 {
		t.Fatal("the log does not show a first start")
	}

	early := moments.before(log[j.header].logged)
	if last := moments[len(moments)-1]; len(early.state) == 0 || string(early.state) == string(last.state) {
		t.Fatal("the TPM is not seen changing after the header was written")
	}
	cuts := []struct {
		name   string
		upTo   int // requests
		torn   int // bytes of the next one
		same   bool
		moment moment
	}{
		{"in the middle of making the volume", (j.partitioned + j.header) / 2, 0, false, moments.before(log[(j.partitioned+j.header)/2].logged)},
		{"in the middle of the header", j.header, sector, false, early},
		{"after the header and before the TPM knows", j.committed + 1, 0, true, early},
	}
	for _, c := range cuts {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cut := stage{disk: filepath.Join(t.TempDir(), "disk.img"), state: t.TempDir()}
			copyDisk(t, blank, cut.disk)
			cut.upTo(t, log[:c.upTo])
			if c.torn > 0 {
				cut.upTo(t, []request{{at: log[c.upTo].at, data: log[c.upTo].data[:c.torn]}})
			}
			c.moment.restore(t, box.state, cut.state)
			guest := start(t, cut.machine(t))
			got := state(t, guest, "unclaimed", "url", "code")
			if c.same {
				same(t, "after the cut", got, line{"name": box.line["name"], "fingerprint": got["fingerprint"]})
			} else if got["name"] == box.line["name"] {
				t.Errorf("cut off before the header, and the box is the one that was not made: %v", got)
			}
			visit(t, guest.Addr(443), nil).expect("unclaimed", got)
			off(t, guest)
		})
	}
}

func (s stage) upTo(t testing.TB, log []request) {
	t.Helper()
	disk, err := os.OpenFile(s.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for _, r := range log {
		r.replay(t, disk, len(r.data))
	}
}

// headers is the room of both copies of the vault's header, at the beginning of META.
const headers = 128 << 10

// judge replays a log and looks at the disk as the next start would.
type judge struct {
	disk     *os.File
	geometry gpt.Geometry
	old      gpt.Table
	meta     part
	tables   [2][2]int64 // where the two partition tables are, in bytes
	requests int
	judged   int
	new      bool // the header is there

	partitioned, header, committed int // requests after, in and by which
}

func newJudge(t testing.TB, blank string) *judge {
	t.Helper()
	copied := stage{disk: filepath.Join(t.TempDir(), "judged.img")}
	copyDisk(t, blank, copied.disk)
	j := &judge{meta: copied.partition(t, metaType), header: -1}
	j.disk = j.meta.file
	j.geometry = geometry(t, j.disk)
	var err error
	if j.old, _, err = gpt.Read(j.disk, j.geometry); err != nil {
		t.Fatal(err)
	}
	end := int64(j.geometry.Sectors) * sector
	j.tables = [2][2]int64{{0, 34 * sector}, {end - 33*sector, end}}
	return j
}

// step carries out a request and judges the disk after it; of one that goes to
// a table or to META, after each of its sectors.
func (j *judge) step(t testing.TB, r request) error {
	t.Helper()
	inMeta := r.touches(j.meta.at, j.meta.at+j.meta.size)
	// The header's two copies come first in META; others have places behind them.
	if j.header < 0 && r.touches(j.meta.at, j.meta.at+headers) {
		j.header = j.requests
	}
	if inMeta || r.touches(j.tables[0][0], j.tables[0][1]) || r.touches(j.tables[1][0], j.tables[1][1]) {
		for n := sector; n < len(r.data); n += sector {
			r.replay(t, j.disk, n)
			if err := j.look(t.Context()); err != nil {
				return fmt.Errorf("after %d of %d bytes: %w", n, len(r.data), err)
			}
		}
	}
	r.replay(t, j.disk, len(r.data))
	if err := j.look(t.Context()); err != nil {
		return err
	}
	j.requests++
	return nil
}

// look is the verdict: the old box or the new one, or an error.
func (j *judge) look(ctx context.Context) error {
	j.judged++
	table, _, err := gpt.Read(j.disk, j.geometry)
	if err != nil {
		return err
	}
	number, _, there := table.Find(dataType)
	if there && j.partitioned == 0 {
		j.partitioned = j.requests
	}
	if there {
		table.Entries[number-1] = gpt.Partition{}
	}
	if table.Entries != j.old.Entries {
		return errors.New("the partition table is neither the old nor the new one")
	}
	if !there && j.partitioned > 0 {
		return errors.New("the data partition is gone again")
	}
	seen, err := vault.Inspect(ctx, vault.Config{Meta: j.meta})
	switch {
	case err != nil:
		return err
	case seen.Problem != nil:
		return fmt.Errorf("the header is neither blank nor whole: %w", seen.Problem)
	case seen.Blank && j.new:
		return errors.New("the header is gone again")
	case seen.Blank:
		return nil
	case !there:
		return errors.New("there is a header and no data partition")
	case seen.Mechanism != "tpm":
		return fmt.Errorf("the header says %s", seen.Mechanism)
	}
	if !j.new {
		j.new, j.committed = true, j.requests
	}
	return nil
}

// The judge itself, on disks that no first start may leave.
func TestJudgeRefusesMixtures(t *testing.T) {
	blank := newDisk(t)
	forged := newJudge(t, blank)
	forge(t, forged.meta, "5a17c0de-0000-0000-0000-000000000001")
	header := make([]byte, 8192)
	if _, err := forged.meta.ReadAt(header, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		bad  func(j *judge) request
		want string
	}{
		{"a header before its volume", func(j *judge) request { return request{at: j.meta.at, data: header} }, "no data partition"},
		{"noise in the second header", func(j *judge) request {
			return request{at: j.meta.at + 64<<10, data: bytes.Repeat([]byte{7}, 512)}
		}, "neither blank nor whole"},
		{"no tables", func(j *judge) request { return request{data: make([]byte, 34*sector)} }, "partition table"},
	} {
		j := newJudge(t, blank)
		if err := j.step(t, c.bad(j)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: the verdict is %v, want one about %q", c.name, err, c.want)
		}
	}
}

// moment is the TPM at a time, told by how long the log of writes was.
type moment struct {
	logged int64
	state  []byte
}

type momentsOf []moment

// tpmState is the file that swtpm keeps everything in that survives a power
// cut. It replaces it as a whole.
const tpmState = "tpm2-00.permall"

// watchTPM keeps every state of the TPM from now on, until it is called.
func watchTPM(t testing.TB, state, log string) func() momentsOf {
	t.Helper()
	var all momentsOf
	end, ended := make(chan struct{}), make(chan struct{})
	file := filepath.Join(state, "tpm", tpmState)
	look := func() {
		// The log first: what it holds by then was written before this state.
		info, err := os.Stat(log)
		if err != nil {
			return
		}
		now, err := os.ReadFile(file)
		if err != nil || len(now) == 0 || len(all) > 0 && string(now) == string(all[len(all)-1].state) {
			return // not there yet, or as before
		}
		all = append(all, moment{info.Size(), now})
	}
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(5 * time.Millisecond):
				look()
			}
		}
	}()
	stop := sync.OnceFunc(func() { close(end); <-ended })
	t.Cleanup(stop)
	return func() momentsOf { stop(); look(); return all }
}

// before is the TPM when the log was so long, or before there was one.
func (all momentsOf) before(logged int64) (last moment) {
	for _, m := range all {
		if m.logged <= logged {
			last = m
		}
	}
	return last
}

// restore makes the state of the same machine with the TPM of the moment.
func (m moment) restore(t testing.TB, from, to string) {
	t.Helper()
	id, err := os.ReadFile(filepath.Join(from, "machine-id"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "machine-id"), id, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(to, "tpm"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	if m.state == nil {
		return // a TPM that was never used
	}
	if err := os.WriteFile(filepath.Join(to, "tpm", tpmState), m.state, 0o600); err != nil {
		t.Fatal(err)
	}
}
