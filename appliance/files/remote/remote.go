// Package remote is the files of a target, reached by SFTP: what pkg/sftp does, with a limit on all that a target may send or keep waiting.
package remote

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/files"
	"gatehouse/appliance/session/wire"
)

// Files is what a target has, as SFTP shows it.
type Files interface {
	Stat(path string) (fs.FileInfo, error)  // follows links
	Lstat(path string) (fs.FileInfo, error) // does not
	RealPath(path string) (string, error)
	List(ctx context.Context, path string) (entries []fs.FileInfo, more bool, err error)
	Free(path string) (bytes uint64, known bool)
	Open(path string) (File, error)                // to read
	Create(path string, resume bool) (File, error) // to write and read, for the account alone; new unless resume
	Mkdir(path string, mode fs.FileMode) error
	Rename(from, to string) error  // fails where to exists
	Replace(from, to string) error // at once, where the target can
	Remove(path string) error
}

// File is an open one.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error // where the target can
	Chmod(mode fs.FileMode) error
	Chown(uid, gid int) error
}

const (
	patience     = 2 * time.Minute // for one answer of a target; then it is taken for dead
	syncPatience = 15 * time.Minute
	greeting     = 30 * time.Second
	slots        = 8        // operations at once on one connection
	maxListing   = 16 << 20 // bytes of SFTP for one folder
	inFlight     = files.Chunk / 32768
)

// Subsystem opens SFTP over an SSH connection, which others may use too.
func Subsystem(c *ssh.Client) (io.ReadWriteCloser, error) {
	defer time.AfterFunc(patience, func() { c.Close() }).Stop()
	s, err := c.NewSession()
	if err != nil {
		return nil, fmt.Errorf("opening a channel for files: %w", err)
	}
	in, err := s.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := s.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.RequestSubsystem("sftp"); err != nil {
		s.Close()
		return nil, wire.Refuse(wire.Failed, "The target offers no SFTP, which files need: %v", err)
	}
	return &subsystem{Writer: in, out: out, session: s, client: c, ended: make(chan struct{})}, nil
}

type subsystem struct {
	io.Writer
	out     io.Reader
	session *ssh.Session
	client  *ssh.Client
	ended   chan struct{}
	once    sync.Once
}

// Read is called until it fails, by pkg/sftp.
func (s *subsystem) Read(b []byte) (int, error) {
	n, err := s.out.Read(b)
	if err != nil {
		s.once.Do(func() { close(s.ended) })
	}
	return n, err
}

// Close asks the target to end the channel. One that does not is not there any
// more, and nothing but the end of the connection ends what waits for it.
func (s *subsystem) Close() error {
	time.AfterFunc(5*time.Second, func() {
		select {
		case <-s.ended:
		default:
			s.client.Close()
		}
	})
	return s.session.Close()
}

// Access is SFTP to one target for all streams of a session: one connection,
// made when it is first needed, and again when it was lost.
type Access struct {
	dial  func(context.Context) (io.ReadWriteCloser, error)
	slots chan struct{}

	mu     sync.Mutex
	now    *remote
	closed bool
}

// NewAccess takes who connects. Its errors are shown to the technician.
func NewAccess(dial func(context.Context) (io.ReadWriteCloser, error)) *Access {
	return &Access{dial: dial, slots: make(chan struct{}, slots)}
}

// Use gives the target to one operation, until done is called.
func (a *Access) Use(ctx context.Context) (f Files, done func(), err error) {
	select {
	case a.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	r, err := a.connection(ctx)
	if err != nil {
		<-a.slots
		return nil, nil, err
	}
	return r, sync.OnceFunc(func() { <-a.slots }), nil
}

func (a *Access) connection(ctx context.Context) (*remote, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, errors.New("the session is over")
	}
	if a.now != nil && !a.now.dead() {
		return a.now, nil
	}
	c, err := a.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() }) // the target may never greet
	late := time.AfterFunc(greeting, func() { c.Close() })
	r, err := newRemote(c)
	late.Stop()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("speaking SFTP with the target: %w", err)
	}
	a.now = r
	return r, nil
}

// Close ends the connection and what goes on over it.
func (a *Access) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.now == nil {
		return nil
	}
	return a.now.wire.Close()
}

// remote is Files by pkg/sftp. That takes no context for most requests, so
// each is watched: without an answer in time the connection is closed.
type remote struct {
	wire    io.Closer
	c       *sftp.Client
	gone    chan struct{}
	lost    atomic.Bool // somebody was told so, before gone is closed
	names   *names
	listing sync.Mutex
}

