// Package serve is the agent's side of package files: it judges what a session may, writes it down, and does it at the target.
package serve

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/remote"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

// Config is what Stream knows of the session.
type Config struct {
	Session    session.ID
	Technician string          // for the audit, and so are the next two
	Address    string          // that the technician comes from; empty: not known
	Target     string          // its name
	Functions  right.Functions // of the grant
	Files      *remote.Access  // of the target
	At         string          // the target's host:port
	Account    string          // that the agent signs in with there; Over asks the connection
	Claims     *remote.Claims  // of the agent, on the parts that its sessions write to
	// Audit returns once the event is on disk; without it nothing happens.
	Audit func(context.Context, control.Event) error
	// Tell tells the hub of a transfer. That it could not be told stops
	// nothing: the audit of the site has it.
	Tell func(attend.FromSite) error
}

var needs = map[files.Op]right.Functions{
	files.List: right.FileManager, files.Stat: right.FileManager, files.Mkdir: right.FileManager, files.Rename: right.FileManager, files.Remove: right.FileManager,
	files.Get: right.ReceiveFiles, files.Hash: right.ReceiveFiles, files.Put: right.SendFiles,
}

// Over makes what serves the streams of a session, each with a connection to
// the target that it may use: they share one channel on the first.
func Over(cfg Config) func(context.Context, *ssh.Client, wire.Stream, wire.Open) error {
	type key struct{}
	cfg.Files = remote.NewAccess(func(ctx context.Context) (io.ReadWriteCloser, error) {
		return remote.Subsystem(ctx.Value(key{}).(*ssh.Client))
	})
	return func(ctx context.Context, c *ssh.Client, s wire.Stream, o wire.Open) error {
		cfg := cfg
		cfg.Account = c.User()
		return Stream(context.WithValue(ctx, key{}, c), cfg, s, o)
	}
}

// Stream does what one stream asks for and closes it. The error is for the log
// of the agent; the technician's end was told.
func Stream(ctx context.Context, cfg Config, s wire.Stream, o wire.Open) error {
	defer linger(s)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	q, err := parse(o.Args)
	if err != nil {
		return refuse(s, err)
	}
	w := work{Config: cfg, q: q, s: s, f: files.NewFrames(s), cancel: cancel}
	need := needs[q.Op]
	if !cfg.Functions.Has(need) {
		err := wire.Refuse(wire.Denied, "This session may not do that (%s): it needs the right %s, which was not granted.", q.Op, need)
		_ = w.audit(ctx, auditWords[q.Op], "refused", map[string]string{"right": need.String()}) // refused either way
		return refuse(s, err)
	}
	t, done, err := cfg.Files.Use(ctx)
	if err != nil {
		var r *wire.Refusal
		if !errors.As(err, &r) {
			err = wire.Refuse(wire.Unreachable, "The files of the target cannot be reached: %v", err)
		}
		return refuse(s, err)
	}
	defer done()
	switch q.Op {
	case files.Get:
		return w.get(ctx, t)
	case files.Put:
		return w.put(ctx, t)
	case files.Hash:
		return w.hash(ctx, t)
	case files.List:
		return w.list(ctx, t)
	case files.Stat:
		return w.stat(t)
	}
	return w.change(ctx, t)
}

// lingering is how long the other end is given to read the last that is said to it.
const lingering = 10 * time.Second

// linger closes a stream once the other end has, which it does when it has read
// the answer: Close ends both ways at once, whatever is still on its way.
func linger(s wire.Stream) {
	defer s.Close()
	defer time.AfterFunc(lingering, func() { s.Close() }).Stop()
	_, _ = io.Copy(io.Discard, s) // of a put that was refused more may come
}

func refuse(s wire.Stream, err error) error {
	return errors.Join(err, wire.WriteRefusal(s, err), s.CloseWrite())
}

