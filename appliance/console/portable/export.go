package portable

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"

	"gatehouse/appliance/control"
	format "gatehouse/appliance/portable"
	"gatehouse/netfilter/allowlist"
)

// export writes the configuration into a file that only the recipients open,
// and hands it on: half of one is never sent.
func (s *service) export(ctx context.Context, to []age.Recipient, a format.About, hand func(*os.File, int64) error) error {
	if !s.one.TryLock() {
		return errBusy
	}
	defer s.one.Unlock()
	f, err := os.OpenFile(s.path(exportFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("making the export: %w", err)
	}
	defer func() {
		f.Close()
		os.Remove(s.path(exportFile))
	}()
	w, err := format.NewWriter(f, to, a)
	if err != nil {
		return err
	}
	if err := s.write(ctx, w); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("reading the export again: %w", err)
	}
	return hand(f, size)
}

func (s *service) write(ctx context.Context, w *format.Writer) error {
	persons, err := s.People().Export(ctx)
	if err == nil {
		err = w.AddJSON(format.People, persons)
	}
	if err != nil {
		return err
	}
	where, err := s.Place.Export(ctx)
	if err == nil && where != nil {
		err = w.AddJSON(format.Place, where)
	}
	if err != nil {
		return err
	}
	reach, err := s.Targets.Export(ctx)
	if err == nil {
		err = w.AddJSON(format.Targets, reach)
	}
	if err != nil {
		return err
	}
	certs, err := s.Certificates.Export()
	if err == nil {
		err = w.AddJSON(format.Certificates, certs)
	}
	if err != nil {
		return err
	}
	// A form of Gatehouse without a network or systems of its own says so.
	if n, err := s.Network(ctx); err == nil {
		if err := w.AddJSON(format.Network, n.Kept); err != nil {
			return err
		}
	} else if !none(err) {
		return err
	}
	if u, err := s.Update(ctx); err == nil {
		if err := w.AddJSON(format.Updates, u.Policy); err != nil {
			return err
		}
	} else if !none(err) {
		return err
	}
	return s.writeLists(ctx, w)
}

// none says that this form of Gatehouse has no such thing.
func none(err error) bool {
	var c *control.Error
	return errors.As(err, &c) && c.Code == control.CodeState
}

// writeLists writes the files in force. Nobody proposes others meanwhile from
// here; one that is kept at that moment shows as a file whose size changed.
func (s *service) writeLists(ctx context.Context, w *format.Writer) error {
	s.Lists.Staging.Lock()
	defer s.Lists.Staging.Unlock()
	settings, err := s.index(ctx)
	if err != nil || settings == nil {
		return err
	}
	names := []string{allowlist.Index}
	for _, l := range settings.Lists {
		names = append(names, l.Name+allowlist.Suffix)
	}
	for _, name := range names {
		r := &remoteFile{ctx: ctx, read: s.Lists.Read, name: name}
		size, err := r.begin()
		if err == nil {
			err = w.Add(format.ListsFolder+"/"+name, size, r)
		}
		if err != nil {
			return fmt.Errorf("exporting the allowlist file %s: %w", name, err)
		}
	}
	return nil
}

// index is the settings of the lists in force; nil where there never were any.
func (s *service) index(ctx context.Context) (*allowlist.Settings, error) {
	r := &remoteFile{ctx: ctx, read: s.Lists.Read, name: allowlist.Index}
	if _, err := r.begin(); err != nil {
		var c *control.Error
		if errors.As(err, &c) && c.Code == control.CodeInvalid {
			return nil, nil
		}
		return nil, err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	settings, err := allowlist.ParseSettings(b)
	if err != nil {
		return nil, fmt.Errorf("reading the lists in force: %w", err)
	}
	return &settings, nil
}

// remoteFile reads a file in force, part by part.
type remoteFile struct {
	ctx  context.Context
	read func(context.Context, control.ListsRead) (control.ListsPart, error)
	name string
	at   int64
	size int64
	rest []byte
}

func (r *remoteFile) begin() (size int64, err error) {
	if err := r.more(); err != nil {
		return 0, err
	}
	return r.size, nil
}

func (r *remoteFile) more() error {
	p, err := r.read(r.ctx, control.ListsRead{File: r.name, Offset: r.at})
	r.rest, r.size = p.Data, p.Size
	r.at += int64(len(p.Data))
	return err
}

func (r *remoteFile) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.at >= r.size {
			return 0, io.EOF
		}
		if err := r.more(); err != nil {
			return 0, err
		}
		if len(r.rest) == 0 {
			return 0, io.ErrUnexpectedEOF
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
