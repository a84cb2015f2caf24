package serve_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/files"
	"gatehouse/appliance/files/filestest"
	"gatehouse/appliance/session/wire"
)

const all = right.FileManager | right.SendFiles | right.ReceiveFiles

// ask opens a stream and reads the answer.
func ask(t testing.TB, s *filestest.Site, q files.Request) (wire.Stream, *files.Frames, wire.Reply, error) {
	t.Helper()
	args, err := json.Marshal(q)
	if err != nil {
		t.Fatal(err)
	}
	return askRaw(t, s, args)
}

func askRaw(t testing.TB, s *filestest.Site, args []byte) (wire.Stream, *files.Frames, wire.Reply, error) {
	t.Helper()
	stream, err := s.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	p, err := filestest.Ask(stream, wire.Open{Do: wire.Files, Args: args})
	return stream, files.NewFrames(stream), p, err
}

func code(err error) wire.Code {
	var r *wire.Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ""
}

// put sends content, and says how it ended.
func put(t testing.TB, s *filestest.Site, q files.Request, content []byte) (files.End, error) {
	t.Helper()
	q.Op, q.Size = files.Put, int64(len(content))
	stream, f, _, err := ask(t, s, q)
	if err != nil {
		return files.End{}, err
	}
	defer stream.Close()
	var begin files.Begin
	if err := f.Expect(files.FrameBegin, &begin, nil); err != nil {
		return files.End{}, err
	}
	h := sha256.Sum256(content)
	go func() { // the end comes whatever becomes of it
		_ = f.Write(files.FrameData, content[begin.From:])
		_ = f.Say(files.FrameEnd, files.End{Size: q.Size, SHA256: hex.EncodeToString(h[:])})
	}()
	var end files.End
	return end, f.Expect(files.FrameEnd, &end, func(int64) {})
}

func get(t testing.TB, s *filestest.Site, q files.Request) (content []byte, end files.End, err error) {
	t.Helper()
	q.Op = files.Get
	stream, f, _, err := ask(t, s, q)
	if err != nil {
		return nil, end, err
	}
	defer stream.Close()
	var begin files.Begin
	if err := f.Expect(files.FrameBegin, &begin, func(int64) {}); err != nil {
		return nil, end, err
	}
	for {
		kind, b, err := f.Read()
		if err != nil {
			return content, end, err
		}
		if kind == files.FrameEnd {
			return content, end, files.Message(b, &end)
		}
		content = append(content, b...)
	}
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o640); err != nil {
		t.Fatal(err)
	}
}

// holds checks the names in a folder.
func holds(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func TestSES4_EveryRightWithheldIsRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), []byte("secret"))
	for op, need := range map[files.Op]right.Functions{
		files.List: right.FileManager, files.Stat: right.FileManager, files.Mkdir: right.FileManager, files.Rename: right.FileManager, files.Remove: right.FileManager,
		files.Get: right.ReceiveFiles, files.Hash: right.ReceiveFiles, files.Put: right.SendFiles,
	} {
		s := filestest.NewSite(t, right.AllFunctions&^need, func(context.Context) (io.ReadWriteCloser, error) {
			t.Errorf("%s: the target was asked", op)
			return nil, errors.New("no")
		})
		q := files.Request{Op: op, Path: []byte("file"), Size: 1}
		if op == files.Rename {
			q.To = []byte("other")
		}
		_, _, _, err := ask(t, s, q)
		if code(err) != wire.Denied || !strings.Contains(err.Error(), need.String()) {
			t.Errorf("%s without %s: %v", op, need, err)
		}
		events, told := s.Snapshot()
		if len(events) != 1 || events[0].Outcome != "refused" || events[0].Detail["right"] != need.String() || len(told) != 0 {
			t.Errorf("%s was written down as %+v", op, events)
		}
	}
	holds(t, dir, "file")
}