// parse reads a request and checks what does not depend on the target.
func parse(args json.RawMessage) (q files.Request, err error) {
	if err := files.Message(args, &q); err != nil {
		return q, wire.Refuse(wire.Invalid, "%v", err)
	}
	if len(q.Path) == 0 {
		q.Path = []byte(".")
	}
	if q.Mode == 0 {
		q.Mode = map[files.Op]uint32{files.Put: 0o644, files.Mkdir: 0o755}[q.Op]
	}
	_, known := needs[q.Op]
	switch {
	case !known:
		return q, wire.Refuse(wire.Invalid, "%.20q is not an operation on files", q.Op)
	case len(q.Path) > files.MaxPath || bytes.IndexByte(q.Path, 0) >= 0:
		return q, wire.Refuse(wire.Invalid, "a path has at most %d bytes, none of them zero", files.MaxPath)
	case q.Op == files.Rename && (len(q.To) == 0 || len(q.To) > files.MaxPath || bytes.IndexByte(q.To, 0) >= 0):
		return q, wire.Refuse(wire.Invalid, "the new path has 1 to %d bytes, none of them zero", files.MaxPath)
	case q.Op != files.Rename && len(q.To) > 0 || q.Op != files.Put && len(q.Name) > 0:
		return q, wire.Refuse(wire.Invalid, "the operation %s takes one path", q.Op)
	case len(q.Name) > 255 || bytes.ContainsAny(q.Name, "/\x00") || string(q.Name) == "." || string(q.Name) == "..":
		return q, wire.Refuse(wire.Invalid, "a name has at most 255 bytes, none of them a slash or zero")
	case q.Size < 0 || q.From < 0 || q.Mode > 0o777:
		return q, wire.Refuse(wire.Invalid, "sizes are not negative, and modes are permission bits")
	case q.SHA256 != "" && !isHash(q.SHA256), (q.From > 0) != (q.SHA256 != ""):
		return q, wire.Refuse(wire.Invalid, "what is there already comes with its SHA-256, 64 lower-case hex digits")
	}
	return q, nil
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && strings.ToLower(s) == s
}

// work is one operation.
type work struct {
	Config
	q files.Request
	s wire.Stream
	f *files.Frames

	cancel  context.CancelFunc // of the context that all of it runs in, and its stream
	replied bool
}

// maxDetail is the longest text in the audit, in bytes: two paths full of
// escapes still make one line of it.
const maxDetail = 6 << 10

// auditWords are the actions in the audit log.
var auditWords = map[files.Op]string{
	files.List: "list files", files.Stat: "list files", files.Mkdir: "make folder", files.Rename: "rename file", files.Remove: "remove file",
	files.Get: "receive file", files.Hash: "hash file", files.Put: "send file",
}

func (w *work) audit(ctx context.Context, action, outcome string, detail map[string]string) error {
	// A log that takes the agent for the actor has the technician in the detail.
	d := map[string]string{"session": w.Session.String(), "technician": w.Technician, "path": files.Shown(string(w.q.Path))}
	if w.Address != "" {
		d["address"] = w.Address
	}
	maps.Copy(d, detail)
	for k, v := range d {
		if len(v) > maxDetail {
			d[k] = strings.ToValidUTF8(v[:maxDetail], "") + "…"
		}
	}
	err := w.Audit(ctx, control.Event{Actor: w.Technician, Action: action, Object: w.Target, From: w.Address, Outcome: outcome, Detail: d})
	if err != nil {
		return wire.Refuse(wire.Failed, "The agent could not write this down in its audit log, so it was not done: %v", err)
	}
	return nil
}

// reply answers the Open.
func (w *work) reply(v any) error {
	p := wire.Reply{}
	if v != nil {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("answering about files: %w", err)
		}
		p.Args = b
	}
	w.replied = true
	return wire.WriteReply(w.s, p)
}

// trouble is an error of the target in words. The person may do there what the
// account may that the agent signs in with.
func trouble(doing, path string, err error) error {
	var r *wire.Refusal
	var lost *lostError
	path = files.Shown(path)
	switch {
	case errors.As(err, &r), errors.As(err, &lost):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return wire.Refuse(wire.NotFound, "%s %s: the target has no such file or folder.", doing, path)
	case errors.Is(err, fs.ErrPermission):
		return wire.Refuse(wire.Failed, "%s %s: the target does not let this account do that.", doing, path)
	case errors.Is(err, remote.ErrLost):
		return wire.Refuse(wire.Unreachable, "%s %s: the connection to the target was lost.", doing, path)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return wire.Refuse(wire.Unreachable, "%s %s: the session ended.", doing, path)
	}
	return wire.Refuse(wire.Failed, "%s %s: %v", doing, path, err)
}

