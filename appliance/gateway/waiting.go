package gateway

import (
	"container/list"
	"io"
	"net/netip"
	"sync"

	"gatehouse/appliance/handover"
)

// waiting holds the connections that have not said yet what they want. There
// is room for so many in all and so many of one source; when it is full the
// oldest goes, not the newest: an honest client says what it wants within a
// round trip, so a flood of silent ones pushes itself out.
type waiting struct {
	all, perSource int

	mu     sync.Mutex
	order  *list.List // of *guest, oldest first
	source map[netip.Prefix]*list.List
}

type guest struct {
	conn         io.Closer
	addr         netip.Addr
	from         netip.Prefix
	place, among *list.Element // nil once out
}

func newWaiting(all, perSource int) *waiting {
	return &waiting{all: all, perSource: perSource, order: list.New(), source: make(map[netip.Prefix]*list.List)}
}

// enter takes a connection in and closes another one if it must.
func (w *waiting) enter(c io.Closer, from netip.Addr) *guest {
	g := &guest{conn: c, addr: from.Unmap().WithZone(""), from: handover.Source(from)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.source[g.from]; l != nil && l.Len() >= w.perSource {
		w.evict(l.Front())
	}
	if w.order.Len() >= w.all {
		w.evict(w.order.Front())
	}
	l := w.source[g.from]
	if l == nil {
		l = list.New()
		w.source[g.from] = l
	}
	g.place, g.among = w.order.PushBack(g), l.PushBack(g)
	return g
}

// leave gives the place back; the connection stays as it is.
func (w *waiting) leave(g *guest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(g)
}

// cut closes the connections whose source is not to be kept. The local socket
// has no source, and stays.
func (w *waiting) cut(keep func(netip.Addr) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for e := w.order.Front(); e != nil; {
		next := e.Next()
		if g, ok := e.Value.(*guest); ok && g.addr.IsValid() && !keep(g.addr) {
			w.evict(e)
		}
		e = next
	}
}

func (w *waiting) evict(e *list.Element) {
	g, ok := e.Value.(*guest)
	if !ok {
		return
	}
	w.remove(g)
	g.conn.Close() // its reader sees that and logs it
}

func (w *waiting) remove(g *guest) {
	if g.place == nil {
		return
	}
	w.order.Remove(g.place)
	l := w.source[g.from]
	l.Remove(g.among)
	if l.Len() == 0 {
		delete(w.source, g.from)
	}
	g.place, g.among = nil, nil
}