func TestSES4_RequestsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	long := bytes.Repeat([]byte("x"), files.MaxPath+1)
	for name, q := range map[string]files.Request{
		"no operation":        {},
		"unknown operation":   {Op: "chmod"},
		"path with zero":      {Op: files.Stat, Path: []byte("a\x00b")},
		"long path":           {Op: files.Stat, Path: long},
		"rename to nothing":   {Op: files.Rename, Path: []byte("a")},
		"rename to zero":      {Op: files.Rename, Path: []byte("a"), To: []byte{0}},
		"two paths":           {Op: files.Remove, Path: []byte("a"), To: []byte("b")},
		"name that is a path": {Op: files.Put, Path: []byte("."), Name: []byte("../a")},
		"name that leads up":  {Op: files.Put, Path: []byte("."), Name: []byte("..")},
		"name for another":    {Op: files.Get, Path: []byte("."), Name: []byte("a")},
		"negative size":       {Op: files.Put, Path: []byte("a"), Size: -1},
		"negative offset":     {Op: files.Get, Path: []byte("a"), From: -1},
		"setuid":              {Op: files.Put, Path: []byte("a"), Mode: 0o4755},
		"offset without hash": {Op: files.Get, Path: []byte("a"), From: 5},
		"hash without offset": {Op: files.Get, Path: []byte("a"), SHA256: strings.Repeat("0", 64)},
		"hash that is none":   {Op: files.Get, Path: []byte("a"), From: 5, SHA256: "00"},
		"hash in capitals":    {Op: files.Get, Path: []byte("a"), From: 5, SHA256: strings.Repeat("A", 64)},
	} {
		if _, _, _, err := ask(t, s, q); code(err) != wire.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, raw := range []string{"", `{"op":"list","more":1}`, `{"op":1}`, `[]`} {
		if _, _, _, err := askRaw(t, s, []byte(raw)); code(err) != wire.Invalid {
			t.Errorf("%q: %v", raw, err)
		}
	}
	if events, _ := s.Snapshot(); len(events) != 0 {
		t.Errorf("written down: %+v", events)
	}
	holds(t, dir)
}

func TestSES4_WhatCannotBeWrittenTo(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	victim := filepath.Join(elsewhere, "victim")
	write(t, victim, []byte("whole"))
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "folder"), 0o755),
		os.Symlink(victim, filepath.Join(dir, "link")),
		os.Symlink("nowhere", filepath.Join(dir, "broken")),
		syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	for path, says := range map[string]string{
		"folder": "it is a folder", "link": "it is a link to " + victim, "broken": "it is a link", "pipe": "it is not a file", "missing/a": "no such", ".": "it is a folder", "missing/": "no such",
	} {
		if _, err := put(t, s, files.Request{Path: []byte(path)}, []byte("new")); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("writing to %s: %v, want %q", path, err, says)
		}
		if path == "link" {
			continue // named by the person it is followed
		}
		if _, _, err := get(t, s, files.Request{Path: []byte(path)}); err == nil {
			t.Errorf("reading %s did not fail", path)
		}
	}
	if _, _, err := get(t, s, files.Request{Path: []byte("link"), NoLinks: true}); code(err) != wire.Invalid {
		t.Errorf("reading through a link that is not to be followed: %v", err)
	}
	// Another account has laid a link where the part will be.
	if err := os.Symlink(victim, filepath.Join(dir, files.PartName("new"))); err != nil {
		t.Fatal(err)
	}
	for _, resume := range []bool{false, true} {
		if _, err := put(t, s, files.Request{Path: []byte("new"), Resume: resume}, []byte("new")); err != nil {
			t.Error(err)
		}
	}
	if b, _ := os.ReadFile(victim); string(b) != "whole" {
		t.Errorf("the file that a link leads to holds %q", b)
	}
	holds(t, dir, "folder", "link", "broken", "pipe", "new")
}

