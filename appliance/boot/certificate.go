package boot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"gatehouse/appliance/control"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/task"
)

const (
	maxCertificateFile = 24 << 10
	certificateSettle  = 300 * time.Millisecond // chain and key are written one after the other
	certificateRescan  = time.Minute            // for file systems that report nothing
)

// watchCertificate reads the operator's certificate for the console, which may
// not: it has neither the right nor the path. What is in the files is judged
// there; here they are bytes.
func watchCertificate(m *monitor.Monitor, chain, key string, log *slog.Logger) task.Task {
	return task.Func("certificate files", func(ctx context.Context) error {
		if chain == "" {
			<-ctx.Done()
			return ctx.Err()
		}
		return followCertificate(ctx, chain, key, log, m.SetCertificateFiles)
	})
}

func followCertificate(ctx context.Context, chain, key string, log *slog.Logger, set func(control.CertificateFiles)) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watching the certificate: %w", err)
	}
	defer w.Close()
	// The folders, because tools that renew replace files by rename. One that is
	// not there yet is looked for again and again.
	watch := func() {
		for _, dir := range []string{filepath.Dir(chain), filepath.Dir(key)} {
			if err := w.Add(dir); err != nil {
				log.Debug("watching the certificate", "dir", dir, "err", err)
			}
		}
	}
	var last control.CertificateFiles
	quiet := time.NewTimer(0)
	defer quiet.Stop()
	tick := time.NewTicker(certificateRescan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.Events:
			quiet.Reset(certificateSettle)
			continue
		case err := <-w.Errors: // events were lost: look for ourselves
			log.Warn("watching the certificate", "err", err)
		case <-quiet.C:
		case <-tick.C:
		}
		watch()
		f := readCertificate(chain, key)
		if last.Named && bytes.Equal(f.Chain, last.Chain) && bytes.Equal(f.Key, last.Key) && f.Problem == last.Problem {
			continue
		}
		last = f
		set(f)
	}
}

func readCertificate(chain, key string) control.CertificateFiles {
	f := control.CertificateFiles{Named: true}
	var err error
	if f.Chain, err = readBounded(chain); err == nil {
		f.Key, err = readBounded(key)
	}
	if err != nil {
		return control.CertificateFiles{Named: true, Problem: err.Error()}
	}
	return f
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("reading the certificate: %s is not a plain file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCertificateFile+1))
	if err == nil && len(b) > maxCertificateFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxCertificateFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	return b, nil
}
