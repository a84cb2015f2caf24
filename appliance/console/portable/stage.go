package portable

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"gatehouse/appliance/account"
	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/control"
	"gatehouse/appliance/intake"
	format "gatehouse/appliance/portable"
	"gatehouse/appliance/setup"
	"gatehouse/netfilter/allowlist"
)

// stage keeps an upload, reads it to its end, and says what is in it.
func (s *service) stage(person int64, key *format.Opener, body io.Reader) (id string, n Counted, err error) {
	if !s.one.TryLock() {
		return "", n, errBusy
	}
	defer s.one.Unlock()
	s.drop()
	defer func() {
		if err != nil {
			key.Forget()
			os.Remove(s.path(importFile))
		}
	}()
	if err := s.spool(body); err != nil {
		return "", n, err
	}
	c, err := s.read(key)
	if err != nil {
		return "", n, words(err)
	}
	g := &staged{id: rand.Text(), person: person, key: key, counted: c.count(), until: s.Steady().Add(stagedFor)}
	s.mu.Lock()
	s.staged = g
	s.mu.Unlock()
	return g.id, g.counted, nil
}

func (s *service) spool(body io.Reader) error {
	f, err := os.OpenFile(s.path(importFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("keeping the upload: %w", err)
	}
	defer f.Close()
	n, err := io.Copy(f, io.LimitReader(body, format.MaxFile+1))
	switch {
	case err != nil:
		return fmt.Errorf("keeping the upload: %w", err)
	case n == 0:
		return refuse("Choose the file that an export made.")
	case n > format.MaxFile:
		return refuse("The file is larger than a configuration is.")
	}
	return f.Close()
}

// drop forgets what is staged, and its file.
func (s *service) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staged != nil {
		s.staged.key.Forget()
		s.staged = nil
	}
	if err := os.Remove(s.path(importFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // it is overwritten by the next one
	}
}

// waiting is what a person staged here; nil if there is none any more.
func (s *service) waiting(person int64, id string) *staged {
	s.mu.Lock()
	g := s.staged
	s.mu.Unlock()
	switch {
	case g == nil || g.person != person || id != "" && id != g.id:
		return nil
	case s.Steady().After(g.until):
		s.drop()
		return nil
	}
	return g
}

// read reads the staged file to its end and judges all of it but the ranges of
// lists, which the filter role judges.
func (s *service) read(key *format.Opener) (*content, error) {
	f, err := os.Open(s.path(importFile))
	if err != nil {
		return nil, fmt.Errorf("reading the upload: %w", err)
	}
	defer f.Close()
	c := &content{has: make(map[string]bool)}
	c.about, err = format.Read(f, key, c.take)
	if err == nil {
		err = s.judge(c)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// take reads a part.
func (c *content) take(name string, _ int64, r io.Reader) error {
	document := func(part string, into any) error {
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		defer clear(b)
		if err := format.Decode(b, into); err != nil {
			return refuse("The part %s of the file cannot be read: %s. It was written by another version.", name, strings.TrimSuffix(err.Error(), "."))
		}
		c.has[part] = true
		return nil
	}
	switch name {
	case format.People:
		return document(people, &c.people)
	case format.Place:
		c.place = new(setup.Place)
		return document(place, c.place)
	case format.Targets:
		return document(targets, &c.targets)
	case format.Certificates:
		c.certificates = new(keeper.Moved)
		return document(certificates, c.certificates)
	case format.Network:
		c.network = new(control.NetworkSettings)
		return document(network, c.network)
	case format.Updates:
		c.updates = new(control.UpdateSettings)
		if err := document(updates, c.updates); err != nil {
			return err
		}
		return intake.Check(*c.updates)
	case format.ListsIndex:
		b, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		settings, err := allowlist.ParseSettings(b)
		if err != nil {
			return refuse("The settings of the allowlists in the file cannot be read: %s.", strings.TrimSuffix(err.Error(), "."))
		}
		c.index, c.has[lists] = &settings, true
		return nil
	}
	c.files = append(c.files, strings.TrimPrefix(name, format.ListsFolder+"/"))
	_, err := io.Copy(io.Discard, r)
	return err
}

func (s *service) judge(c *content) error {
	if c.has[people] {
		if err := account.CheckMoved(c.people); err != nil {
			return err
		}
	}
	if c.place != nil {
		if err := c.place.Check(); err != nil {
			return err
		}
	}
	if err := s.Targets.CheckMoved(c.targets); err != nil {
		return err
	}
	if c.certificates != nil {
		if err := s.Certificates.CheckMoved(*c.certificates); err != nil {
			return err
		}
	}
	var named []string
	if c.index != nil {
		for _, l := range c.index.Lists {
			named = append(named, l.Name+allowlist.Suffix)
		}
	}
	slices.Sort(named)
	slices.Sort(c.files)
	if !slices.Equal(named, c.files) {
		return refuse("The allowlists of the file are not whole: it names %s and has %s.", enumerate(named), enumerate(c.files))
	}
	if len(c.parts()) == 0 {
		return refuse("There is nothing in the file that could be taken.")
	}
	return nil
}

func enumerate(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list[:min(len(list), 10)], ", ")
}

// stageLists puts the lists of the file into the staging area, in the place of
// all that are there.
func (s *service) stageLists(ctx context.Context, key *format.Opener) error {
	before, err := s.index(ctx)
	if err != nil {
		return err
	}
	if err := s.Lists.Stage(ctx, control.ListsStage{Reset: true}); err != nil {
		return err
	}
	if before != nil {
		for _, l := range before.Lists {
			if err := s.Lists.Stage(ctx, control.ListsStage{File: l.Name + allowlist.Suffix, Remove: true}); err != nil {
				return err
			}
		}
	}
	f, err := os.Open(s.path(importFile))
	if err != nil {
		return fmt.Errorf("reading the upload: %w", err)
	}
	defer f.Close()
	_, err = format.Read(f, key, func(name string, _ int64, r io.Reader) error {
		file, ok := strings.CutPrefix(name, format.ListsFolder+"/")
		if !ok {
			return nil
		}
		return s.stageFile(ctx, file, r)
	})
	return err
}

// stagePart is as much as one request carries.
const stagePart = 48 << 10

func (s *service) stageFile(ctx context.Context, file string, r io.Reader) error {
	b := make([]byte, stagePart)
	for at := int64(0); ; {
		n, err := io.ReadFull(r, b)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		if n > 0 || at == 0 {
			if err := s.Lists.Stage(ctx, control.ListsStage{File: file, Offset: at, Data: bytes.Clone(b[:n])}); err != nil {
				return err
			}
		}
		if at += int64(n); n < len(b) {
			return nil
		}
	}
}