func TestAUD5_TransfersAreWrittenDownWithNameSizeAndHash(t *testing.T) {
	dir := t.TempDir()
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	if _, err := put(t, s, files.Request{Path: []byte("."), Name: []byte("new\nline")}, content); err != nil {
		t.Fatal(err)
	}
	if got, _, err := get(t, s, files.Request{Path: []byte("new\nline")}); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	hash := sha256.Sum256(content)
	events, told := s.Snapshot()
	want := []control.Event{
		{Action: "send file", Detail: map[string]string{"path": ".", "size": "1000000"}},
		{Action: "send file", Outcome: "ok", Detail: map[string]string{"path": `"./new\nline"`, "size": "1000000", "sha256": hex.EncodeToString(hash[:])}},
		{Action: "receive file", Detail: map[string]string{"path": `"new\nline"`, "from": "0"}},
		{Action: "receive file", Outcome: "ok", Detail: map[string]string{"path": `"new\nline"`, "size": "1000000", "sha256": hex.EncodeToString(hash[:])}},
	}
	if len(events) != len(want) {
		t.Fatalf("%d events: %+v", len(events), events)
	}
	for i, w := range want {
		e := events[i]
		w.Detail["session"], w.Detail["technician"], w.Detail["address"] = s.Session.String(), "ada@example.com", "192.0.2.7"
		if e.Actor != "ada@example.com" || e.Object != "Accounts server" || e.Action != w.Action || e.Outcome != w.Outcome || !equal(e.Detail, w.Detail) {
			t.Errorf("event %d is %+v, want %+v", i, e, w)
		}
	}
	for i, way := range []string{"sent", "received"} {
		w := map[string]string{"way": way, "path": want[1+2*i].Detail["path"], "size": "1000000", "sha256": hex.EncodeToString(hash[:])}
		if len(told) != 2 || told[i].What != attend.File || told[i].Session != s.Session || !equal(told[i].Detail, w) {
			t.Errorf("the hub was told %+v, want %v", told, w)
		}
	}
}

func equal(a, b map[string]string) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Equal(x, y)
}

func TestAUD5_NothingThatCannotBeWrittenDown(t *testing.T) {
	for _, outcome := range []string{"", "ok"} { // of the event that the disk has no room for
		dir := t.TempDir()
		write(t, filepath.Join(dir, "file"), []byte("secret"))
		s := filestest.NewSite(t, all, filestest.Target(t, dir))
		s.Fail = func(e control.Event) error {
			if e.Outcome == outcome {
				return errors.New("the audit log is full")
			}
			return nil
		}
		if _, err := put(t, s, files.Request{Path: []byte("new")}, []byte("new")); err == nil || !strings.Contains(err.Error(), "audit") {
			t.Errorf("%q: put = %v", outcome, err)
		}
		content, end, err := get(t, s, files.Request{Path: []byte("file")})
		if err == nil || !strings.Contains(err.Error(), "audit") || end.SHA256 != "" || outcome == "" && len(content) > 0 {
			t.Errorf("%q: get = %q, %+v, %v", outcome, content, end, err)
		}
		if outcome == "" {
			for _, q := range []files.Request{{Op: files.Remove, Path: []byte("file")}, {Op: files.Rename, Path: []byte("file"), To: []byte("other")}, {Op: files.Mkdir, Path: []byte("folder")}, {Op: files.Hash, Path: []byte("file")}} {
				if _, _, _, err := ask(t, s, q); err == nil || !strings.Contains(err.Error(), "audit") {
					t.Errorf("%s = %v", q.Op, err)
				}
			}
		}
		holds(t, dir, "file")
	}
}

