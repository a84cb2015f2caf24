package boot

import (
	"bytes"
	"encoding/json"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/vault"
)

// A box that cannot open its data comes up with the network that was kept
// last, by META's copy, and is reached there: unlocking from afar needs that.
func TestNET3_LockedComesUpWithTheKeptNetwork(t *testing.T) {
	t.Parallel()
	box := stage{disk: newDisk(t), state: t.TempDir()}
	meta := box.partition(t, metaType)
	noise := bytes.Repeat([]byte{7}, 4096)
	for _, header := range []int64{0, 64 << 10} {
		if _, err := meta.WriteAt(noise, header); err != nil {
			t.Fatal(err)
		}
	}
	var s control.NetworkSettings
	// The second address is where the machine's forwarded port leads.
	const text = `{"links":[{"name":"eth0","mode":"static","addresses":["10.0.2.77/24","10.0.2.15/24"],"gateways":["10.0.2.2"]}]}`
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatal(err)
	}
	kept, err := netconf.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := vault.WriteNetwork(meta, kept); err != nil {
		t.Fatal(err)
	}
	before := box.hash(t)
	guest := start(t, box.machine(t))
	got := state(t, guest, "locked", "url")
	if got["url"] != "https://10.0.2.77/" {
		t.Errorf("the box is at %s", got["url"])
	}
	visit(t, guest.Addr(443), nil).expect("locked", got)
	off(t, guest)
	if box.hash(t) != before {
		t.Error("a locked start wrote to the disk, and not what it may note in META")
	}
}
