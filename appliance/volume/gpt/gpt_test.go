package gpt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	diskgpt "github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"
)

var (
	typeMeta = uuid.MustParse("6b1d2c4e-5f0a-4c9e-9d5b-2f6f0a7e4d11")
	typeData = uuid.MustParse("0e7a7f3c-9a4b-4f5e-8a55-7d1c3b2e9f20")
	idESP    = uuid.MustParse("11111111-2222-4333-8444-555555555555")
	idMeta   = uuid.MustParse("66666666-7777-4888-9999-aaaaaaaaaaaa")
	idData   = uuid.MustParse("bbbbbbbb-cccc-4ddd-8eee-ffffffffffff")
)

const (
	imageSectors = 16384  // 8 MiB image
	diskSectors  = 204800 // on a 100 MiB disk
)

// memory is a disk in memory. A clone shares the data and keeps its own
// sectors apart, so that thousands of power cuts cost little.
type memory struct {
	data []byte
	own  map[int64]*[512]byte // nil: data is not shared
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.data)) {
		return 0, io.ErrUnexpectedEOF
	}
	copy(p, m.data[off:])
	for s := off / 512; s*512 < off+int64(len(p)); s++ {
		if sector := m.own[s]; sector != nil {
			from := max(s*512, off)
			copy(p[from-off:], sector[from-s*512:])
		}
	}
	return len(p), nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.data)) {
		return 0, io.ErrShortWrite
	}
	if m.own == nil {
		return copy(m.data[off:], p), nil
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		sector := m.own[at/512]
		if sector == nil {
			sector = (*[512]byte)(bytes.Clone(m.data[at/512*512:][:512]))
			m.own[at/512] = sector
		}
		n += copy(sector[at%512:], p[n:])
	}
	return len(p), nil
}

func (m *memory) Sync() error { return nil }

func (m *memory) clone() *memory {
	own := make(map[int64]*[512]byte, len(m.own))
	for s, sector := range m.own {
		same := *sector
		own[s] = &same
	}
	return &memory{m.data, own}
}

// image makes the disk that a first start finds, by an independent writer: an
// image of imageSectors at the beginning of a disk of sectors.
func image(t testing.TB, sectors uint64) (*memory, Geometry) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	d, err := diskfs.Create(path, imageSectors*512, diskfs.SectorSize512)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Partition(&diskgpt.Table{
		LogicalSectorSize: 512, PhysicalSectorSize: 512, ProtectiveMBR: true,
		Partitions: []*diskgpt.Partition{
			{Index: 1, Start: 2048, End: 4095, Type: diskgpt.EFISystemPartition, Name: "ESP", GUID: idESP.String()},
			{Index: 2, Start: 4096, End: 12287, Type: diskgpt.Type(strings.ToUpper(typeMeta.String())), Name: "gatehouse-meta", GUID: idMeta.String()},
		},
	}); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	m := &memory{data: make([]byte, sectors*512)}
	f, err := diskfs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Backend.ReadAt(m.data[:imageSectors*512], 0); err != nil {
		t.Fatal(err)
	}
	return m, Geometry{512, sectors}
}

func grown(t testing.TB, m *memory, g Geometry) Table {
	t.Helper()
	table, _, err := Read(m, g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := table.Append(g, typeData, idData, "gatehouse-data", 64<<20); err != nil {
		t.Fatal(err)
	}
	return table
}

// reseal makes the checksums of the primary right again after a change, so
// that a test shows the rule and not the checksum.
func reseal(m *memory, change func(header, entries []byte)) {
	h, e := m.data[512:1024], m.data[1024:1024+entryCount*entrySize]
	change(h, e)
	binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(e))
	binary.LittleEndian.PutUint32(h[16:], headerCRC(h))
}