func TestSES4_FoldersAndNames(t *testing.T) {
	dir := t.TempDir()
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	do := func(q files.Request) error {
		_, _, _, err := ask(t, s, q)
		return err
	}
	for range 2 { // a folder that is there is one that was made
		if err := do(files.Request{Op: files.Mkdir, Path: []byte("folder"), Mode: 0o750}); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "file"), []byte("x"))
	if err := do(files.Request{Op: files.Mkdir, Path: []byte("file")}); err == nil {
		t.Error("a folder was made over a file")
	}
	if err := os.Symlink("folder", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := do(files.Request{Op: files.Mkdir, Path: []byte("link"), NoLinks: true}); err == nil {
		t.Error("a link counts as a folder where links are not followed")
	}
	if err := do(files.Request{Op: files.Rename, Path: []byte("file"), To: []byte("folder")}); err == nil {
		t.Error("renamed over a folder")
	}
	write(t, filepath.Join(dir, "folder", "b"), nil)
	if err := do(files.Request{Op: files.Rename, Path: []byte("file"), To: []byte("folder/b")}); err == nil {
		t.Error("renamed over a file")
	}
	if err := do(files.Request{Op: files.Rename, Path: []byte("file"), To: []byte("folder/a\xff")}); err != nil {
		t.Error(err)
	}
	if err := do(files.Request{Op: files.Remove, Path: []byte("folder")}); err == nil {
		t.Error("a folder that holds something was removed")
	}
	_, f, _, err := ask(t, s, files.Request{Op: files.List, Path: []byte("folder")})
	if err != nil {
		t.Fatal(err)
	}
	kind, b, err := f.Read()
	var page []files.Entry
	if err := errors.Join(err, files.Message(b, &page)); err != nil || kind != files.FrameEntries || len(page) != 2 {
		t.Fatalf("%q, %+v, %v", kind, page, err)
	}
	slices.SortFunc(page, func(a, b files.Entry) int { return bytes.Compare(a.Name, b.Name) })
	if e := page[0]; string(e.Name) != "a\xff" || e.Kind != files.File || e.Size != 1 || e.Mode != 0o640 || time.Since(time.Unix(e.Time, 0)) > time.Hour {
		t.Errorf("%+v", e)
	}
	for _, path := range []string{"folder/a\xff", "folder/b", "folder", "link"} {
		if err := do(files.Request{Op: files.Remove, Path: []byte(path)}); err != nil {
			t.Error(err)
		}
	}
	if err := do(files.Request{Op: files.Remove, Path: []byte("folder")}); code(err) != wire.NotFound {
		t.Errorf("removing what is not there: %v", err)
	}
	holds(t, dir)
}

func TestSES4_FullDisk(t *testing.T) {
	mount := t.TempDir()
	if err := syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatalf("mounting a small file system (this test needs root): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	s := filestest.NewSite(t, all, filestest.Target(t, mount))
	t.Cleanup(func() { s.Files.Close() })
	write(t, filepath.Join(mount, "old"), []byte("old"))
	if _, err := put(t, s, files.Request{Path: []byte("old")}, make([]byte, 5<<20)); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("a file larger than the disk: %v", err)
	}
	// It fills while the file comes.
	content := make([]byte, 3<<20)
	stream, f, _, err := ask(t, s, files.Request{Op: files.Put, Path: []byte("old"), Size: int64(len(content))})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if err := f.Expect(files.FrameBegin, &files.Begin{}, nil); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mount, "hog"), make([]byte, 2<<20))
	go func() { _ = f.Write(files.FrameData, content) }() // it is stopped
	if err := f.Expect(files.FrameEnd, &files.End{}, nil); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("a disk that fills: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(mount, "old")); string(b) != "old" {
		t.Errorf("the old file holds %q", b)
	}
	holds(t, mount, "old", "hog") // the part gave its room back
}

// spoiler changes one byte of what goes to the target.
type spoiler struct {
	io.ReadWriteCloser
	at int
}

func (s *spoiler) Write(b []byte) (int, error) {
	c := bytes.Clone(b)
	if s.at >= 0 && s.at < len(c) {
		c[s.at] ^= 1
	}
	s.at -= len(c)
	return s.ReadWriteCloser.Write(c)
}

