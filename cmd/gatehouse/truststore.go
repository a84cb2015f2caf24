package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// machine is the doors to the one that this runs on.
type machine struct {
	system string // runtime.GOOS
	root   string // "" but in tests
	run    func(ctx context.Context, name string, args ...string) error
}

func thisMachine() machine { return machine{system: runtime.GOOS, run: runTool} }

// runTool runs the system's own tool and gives its words in the error.
func runTool(ctx context.Context, name string, args ...string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		text := printable(strings.Join(strings.Fields(said.String()), " "))
		return fmt.Errorf("%s: %w: %s", name, err, text[:min(len(text), 300)])
	}
	return nil
}

// trustStore is a machine's list of authorities.
type trustStore interface {
	add(ctx context.Context, name string, r boxRoot) error
	remove(ctx context.Context, name string, r boxRoot) error
}

func (m machine) store() (trustStore, error) {
	switch m.system {
	case "linux":
		for _, s := range []folderStore{
			{m, "/usr/local/share/ca-certificates", ".crt", []string{"update-ca-certificates"}},
			{m, "/etc/pki/ca-trust/source/anchors", ".pem", []string{"update-ca-trust", "extract"}},
			{m, "/etc/ca-certificates/trust-source/anchors", ".crt", []string{"trust", "extract-compat"}},
		} {
			if fi, err := os.Stat(m.root + s.folder); err == nil && fi.IsDir() {
				return s, nil
			}
		}
		return nil, fail(exitFailure, "this system keeps its authorities where none of Debian, Fedora and Arch does: use --print and its own means")
	case "darwin":
		return keychain{m}, nil
	case "windows":
		return certutil{m}, nil
	}
	return nil, fail(exitFailure, "the list of authorities of %s is not known here: use --print and its own means", m.system)
}

// folderStore is a folder of PEM files that a tool of the system collects.
type folderStore struct {
	machine
	folder, suffix string
	update         []string
}

func (s folderStore) path(name string) string {
	return filepath.Join(s.root+s.folder, name+s.suffix)
}

func (s folderStore) add(ctx context.Context, name string, r boxRoot) error {
	path := s.path(name)
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return rights(err)
	}
	if err := os.WriteFile(path, r.pem, 0o644); err != nil {
		return rights(err)
	}
	if err := s.run(ctx, s.update[0], s.update[1:]...); err != nil {
		// Not half done: the file as it was.
		if before == nil {
			err = errors.Join(err, os.Remove(path))
		} else {
			err = errors.Join(err, os.WriteFile(path, before, 0o644))
		}
		return fmt.Errorf("nothing was installed: %w", err)
	}
	return nil
}

func (s folderStore) remove(ctx context.Context, name string, _ boxRoot) error {
	err := os.Remove(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return fail(exitNotFound, "this machine does not have the box's root (%s)", s.path(name))
	}
	if err != nil {
		return rights(err)
	}
	return s.run(ctx, s.update[0], s.update[1:]...)
}

func rights(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fail(exitDenied, "changing this machine's list of authorities takes its administrator's rights: run it with sudo (%w)", err)
	}
	return fmt.Errorf("changing this machine's list of authorities: %w", err)
}

// withFile hands the tools that want a file one.
func withFile(r boxRoot, do func(path string) error) error {
	dir, err := os.MkdirTemp("", "gatehouse-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "root.crt")
	if err := os.WriteFile(path, r.pem, 0o600); err != nil {
		return err
	}
	return do(path)
}

// keychain is macOS's (security(1)).
type keychain struct{ machine }

const systemKeychain = "/Library/Keychains/System.keychain"

func (k keychain) add(ctx context.Context, _ string, r boxRoot) error {
	return withFile(r, func(path string) error {
		return k.run(ctx, "security", "add-trusted-cert", "-d", "-r", "trustRoot", "-p", "ssl", "-k", systemKeychain, path)
	})
}

func (k keychain) remove(ctx context.Context, _ string, r boxRoot) error {
	return k.run(ctx, "security", "delete-certificate", "-Z", thumbprint(r), "-t", systemKeychain)
}

// certutil is Windows's.
type certutil struct{ machine }

func (c certutil) add(ctx context.Context, _ string, r boxRoot) error {
	return withFile(r, func(path string) error { return c.run(ctx, "certutil", "-addstore", "-f", "Root", path) })
}

func (c certutil) remove(ctx context.Context, _ string, r boxRoot) error {
	return c.run(ctx, "certutil", "-delstore", "Root", thumbprint(r))
}

// thumbprint is how both name a certificate. SHA-1 finds it here, and proves nothing.
func thumbprint(r boxRoot) string { return fmt.Sprintf("%X", sha1.Sum(r.certificate.Raw)) }