func TestReadRefuses(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func(h, e []byte)
		want   string
	}{
		"no signature":             {func(h, _ []byte) { h[0] = 'X' }, "no table header"},
		"another revision":         {func(h, _ []byte) { h[8] = 1 }, "revision"},
		"a longer header":          {func(h, _ []byte) { h[12] = 96 }, "92 bytes"},
		"another place":            {func(h, _ []byte) { h[24] = 2 }, "for sector 2"},
		"fewer entries":            {func(h, _ []byte) { h[80] = 4 }, "128 entries"},
		"larger entries":           {func(h, _ []byte) { le.PutUint32(h[84:], 256) }, "128 entries"},
		"entries elsewhere":        {func(h, _ []byte) { h[72] = 3 }, "places"},
		"backup in the middle":     {func(h, _ []byte) { le.PutUint64(h[32:], 5000) }, "places"},
		"backup behind the end":    {func(h, _ []byte) { le.PutUint64(h[32:], diskSectors) }, "places"},
		"usable over entries":      {func(h, _ []byte) { le.PutUint64(h[40:], 33) }, "usable"},
		"usable over the end":      {func(h, _ []byte) { le.PutUint64(h[48:], diskSectors-33) }, "usable"},
		"usable huge":              {func(h, _ []byte) { le.PutUint64(h[48:], 1<<63) }, "usable"},
		"usable backwards":         {func(h, _ []byte) { le.PutUint64(h[40:], 16000); le.PutUint64(h[48:], 15000) }, "usable"},
		"partition over the front": {func(_, e []byte) { le.PutUint64(e[32:], 5) }, "partition 1"},
		"partition over the end":   {func(_, e []byte) { le.PutUint64(e[40:], diskSectors) }, "partition 1"},
		"partition backwards":      {func(_, e []byte) { le.PutUint64(e[40:], 2047) }, "partition 1"},
		"overlap":                  {func(_, e []byte) { le.PutUint64(e[40:], 4096) }, "overlap"},
		"the same id":              {func(_, e []byte) { copy(e[128+16:], e[16:32]) }, "same id"},
		"no id":                    {func(_, e []byte) { clear(e[16:32]) }, "no id"},
		"rubbish in unused":        {func(_, e []byte) { e[127*128+60] = 1 }, "unused"},
		"rubbish behind the name":  {func(_, e []byte) { e[56+70] = 'x' }, "name"},
		"a name that is no text":   {func(_, e []byte) { e[56], e[57] = 0, 0xd8 }, "name"},
	} {
		m, g := image(t, diskSectors)
		reseal(m, c.change)
		_, health, err := Read(m, g)
		if err == nil || health.Primary == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if !strings.Contains(health.Primary.Error(), c.want) {
			t.Errorf("%s: %v, want something with %q", name, health.Primary, c.want)
		}
	}
}

func TestReadRefusesChecksums(t *testing.T) {
	for _, at := range []int{512 + 60, 1024 + 40, 1024 + 127*128} {
		m, g := image(t, diskSectors)
		m.data[at] ^= 1
		if _, health, err := Read(m, g); err == nil || !strings.Contains(health.Primary.Error(), "checksum") {
			t.Errorf("byte %d changed: %v", at, err)
		}
	}
}