func TestSES4_WhatTheTargetHasIsWhatCounts(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old"), []byte("old"))
	dial := filestest.Target(t, dir)
	s := filestest.NewSite(t, all, func(ctx context.Context) (io.ReadWriteCloser, error) {
		c, err := dial(ctx)
		return &spoiler{c, 200 << 10}, err
	})
	content := make([]byte, 1<<20)
	if _, err := put(t, s, files.Request{Path: []byte("old")}, content); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a byte was changed on its way to the target: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "old")); string(b) != "old" {
		t.Error("the old file was replaced")
	}
	holds(t, dir, "old")
	s.Wait()
	events, told := s.Snapshot()
	last := events[len(events)-1]
	if last.Outcome != "failed" || last.Detail["sha256"] != "" || len(told) != 1 || told[0].Detail["error"] == "" {
		t.Errorf("written down: %+v; told: %+v", last, told)
	}
	// What is sent with a wrong hash, or not as long as announced, is not kept either.
	for _, end := range []files.End{{Size: 3, SHA256: strings.Repeat("0", 64)}, {Size: 4}, {}} {
		_, f, _, err := ask(t, s, files.Request{Op: files.Put, Path: []byte("old"), Size: 3})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Expect(files.FrameBegin, &files.Begin{}, nil), f.Write(files.FrameData, []byte("new")), f.Say(files.FrameEnd, end)); err != nil {
			t.Fatal(err)
		}
		if err := f.Expect(files.FrameEnd, &files.End{}, nil); err == nil {
			t.Errorf("%+v was taken", end)
		}
	}
	_, f, _, err := ask(t, s, files.Request{Op: files.Put, Path: []byte("old"), Size: 3})
	if err := errors.Join(err, f.Expect(files.FrameBegin, &files.Begin{}, nil), f.Write(files.FrameData, []byte("more"))); err != nil {
		t.Fatal(err)
	}
	if err := f.Expect(files.FrameEnd, &files.End{}, nil); code(err) != wire.Invalid {
		t.Errorf("more than was announced: %v", err)
	}
	holds(t, dir, "old")
}

func TestSES4_ReplacingKeepsOwnerAndPermissions(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "old")
	write(t, old, []byte("old"))
	if err := errors.Join(os.Chmod(old, 0o604), os.Chown(old, 4321, 1234)); err != nil {
		t.Fatalf("%v (this test needs root)", err)
	}
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	for path, mode := range map[string]fs.FileMode{"old": 0o604, "new": 0o755} {
		if end, err := put(t, s, files.Request{Path: []byte(path), Mode: 0o777}, []byte("new")); err != nil || end.Note != "" {
			t.Fatal(end, err)
		}
		i, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		sys := i.Sys().(*syscall.Stat_t)
		if i.Mode() != mode || path == "old" && (sys.Uid != 4321 || sys.Gid != 1234) {
			t.Errorf("%s is %v of %d:%d", path, i.Mode(), sys.Uid, sys.Gid)
		}
	}
}

func TestSES4_TheLaterOfTwoPutsIsMeant(t *testing.T) {
	dir := t.TempDir()
	s := filestest.NewSite(t, all, filestest.Target(t, dir))
	_, first, _, err := ask(t, s, files.Request{Op: files.Put, Path: []byte("file"), Size: 10 << 20})
	if err := errors.Join(err, first.Expect(files.FrameBegin, &files.Begin{}, nil), first.Write(files.FrameData, make([]byte, 1<<20))); err != nil {
		t.Fatal(err)
	}
	// Its stream hangs, and the same end comes again.
	if _, err := put(t, s, files.Request{Path: []byte("file"), Resume: true}, []byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := first.Expect(files.FrameEnd, &files.End{}, nil); err == nil {
		t.Error("the first was told that it is done")
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "new" {
		t.Errorf("%d bytes", len(b))
	}
	holds(t, dir, "file")
}

// endless is a hostile SFTP server: its folders have no end.
func endless(t *testing.T) func(context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		requests, in := io.Pipe()
		out, replies := io.Pipe()
		go func() { // ends with the pipes
			var head [9]byte
			names := binary.BigEndian.AppendUint32(nil, 1000)
			for range 1000 {
				names = binary.BigEndian.AppendUint32(names, 1)
				names = append(names, "x\x00\x00\x00\x00\x00\x00\x00\x00"...)
			}
			for {
				if _, err := io.ReadFull(requests, head[:]); err != nil {
					return
				}
				n := binary.BigEndian.Uint32(head[:])
				if _, err := io.CopyN(io.Discard, requests, int64(n)-5); err != nil {
					return
				}
				id := head[5:9]
				var body []byte
				switch head[4] {
				case 1: // INIT
					body = []byte{2, 0, 0, 0, 3}
				case 11: // OPENDIR
					body = append(append([]byte{102}, id...), 0, 0, 0, 1, 'h')
				case 12: // READDIR
					body = append(append([]byte{104}, id...), names...)
				default:
					body = append(append([]byte{101}, id...), make([]byte, 12)...)
				}
				if _, err := replies.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
					return
				}
			}
		}()
		return pipes{out, in, func() { in.Close(); replies.Close(); requests.Close(); out.Close() }}, nil
	}
}