func newRemote(c io.ReadWriteCloser) (*remote, error) {
	n := &names{r: c}
	client, err := sftp.NewClientPipe(n, c, sftp.UseConcurrentWrites(true), sftp.MaxConcurrentRequestsPerFile(inFlight))
	if err != nil {
		return nil, err
	}
	r := &remote{wire: c, c: client, gone: make(chan struct{}), names: n}
	go func() { // ends with the connection, which its Access closes
		defer close(r.gone)
		_ = client.Wait() // why it ended is told by each request that was waiting
		c.Close()
	}()
	return r, nil
}

func (r *remote) dead() bool {
	select {
	case <-r.gone:
		return true
	default:
		return r.lost.Load()
	}
}

// ErrLost is wrapped by errors that are not of a file: the connection to the
// target is gone, or is not SFTP any more. The next use makes another.
var ErrLost = errors.New("the connection to the target was lost")

// judge tells what the target answered from what became of the connection. A
// write to a channel that is closed fails with io.EOF, too.
func (r *remote) judge(err error) error {
	var status *sftp.StatusError
	switch {
	case err == nil, errors.As(err, &status), errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	r.lost.Store(true)
	r.wire.Close()
	// Not wrapped: the end of a connection is io.EOF too, and is not the end of a file.
	return fmt.Errorf("%w: %v", ErrLost, err)
}

func (r *remote) watch(limit time.Duration) func() bool {
	return time.AfterFunc(limit, func() { r.wire.Close() }).Stop
}

func (r *remote) Stat(path string) (fs.FileInfo, error) {
	defer r.watch(patience)()
	x, err := r.c.Stat(path)
	return x, r.judge(err)
}

func (r *remote) Lstat(path string) (fs.FileInfo, error) {
	defer r.watch(patience)()
	x, err := r.c.Lstat(path)
	return x, r.judge(err)
}

func (r *remote) RealPath(path string) (string, error) {
	defer r.watch(patience)()
	x, err := r.c.RealPath(path)
	return x, r.judge(err)
}

func (r *remote) Mkdir(path string, mode fs.FileMode) error {
	defer r.watch(patience)()
	if err := r.c.Mkdir(path); err != nil {
		return r.judge(err)
	}
	return r.judge(r.c.Chmod(path, mode))
}

func (r *remote) Remove(path string) error {
	defer r.watch(patience)()
	return r.judge(r.c.Remove(path))
}

func (r *remote) Rename(from, to string) error {
	defer r.watch(patience)()
	return r.judge(r.c.Rename(from, to))
}

// Replace is atomic with OpenSSH's extension. Without it there is a moment in
// which neither is there: SFTP's own rename refuses what exists. A power cut in
// it leaves the part, whole.
func (r *remote) Replace(from, to string) error {
	defer r.watch(patience)()
	if _, can := r.c.HasExtension("posix-rename@openssh.com"); can {
		return r.judge(r.c.PosixRename(from, to))
	}
	if _, err := r.c.Lstat(to); err == nil {
		if err := r.c.Remove(to); err != nil {
			return r.judge(err)
		}
	}
	return r.judge(r.c.Rename(from, to))
}

func (r *remote) Free(path string) (uint64, bool) {
	defer r.watch(patience)()
	if _, can := r.c.HasExtension("statvfs@openssh.com"); !can {
		return 0, false
	}
	v, err := r.c.StatVFS(path)
	if err != nil || v.Frsize == 0 {
		return 0, false
	}
	return v.Frsize * v.Bavail, true
}

func (r *remote) Open(path string) (File, error) {
	defer r.watch(patience)()
	f, err := r.c.Open(path)
	if err != nil {
		return nil, r.judge(err)
	}
	return content{f, r}, nil
}

// Create makes a new file itself, never through a link that another account of
// the target has laid; what is resumed was looked at before.
func (r *remote) Create(path string, resume bool) (File, error) {
	defer r.watch(patience)()
	flags := os.O_RDWR
	if !resume {
		flags |= os.O_CREATE | os.O_EXCL
	}
	f, err := r.c.OpenFile(path, flags)
	if err != nil {
		return nil, r.judge(err)
	}
	if err := f.Chmod(0o600); err != nil {
		f.Close()
		return nil, r.judge(err)
	}
	return content{f, r}, nil
}

// List reads a folder, one at a time and bounded: pkg/sftp keeps all that a
// target sends, and a hostile one need never end.
func (r *remote) List(ctx context.Context, path string) ([]fs.FileInfo, bool, error) {
	r.listing.Lock()
	defer r.listing.Unlock()
	defer r.watch(syncPatience)()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.names.begin(func() { cancel(errTooMany) })
	defer r.names.begin(nil)
	entries, err := r.c.ReadDirContext(ctx, path)
	if err != nil && errors.Is(context.Cause(ctx), errTooMany) {
		return entries[:min(len(entries), files.MaxEntries)], true, nil
	}
	return entries, false, r.judge(err)
}

var errTooMany = errors.New("the folder holds too much")

// content is a file of a remote.
type content struct {
	*sftp.File
	r *remote
}

// ReadAt reads on where the target gave less than it was asked for: pkg/sftp
// takes that for the end of the file.
func (f content) ReadAt(b []byte, at int64) (read int, err error) {
	for read < len(b) {
		stop := f.r.watch(patience)
		n, err := f.File.ReadAt(b[read:], at+int64(read))
		stop()
		read += max(n, 0)
		switch {
		case err == nil, n > 0 && errors.Is(err, io.EOF):
		case !errors.Is(err, io.EOF):
			return read, f.r.judge(err)
		default: // the end of the file, or of the connection: who can be asked more is there
			if _, asked := f.Stat(); asked != nil {
				return read, asked
			}
			return read, io.EOF
		}
	}
	return read, nil
}

func (f content) WriteAt(b []byte, at int64) (int, error) {
	defer f.r.watch(patience)()
	n, err := f.File.WriteAt(b, at)
	return n, f.r.judge(err)
}

func (f content) Sync() error {
	if _, can := f.r.c.HasExtension("fsync@openssh.com"); !can {
		return nil
	}
	defer f.r.watch(syncPatience)()
	return f.r.judge(f.File.Sync())
}

func (f content) Stat() (fs.FileInfo, error) {
	defer f.r.watch(patience)()
	i, err := f.File.Stat()
	return i, f.r.judge(err)
}

func (f content) Truncate(size int64) error {
	defer f.r.watch(patience)()
	return f.r.judge(f.File.Truncate(size))
}

func (f content) Chmod(mode fs.FileMode) error {
	defer f.r.watch(patience)()
	return f.r.judge(f.File.Chmod(mode))
}

func (f content) Chown(uid, gid int) error {
	defer f.r.watch(patience)()
	return f.r.judge(f.File.Chown(uid, gid))
}

func (f content) Close() error {
	defer f.r.watch(patience)()
	err := f.File.Close()
	if err == os.ErrClosed {
		return err // twice: the connection has no part in it
	}
	return f.r.judge(err)
}

// names reads along with the packets of SFTP (draft-ietf-secsh-filexfer-02, 3):
// length (4), type (1), id (4), and for SSH_FXP_NAME the number of names (4).
type names struct {
	r    io.Reader
	head []byte // of the packet that begins, up to 13 bytes
	left int    // bytes of the packet after its head

	mu             sync.Mutex
	entries, bytes uint64
	stop           func()
}

func (n *names) begin(stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.entries, n.bytes, n.stop = 0, 0, stop
}

func (n *names) Read(b []byte) (int, error) {
	read, err := n.r.Read(b)
	for b = b[:max(read, 0)]; len(b) > 0; {
		if n.left > 0 {
			k := min(n.left, len(b))
			n.left, b = n.left-k, b[k:]
			continue
		}
		want := 5
		if len(n.head) >= 5 {
			want = 13
		}
		k := min(want-len(n.head), len(b))
		n.head, b = append(n.head, b[:k]...), b[k:]
		if len(n.head) == want {
			n.packet()
		}
	}
	return read, err
}

// packet looks at a head of 5 bytes, and of 13 if it is one of names.
func (n *names) packet() {
	const name = 104
	length := int(binary.BigEndian.Uint32(n.head)) + 4
	if n.head[4] == name && len(n.head) < 13 && length >= 13 {
		return // 8 more
	}
	if len(n.head) == 13 {
		n.count(uint64(length), uint64(binary.BigEndian.Uint32(n.head[9:])))
	}
	n.left = max(length-len(n.head), 0)
	n.head = n.head[:0]
}

func (n *names) count(bytes, entries uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bytes += bytes
	n.entries += entries
	if n.stop != nil && (n.entries > files.MaxEntries+2 || n.bytes > maxListing) {
		n.stop()
	}
}

// Owner is whose a file is at the target, if it says so.
func Owner(i fs.FileInfo) (uid, gid int, known bool) {
	s, known := i.Sys().(*sftp.FileStat)
	if !known {
		return 0, 0, false
	}
	return int(s.UID), int(s.GID), true
}
