package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a session that flows.
type pair struct {
	ends    [2]*net.TCPConn
	sources [2]netip.Addr
	flow    func(to, from *net.TCPConn) (int64, error)
	once    sync.Once
}

// looks is how often an idle session is looked at while its time runs.
const looks = 4

var (
	errIdle = errors.New("no byte went through for too long")
	errOver = errors.New("the session's time is over")
)

// run copies both ways until both have ended, or the time is up, and says how
// many bytes went through. One direction that ends closes that way alone: the
// other may still have an answer to give.
func (p *pair) run(ctx context.Context, life, idle time.Duration) (uint64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, p.cut)()
	over := time.AfterFunc(life, func() { cancel(errOver) })
	defer over.Stop()
	stop := p.watchIdle(idle, func() { cancel(errIdle) })
	defer stop()

	var wg sync.WaitGroup
	var n [2]int64
	var errs [2]error
	one := func(i int) {
		if n[i], errs[i] = p.flow(p.ends[1-i], p.ends[i]); errs[i] != nil {
			p.cut()
			return
		}
		errs[i] = p.ends[1-i].CloseWrite()
	}
	wg.Go(func() { one(0) })
	one(1) // a goroutine less for each session
	wg.Wait()
	p.cut()
	if cause := context.Cause(ctx); cause != nil {
		return uint64(n[0] + n[1]), cause
	}
	return uint64(n[0] + n[1]), errors.Join(errs[:]...)
}

// cut ends both at once.
func (p *pair) cut() {
	p.once.Do(func() {
		for _, c := range p.ends {
			c.Close()
		}
	})
}

// watchIdle calls quiet when no byte arrived from either end for idle. The
// bytes never pass through this process, so the kernel is asked for its count.
func (p *pair) watchIdle(idle time.Duration, quiet func()) (stop func()) {
	if idle <= 0 {
		return func() {}
	}
	var mu sync.Mutex
	var last uint64
	var timer *time.Timer
	same, stopped := 0, false
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if stopped {
			return
		}
		n, err := p.received()
		if err != nil {
			return // closed: run is about to end
		}
		if same++; n != last {
			last, same = n, 0
		}
		if same >= looks {
			quiet()
			return
		}
		timer.Reset(idle / looks)
	}
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(idle/looks, look)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// received is how many bytes came from both ends (tcp_info, bytes_received).
func (p *pair) received() (uint64, error) {
	var sum uint64
	for _, c := range p.ends {
		raw, err := c.SyscallConn()
		if err != nil {
			return 0, err
		}
		var info *unix.TCPInfo
		var infoErr error
		if err := raw.Control(func(fd uintptr) {
			info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		}); err != nil {
			return 0, err
		}
		if infoErr != nil {
			return 0, fmt.Errorf("asking for a connection's count of bytes: %w", infoErr)
		}
		sum += info.Bytes_received
	}
	return sum, nil
}

// watcher finds out when an end that should be silent closes, or speaks.
type watcher struct {
	conn *net.TCPConn
	gone chan struct{}
	done chan struct{}
}

// watch tells an end to wait and starts to watch it.
func (e *end) watch() (*watcher, error) {
	if err := writeFrame(e.tls, frameWait, nil); err != nil {
		return nil, err
	}
	if err := e.conn.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	raw, err := e.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &watcher{e.conn, make(chan struct{}), make(chan struct{})}
	go func() { // ends with stop
		defer close(w.done)
		var b [1]byte
		var peekErr error
		err := raw.Read(func(fd uintptr) bool {
			_, _, peekErr = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return !errors.Is(peekErr, unix.EAGAIN) && !errors.Is(peekErr, unix.EINTR)
		})
		// An end of file, an error or a byte is not waiting; only stop sets a deadline.
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			close(w.gone)
		}
	}()
	return w, nil
}

// stop ends the watch and says whether the end was still there, and silent.
func (w *watcher) stop() bool {
	if err := w.conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		<-w.done
		return false
	}
	<-w.done
	select {
	case <-w.gone:
		return false
	default:
	}
	return w.conn.SetReadDeadline(time.Time{}) == nil
}