func TestReadRefusesDisks(t *testing.T) {
	m, g := image(t, diskSectors)
	for name, bad := range map[string]Geometry{
		"sectors of 520": {520, diskSectors}, "tiny": {512, 40}, "none": {512, 0}, "endless": {512, 1 << 60},
		"smaller than the table": {512, 10000},
	} {
		if _, _, err := Read(m, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := Read(m, Geometry{4096, diskSectors / 8}); err == nil {
		t.Error("an image for 512-byte sectors was accepted on a disk of 4096")
	}
	m.data[510] = 0
	if _, _, err := Read(m, g); !errors.Is(err, ErrNone) {
		t.Errorf("no MBR signature: %v", err)
	}
	m.data[510], m.data[446+4] = 0x55, 0x83
	if _, _, err := Read(m, g); !errors.Is(err, ErrNone) {
		t.Errorf("an ordinary MBR: %v", err)
	}
}

func TestReadImageOfAnotherWriter(t *testing.T) {
	m, g := image(t, diskSectors)
	table, health, err := Read(m, g)
	if err != nil || health.Primary != nil || health.Backup == nil {
		t.Fatalf("Read = %+v, %v; want a whole primary and no backup at the end yet", health, err)
	}
	n, p, ok := table.Find(typeMeta)
	if !ok || n != 2 || p != (Partition{Type: typeMeta, ID: idMeta, First: 4096, Last: 12287, Name: "gatehouse-meta"}) {
		t.Errorf("Find(META) = %d, %+v, %v", n, p, ok)
	}
	if _, _, ok := table.Find(typeData); ok {
		t.Error("found a data partition that is not there")
	}
	table.Entries[5] = Partition{Type: typeMeta, ID: idData, First: 12288, Last: 12289}
	if _, _, ok := table.Find(typeMeta); ok {
		t.Error("of two META partitions one was chosen")
	}
}

func TestAppendRefuses(t *testing.T) {
	m, g := image(t, imageSectors)
	table, _, err := Read(m, g)
	if err != nil {
		t.Fatal(err)
	}
	before := table
	if _, err := table.Append(g, typeData, idData, "d", 64<<20); err == nil || !strings.Contains(err.Error(), "larger disk") {
		t.Errorf("no room: %v", err)
	}
	if _, err := table.Append(Geometry{512, diskSectors}, typeData, idMeta, "d", 1); err == nil {
		t.Error("a second partition with the id of META")
	}
	if _, err := table.Append(Geometry{512, diskSectors}, typeData, idData, strings.Repeat("x", 37), 1); err == nil {
		t.Error("a name that does not fit")
	}
	if table != before {
		t.Error("a refused Append changed the table")
	}
	table.Entries[127] = Partition{Type: typeData, ID: idData, First: 12288, Last: 12289}
	if _, err := table.Append(Geometry{512, diskSectors}, typeData, uuid.New(), "d", 1); err == nil {
		t.Error("a 129th entry")
	}
}

// The table that we write must be good in the eyes of another implementation,
// and its first sector untouched.
func TestCommitReadByAnotherReader(t *testing.T) {
	m, g := image(t, diskSectors)
	mbr := bytes.Clone(m.data[:512])
	want := grown(t, m, g)
	if err := Commit(m, g, want); err != nil {
		t.Fatal(err)
	}
	got, health, err := Read(m, g)
	if err != nil || !health.Whole() || got != want {
		t.Fatalf("our reader: %v %+v, equal %v", err, health, got == want)
	}
	if !bytes.Equal(mbr, m.data[:512]) {
		t.Error("sector 0 was written")
	}
	path := filepath.Join(t.TempDir(), "disk")
	writeFile(t, path, m.data)
	d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	check(t, d, g)
}

func check(t *testing.T, d *disk.Disk, g Geometry) {
	t.Helper()
	pt, err := d.GetPartitionTable()
	if err != nil {
		t.Fatal(err)
	}
	if err := pt.Verify(d.Backend, uint64(g.Sectors*512)); err != nil {
		t.Errorf("the other reader's check: %v", err)
	}
	table := pt.(*diskgpt.Table)
	var data *diskgpt.Partition
	for _, p := range table.Partitions {
		if p.Index == 3 {
			data = p
		}
	}
	if data == nil || !strings.EqualFold(string(data.Type), typeData.String()) || data.Name != "gatehouse-data" {
		t.Fatalf("the other reader's partition 3: %+v", data)
	}
	if data.Start != 12288 || data.End != diskSectors-2048-1 {
		t.Errorf("data at %d–%d, want aligned from 12288 to the last whole MiB", data.Start, data.End)
	}
}

func TestCommit4096(t *testing.T) {
	g := Geometry{4096, 25600}
	m := &memory{data: make([]byte, g.Sectors*4096)}
	m.data[510], m.data[511], m.data[446+4], m.data[446+8] = 0x55, 0xaa, 0xee, 1
	first := Table{Disk: idESP, FirstUsable: 6, LastUsable: 2000}
	first.Entries[0] = Partition{Type: typeMeta, ID: idMeta, First: 256, Last: 1279, Name: "gatehouse-meta"}
	if err := writeCopy(m, g, first, 1); err != nil {
		t.Fatal(err)
	}
	want := grown(t, m, g)
	if err := Commit(m, g, want); err != nil {
		t.Fatal(err)
	}
	if got, health, err := Read(m, g); err != nil || !health.Whole() || got != want {
		t.Errorf("Read = %+v, %v", health, err)
	}
	if p := want.Entries[1]; p.First != 1280 || (p.Last+1)%256 != 0 {
		t.Errorf("data at %d–%d", p.First, p.Last)
	}
}

func TestCommitRefuses(t *testing.T) {
	m, g := image(t, diskSectors)
	before := bytes.Clone(m.data)
	bad := grown(t, m, g)
	bad.Entries[2].First = 5000
	if err := Commit(m, g, bad); err == nil {
		t.Error("a table with an overlap was written")
	}
	m.data[512] = 'X'
	before[512] = 'X'
	if err := Commit(m, g, grownFrom(bad)); err == nil {
		t.Error("a table was written to a disk without one")
	}
	if !bytes.Equal(before, m.data) {
		t.Error("a refused Commit wrote")
	}
}

func grownFrom(t Table) Table { t.Entries[2].First = 12288; return t }

func FuzzRead(f *testing.F) {
	m, _ := image(f, 16384)
	f.Add(m.data[512 : 1024+entryCount*entrySize])
	f.Add([]byte{})
	g := Geometry{512, 16384}
	base := make([]byte, g.Sectors*512)
	base[510], base[511], base[446+4], base[446+8] = 0x55, 0xaa, 0xee, 1
	f.Fuzz(func(t *testing.T, front []byte) {
		// The checksums are made right: else the fuzzer only ever sees them.
		small := &memory{data: make([]byte, 1024+entryCount*entrySize)}
		copy(small.data[512:], front)
		reseal(small, func(_, _ []byte) {})
		d := (&memory{data: base}).clone()
		if _, err := d.WriteAt(small.data[512:], 512); err != nil {
			t.Fatal(err)
		}
		table, _, err := Read(d, g)
		if err != nil {
			return
		}
		if err := table.Check(); err != nil {
			t.Fatalf("Read gave a table that Check refuses: %v", err)
		}
		if err := Commit(d, g, table); err != nil {
			t.Fatalf("a table that was read cannot be written: %v", err)
		}
		table.LastUsable = g.lastUsable()
		if again, health, err := Read(d, g); err != nil || !health.Whole() || again != table {
			t.Fatalf("written and read again: %+v, %v", health, err)
		}
	})
}
