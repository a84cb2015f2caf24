package boot

import (
	"encoding/binary"
	"os"
	"testing"
)

// What the machine wrote, in dm-log-writes format (kernel document
// admin-guide/device-mapper/log-writes, drivers/md/dm-log-writes.c): a
// superblock, then for each request a header and its data, all little-endian
// and in whole sectors.
const (
	logMagic   = 0x6a736677736872
	logDiscard = 1 << 2
)

// request is one that the disk got.
type request struct {
	at     int64
	data   []byte // none: a flush, or a discard, after which a sector may hold anything
	logged int64  // where it begins in the log
}

func readLog(t testing.TB, path string) []request {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(log) < 512 || binary.LittleEndian.Uint64(log) != logMagic || binary.LittleEndian.Uint64(log[8:]) != 1 {
		t.Fatalf("%s is not a log of writes", path)
	}
	count, unit := binary.LittleEndian.Uint64(log[16:]), int64(binary.LittleEndian.Uint32(log[24:]))
	if unit < 512 || unit > 4096 {
		t.Fatalf("%s has sectors of %d bytes", path, unit)
	}
	var all []request
	at := unit
	for range count {
		if at+unit > int64(len(log)) {
			t.Fatalf("%s ends after %d of %d requests", path, len(all), count)
		}
		h := log[at:]
		size, flags := int64(binary.LittleEndian.Uint64(h[8:]))*unit, binary.LittleEndian.Uint64(h[16:])
		r := request{at: int64(binary.LittleEndian.Uint64(h)) * unit, logged: at}
		at += unit
		if flags&logDiscard == 0 && size > 0 {
			if at+size > int64(len(log)) {
				t.Fatalf("%s ends in the data of request %d", path, len(all))
			}
			r.data = log[at : at+size]
			at += size
		}
		all = append(all, r)
	}
	return all
}

// replay carries out the first n bytes of a request, or all of it.
func (r request) replay(t testing.TB, disk *os.File, n int) {
	t.Helper()
	if _, err := disk.WriteAt(r.data[:n], r.at); err != nil {
		t.Fatal(err)
	}
}

func (r request) touches(from, to int64) bool {
	return len(r.data) > 0 && r.at < to && r.at+int64(len(r.data)) > from
}
