package boot

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Without a cable the console still comes and says what is missing; with the
// cable in, the page is there without a restart.
func TestBOX12_NoCable(t *testing.T) {
	t.Parallel()
	box := stage{disk: newDisk(t), state: t.TempDir()}
	m := box.machine(t)
	dir, err := os.MkdirTemp("", "gh")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m.QMP = filepath.Join(dir, "qmp")
	guest := start(t, m)
	cable(t, m.QMP, false)
	without := state(t, guest, "unclaimed", "code")
	if without["url"] != "" {
		t.Errorf("without a cable there is an address: %v", without)
	}
	block(t, guest, "no cable: plug a network cable in")
	cable(t, m.QMP, true)
	with := state(t, guest, "unclaimed", "url")
	same(t, "with the cable in", with, without)
	visit(t, guest.Addr(443), nil).expect("unclaimed", with)
	off(t, guest)
}

// cable pulls the network cable or puts it in.
func cable(t testing.TB, socket string, in bool) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewScanner(conn)
	for _, command := range []string{
		`{"execute":"qmp_capabilities"}`,
		fmt.Sprintf(`{"execute":"set_link","arguments":{"name":"net","up":%v}}`, in),
	} {
		answers.Scan() // the greeting, then the answer to the one before
		if _, err := fmt.Fprintln(conn, command); err != nil {
			t.Fatal(err)
		}
	}
	if !answers.Scan() || answers.Text() != `{"return": {}}` {
		t.Fatalf("QEMU answers %q to the cable (%v)", answers.Text(), answers.Err())
	}
}

// A data volume whose file system is gone beyond mending: said on every face,
// and never made anew.
func TestBOX12_DamagedVolumeIsKept(t *testing.T) {
	t.Parallel()
	_, owned := lives(t)
	box := owned.own(t)
	data := box.partition(t, dataType)
	// The superblock and its copies, at the begin of block groups 1, 3 and 5.
	noise := make([]byte, 8<<20)
	for i := range noise {
		noise[i] = byte(i * 7)
	}
	const group = 32768 * 4096
	for _, at := range []int64{0, group, 3 * group, 5 * group, 7 * group} {
		if at >= data.size {
			break
		}
		if _, err := data.WriteAt(noise, at); err != nil {
			t.Fatal(err)
		}
	}
	before := box.hash(t)
	const why = "The data volume could not be read as a file system"
	off(t, box.locked(t, box.machine(t), why))
	if box.hash(t) != before {
		t.Error("the damaged volume was changed")
	}
}
