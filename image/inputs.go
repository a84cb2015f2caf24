package image

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"gatehouse/image/keys"
)

// inputs names everything that decides the bytes of an image: the packages,
// the sources of the program with the versions of its modules and compiler,
// the version string, the epoch, the keys that sign, what is revoked, and the program that builds (its
// lists are inputs too).
func (b Build) inputs(ctx context.Context, lock []byte, signing keys.Set, signers keys.Signers, revoked []keys.Revoked) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %d %v\n%s\n", b.target().Name, b.Version, b.Built, b.Epoch, b.Final, lock)
	for _, r := range keys.Roles() {
		fmt.Fprintf(h, "%s\n", signing[r].Fingerprint())
	}
	fmt.Fprint(h, signers.Next.Text())
	for _, r := range revoked {
		fmt.Fprintf(h, "%x\n", r.SHA256)
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding this program: %w", err)
	}
	files, err := b.sources(ctx)
	if err != nil {
		return "", err
	}
	goVersion, err := exec.CommandContext(ctx, "go", "env", "GOVERSION", "GOAMD64", "GOARM64", "GOFLAGS", "GOEXPERIMENT").Output()
	if err != nil {
		return "", fmt.Errorf("asking for the version of Go: %w", err)
	}
	h.Write(goVersion)
	for _, file := range append(files, filepath.Join(b.Source, "go.mod"), filepath.Join(b.Source, "go.sum"), self) {
		sum, err := fileSum(file)
		if err != nil {
			return "", fmt.Errorf("reading the sources: %w", err)
		}
		fmt.Fprintf(h, "%x %s\n", sum, filepath.Base(file))
	}
	return fmt.Sprintf("%x\n", h.Sum(nil)), nil
}

// sources lists the files of this repository that the program is compiled from.
func (b Build) sources(ctx context.Context) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps",
		"-json=Dir,Module,GoFiles,SFiles,EmbedFiles", "./"+filepath.ToSlash(b.Program))
	cmd.Dir = b.Source
	cmd.Env = append(os.Environ(), b.target().Environment()...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("listing the sources of %s: %w", b.Program, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("listing the sources of %s: %w", b.Program, err)
	}
	var files []string
	for d := json.NewDecoder(out); ; {
		var p struct {
			Dir                         string
			Module                      *struct{ Main bool }
			GoFiles, SFiles, EmbedFiles []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, errors.Join(fmt.Errorf("listing the sources of %s: %w", b.Program, err), cmd.Wait())
		}
		if p.Module == nil || !p.Module.Main {
			continue
		}
		for _, name := range slices.Concat(p.GoFiles, p.SFiles, p.EmbedFiles) {
			files = append(files, filepath.Join(p.Dir, name))
		}
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("listing the sources of %s: %w", b.Program, err)
	}
	slices.Sort(files)
	return files, nil
}

// current says whether the results on disk were made from the same inputs.
func (b Build) current(key string) bool {
	last, err := os.ReadFile(b.result(Disk) + keySuffix)
	if err != nil || string(last) != key {
		return false
	}
	for _, name := range []string{Kernel, Initramfs, UKI, Disk, DiskGzip, DiskQcow2, DiskZstd, DiskMap, DiskISO} {
		if _, err := os.Stat(b.result(name)); err != nil {
			return false
		}
	}
	return true
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return string(h.Sum(nil)), nil
}