type pipes struct {
	io.Reader
	io.Writer
	end func()
}

func (p pipes) Close() error { p.end(); return nil }

func TestSES4_FolderWithoutEnd(t *testing.T) {
	s := filestest.NewSite(t, all, endless(t))
	for range 2 { // and the connection is good for the next
		_, f, _, err := ask(t, s, files.Request{Op: files.List, Path: []byte(".")})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for {
			kind, b, err := f.Read()
			if err != nil {
				t.Fatal(err)
			}
			if kind == files.FrameEnd {
				var l files.Listed
				if err := files.Message(b, &l); err != nil || !l.More {
					t.Errorf("%+v, %v", l, err)
				}
				break
			}
			var page []files.Entry
			if err := files.Message(b, &page); err != nil {
				t.Fatal(err)
			}
			n += len(page)
		}
		if n > files.MaxEntries || n < files.MaxEntries-2000 {
			t.Errorf("%d names", n)
		}
	}
}

func TestSES4_TheTargetIsLostAndFoundAgain(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), []byte("x"))
	var last io.Closer
	dial, dials := filestest.Target(t, dir), 0
	s := filestest.NewSite(t, all, func(ctx context.Context) (io.ReadWriteCloser, error) {
		c, err := dial(ctx)
		last = c
		dials++
		return c, err
	})
	for range 3 {
		for range 2 {
			if _, _, _, err := ask(t, s, files.Request{Op: files.Stat, Path: []byte("file")}); err != nil {
				t.Fatal(err)
			}
		}
		last.Close()
		if _, _, _, err := ask(t, s, files.Request{Op: files.Stat, Path: []byte("file")}); err != nil && code(err) != wire.Unreachable {
			t.Errorf("just lost: %v", err)
		}
	}
	if dials < 3 || dials > 5 {
		t.Errorf("%d connections", dials)
	}
	s.Files.Close()
	if _, _, _, err := ask(t, s, files.Request{Op: files.Stat, Path: []byte("file")}); code(err) != wire.Unreachable {
		t.Errorf("after the end: %v", err)
	}
}

// TestSES4_ServersWithoutExtensions puts and gets where there are none of
// OpenSSH's own additions to SFTP.
func TestSES4_ServersWithoutExtensions(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old"), []byte("old"))
	s := filestest.NewSite(t, all, filestest.Target(t, dir, "-P", "posix-rename,fsync,statvfs"))
	for _, path := range []string{"old", "new"} {
		if _, err := put(t, s, files.Request{Path: []byte(path)}, []byte("content")); err != nil {
			t.Error(err)
		}
		if b, _, err := get(t, s, files.Request{Path: []byte(path)}); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
	holds(t, dir, "old", "new")
}

func TestSES4_TargetThatTakesNothing(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "old"), []byte("old"))
	s := filestest.NewSite(t, all, filestest.Target(t, dir, "-R"))
	for _, path := range []string{"old", "new"} {
		if _, err := put(t, s, files.Request{Path: []byte(path)}, []byte("content")); code(err) != wire.Failed || !strings.Contains(err.Error(), "does not let") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, q := range []files.Request{{Op: files.Remove, Path: []byte("old")}, {Op: files.Mkdir, Path: []byte("folder")}, {Op: files.Rename, Path: []byte("old"), To: []byte("other")}} {
		if _, _, _, err := ask(t, s, q); code(err) != wire.Failed {
			t.Errorf("%s: %v", q.Op, err)
		}
	}
	holds(t, dir, "old")
	if b, _, err := get(t, s, files.Request{Path: []byte("old")}); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
}