func entry(name string, i fs.FileInfo) files.Entry {
	e := files.Entry{Name: []byte(name), Kind: files.Other, Size: i.Size(), Mode: uint32(i.Mode().Perm()), Time: i.ModTime().Unix()}
	switch {
	case i.Mode().IsRegular():
		e.Kind = files.File
	case i.IsDir():
		e.Kind = files.Folder
	case i.Mode()&fs.ModeSymlink != 0:
		e.Kind = files.Link
	}
	return e
}

func (w *work) list(ctx context.Context, t remote.Files) error {
	path := string(w.q.Path)
	entries, more, err := t.List(ctx, path)
	if err != nil {
		return refuse(w.s, trouble("Listing", path, err))
	}
	if err := w.reply(nil); err != nil {
		return err
	}
	for len(entries) > 0 {
		var page []files.Entry
		for size := 0; len(entries) > 0 && size < files.MaxContent/2; entries = entries[1:] {
			name := entries[0].Name()
			if len(name) > files.MaxPath {
				more = true
				continue
			}
			size += len(name)*4/3 + 100
			page = append(page, entry(name, entries[0]))
		}
		if err := w.f.Say(files.FrameEntries, page); err != nil {
			return err
		}
	}
	return errors.Join(w.f.Say(files.FrameEnd, files.Listed{More: more}), w.s.CloseWrite())
}

func (w *work) stat(t remote.Files) error {
	path := string(w.q.Path)
	i, err := t.Stat(path)
	if err != nil {
		// A link that leads nowhere is a link.
		if i, err = t.Lstat(path); err != nil {
			return refuse(w.s, trouble("Looking at", path, err))
		}
	}
	return errors.Join(w.reply(entry(path, i)), w.s.CloseWrite())
}

// change is an operation that needs no content. It is written down before it is done.
func (w *work) change(ctx context.Context, t remote.Files) error {
	path, action := string(w.q.Path), auditWords[w.q.Op]
	detail := map[string]string{}
	if w.q.Op == files.Rename {
		detail["to"] = files.Shown(string(w.q.To))
	}
	if w.q.Op == files.Mkdir {
		switch there, err := w.folder(t, path); {
		case err != nil:
			return refuse(w.s, err)
		case there:
			return errors.Join(w.reply(nil), w.s.CloseWrite())
		}
	}
	if err := w.audit(ctx, action, "", detail); err != nil {
		return refuse(w.s, err)
	}
	var err error
	switch w.q.Op {
	case files.Mkdir:
		err = t.Mkdir(path, fs.FileMode(w.q.Mode&^0o022))
	case files.Remove:
		err = t.Remove(path)
	case files.Rename:
		if _, there := t.Lstat(string(w.q.To)); there == nil {
			err = wire.Refuse(wire.Failed, "Renaming %s: there is a %s already.", files.Shown(path), files.Shown(string(w.q.To)))
		} else {
			err = t.Rename(path, string(w.q.To))
		}
	}
	if err != nil {
		err = trouble(doing[w.q.Op], path, err)
		detail["error"] = err.Error()
		return errors.Join(refuse(w.s, err), w.outcome(ctx, action, "failed", detail))
	}
	return errors.Join(w.outcome(ctx, action, "ok", detail), w.reply(nil), w.s.CloseWrite())
}

var doing = map[files.Op]string{files.Mkdir: "Making the folder", files.Remove: "Removing", files.Rename: "Renaming"}

// folder says whether a folder is there; anything else in its place is an error.
func (w *work) folder(t remote.Files, path string) (bool, error) {
	look := t.Stat
	if w.q.NoLinks {
		look = t.Lstat
	}
	i, err := look(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, trouble("Making the folder", path, err)
	case !i.IsDir():
		return false, wire.Refuse(wire.Failed, "Making the folder %s: there is something else of that name.", files.Shown(path))
	}
	return true, nil
}

// outcome writes down how something ended, also when the session ended meanwhile.
func (w *work) outcome(ctx context.Context, action, outcome string, detail map[string]string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return w.audit(ctx, action, outcome, detail)
}
