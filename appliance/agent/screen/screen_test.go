package screen

import (
	"bytes"
	"testing"
	"time"

	"gatehouse/appliance/session/wire"
)

func alone() *Screen {
	return New(Config{Width: 80, Height: 24, Touch: func() {}, Gone: func() {}, Resume: time.Minute, Confirm: time.Minute})
}

// The ring has the newest bytes, whatever the steps in which they came.
func FuzzRing(f *testing.F) {
	f.Add([]byte{1, 255, 0, 77}, uint32(5))
	f.Add(bytes.Repeat([]byte{255}, 40), uint32(300_000))
	f.Fuzz(func(t *testing.T, steps []byte, seen uint32) {
		sc := alone()
		var all []byte
		for i, n := range steps {
			b := bytes.Repeat([]byte{byte(i)}, int(n)*97)
			all = append(all, b...)
			if _, err := sc.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		h, at := sc.attach(nil, uint64(seen))
		if len(all) > ringSize && at < uint64(len(all)-ringSize) || at > uint64(len(all)) {
			t.Fatalf("from %d of %d", at, len(all))
		}
		got, buf := []byte(nil), make([]byte, wire.MaxFrame)
		for h.pos < sc.total {
			n := sc.take(buf, h.pos)
			got = append(got, buf[:n]...)
			h.pos += uint64(n)
		}
		if !bytes.Equal(got, all[at:]) {
			t.Fatal("other bytes than came")
		}
	})
}

// What a holder may not send ends its hold, and not the screen.
func TestSES4_FramesThatAreNone(t *testing.T) {
	sc := alone()
	h, _ := sc.attach(nil, 0)
	for kind, content := range map[wire.Kind]string{wire.Size: "123", wire.Output: "x", wire.Exit: "{}", wire.Ask: "{}", 0: "", 'z': ""} {
		if err := sc.received(h, kind, []byte(content)); err == nil {
			t.Errorf("%q was taken", kind)
		}
	}
	for kind, content := range map[wire.Kind]string{wire.Size: "\x00\x00\xff\xff", wire.Confirm: "", wire.Input: ""} {
		if err := sc.received(h, kind, []byte(content)); err != nil {
			t.Errorf("%q: %v", kind, err)
		}
	}
	if len(sc.typed) != 0 {
		t.Error("an empty frame is taken for the end of the input")
	}
	if w, height := sc.Sized(nil); w != 1 || height != MaxColumns {
		t.Errorf("%d by %d", w, height)
	}
	select {
	case <-sc.Done():
		t.Error("the screen has ended")
	default:
	}
}
