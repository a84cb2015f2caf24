package bench

import (
	"os"
	"sync"
	"time"
)

// Half of a round trip, and what a cable of this length may hold.
const (
	half     = 50 * time.Millisecond
	onItsWay = 1 << 15 // frames
	farAway  = "10.9.0.2"
)

// cable joins the box and the far place: a frame comes out at the other end
// half a round trip later.
func (w *world) cable() {
	w.b.Helper()
	ends := [2]*os.File{w.box.Tap(w.b, "wan"), w.far.Tap(w.b, "wan")}
	var wg sync.WaitGroup
	for i, from := range ends {
		way := make(chan frame, onItsWay)
		wg.Go(func() { fill(way, from) })
		wg.Go(func() { drain(ends[1-i], way) })
	}
	w.b.Cleanup(func() {
		for _, e := range ends {
			e.Close()
		}
		wg.Wait()
	})
	w.box.Up(w.b, "wan", near+"/24")
	w.far.Up(w.b, "wan", farAway+"/24")
}

type frame struct {
	due   time.Time
	bytes []byte
}

func fill(way chan<- frame, from *os.File) {
	defer close(way)
	for {
		b := make([]byte, 2048)
		n, err := from.Read(b)
		if err != nil {
			return // closed at the end
		}
		select {
		case way <- frame{time.Now().Add(half), b[:n]}:
		default: // full: dropped, as on any link
		}
	}
}

func drain(to *os.File, way <-chan frame) {
	for f := range way {
		if wait := time.Until(f.due); wait > 100*time.Microsecond {
			time.Sleep(wait)
		}
		_, _ = to.Write(f.bytes) // a link that is down drops
	}
}
