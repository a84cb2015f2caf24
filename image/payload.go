package image

import (
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"gatehouse/image/debian"
	"gatehouse/image/initramfs"
	"gatehouse/image/keys"
	"gatehouse/image/kmod"
	"gatehouse/image/target"
)

// A payload is what the packages contribute to the image.
type payload struct {
	kernel   []byte
	release  string // of the kernel
	stub     []byte // the UKI's first part
	loader   []byte // systemd-boot
	signer   keys.Key
	approver keys.Key
	revoked  [][32]byte // what firmware is to refuse
	files    []initramfs.File
}

// unpack takes out of the packages what goes on the box.
func (b Build) unpack(ctx context.Context, lock debian.Lock) (payload, error) {
	roots := make(map[string]string)
	for _, p := range lock {
		name := p.Name
		if strings.HasPrefix(name, kernelPrefix) {
			name = b.target().Kernel
		}
		dir, err := b.cache().Unpack(ctx, p)
		if err != nil {
			return payload{}, err
		}
		roots[name] = dir
	}
	for _, name := range b.packages() {
		name, _, _ = strings.Cut(name, ">")
		if roots[name] == "" {
			return payload{}, fmt.Errorf("the lock lacks package %s: make a new one", name)
		}
	}
	var p payload
	if err := p.addKernel(roots[b.target().Kernel], b.target()); err != nil {
		return payload{}, err
	}
	efi := filepath.Join(roots["systemd-boot-efi"], "usr/lib/systemd/boot/efi")
	var err error
	if p.stub, err = os.ReadFile(filepath.Join(efi, b.target().Stub())); err != nil {
		return payload{}, fmt.Errorf("taking the UKI stub out of its package: %w", err)
	}
	if p.loader, err = os.ReadFile(filepath.Join(efi, b.target().Loader())); err != nil {
		return payload{}, fmt.Errorf("taking systemd-boot out of its package: %w", err)
	}
	if err := p.addPrograms(roots, b.target()); err != nil {
		return payload{}, err
	}
	b.Log.Info("packages taken apart", "kernel", p.release, "files", len(p.files))
	return p, nil
}

// addKernel takes the kernel and the chosen modules with fresh indexes.
func (p *payload) addKernel(root string, t target.Target) error {
	releases, err := os.ReadDir(filepath.Join(root, "lib/modules"))
	if err != nil || len(releases) != 1 {
		return fmt.Errorf("looking for the kernel's modules: want one release, found %d: %w", len(releases), err)
	}
	p.release = releases[0].Name()
	if p.kernel, err = os.ReadFile(filepath.Join(root, "boot", "vmlinuz-"+p.release)); err != nil {
		return fmt.Errorf("taking the kernel out of its package: %w", err)
	}
	modules := os.DirFS(filepath.Join(root, "lib/modules", p.release))
	tree, err := kmod.Read(modules)
	if err != nil {
		return err
	}
	set, err := tree.Closure(wantedModules(t))
	if err != nil {
		return fmt.Errorf("kernel %s: %w", p.release, err)
	}
	below := path.Join("lib/modules", p.release)
	for _, m := range set.Modules {
		content, err := os.ReadFile(filepath.Join(root, below, m.Path))
		if err != nil {
			return fmt.Errorf("taking module %s out of its package: %w", m.Name, err)
		}
		p.files = append(p.files, initramfs.File{Path: path.Join(below, m.Path), Content: content, Mode: 0o644})
	}
	indexes := set.Indexes()
	indexes["modules.load"] = loadList(t)
	for name, content := range indexes {
		p.files = append(p.files, initramfs.File{Path: path.Join(below, name), Content: content, Mode: 0o644})
	}
	return nil
}

// programs are what the box runs besides its own program.
var programs = []string{"sbin/mke2fs", "sbin/e2fsck"}

// addPrograms takes the programs, the libraries they are linked with, found by
// name in the packages and nowhere else, and mke2fs's defaults.
func (p *payload) addPrograms(roots map[string]string, t target.Target) error {
	conf, err := os.ReadFile(filepath.Join(roots["e2fsprogs"], "etc/mke2fs.conf"))
	if err != nil {
		return fmt.Errorf("taking mke2fs.conf out of its package: %w", err)
	}
	p.files = append(p.files, initramfs.File{Path: "etc/mke2fs.conf", Content: conf, Mode: 0o644})
	taken := make(map[string]bool)
	var take func(file, as string) error
	take = func(file, as string) error {
		if taken[as] {
			return nil
		}
		taken[as] = true
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("taking %s out of its package: %w", as, err)
		}
		p.files = append(p.files, initramfs.File{Path: as, Content: content, Mode: 0o755})
		needed, err := libraries(file)
		if err != nil {
			return err
		}
		for _, name := range needed {
			library, err := find(roots, t, name)
			if err != nil {
				return fmt.Errorf("%s is linked with it: %w", as, err)
			}
			if err := take(library, t.LibraryPath(name)); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range programs {
		if err := take(filepath.Join(roots["e2fsprogs"], name), name); err != nil {
			return err
		}
	}
	return nil
}

// libraries reads what a program is linked with, its interpreter included.
func libraries(file string) ([]string, error) {
	object, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Base(file), err)
	}
	defer object.Close()
	needed, err := object.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("reading what %s is linked with: %w", filepath.Base(file), err)
	}
	return needed, nil
}

// find looks for a shared library in the unpacked packages. Links between
// versions stay inside their package.
func find(roots map[string]string, t target.Target, name string) (string, error) {
	for _, root := range slices.Sorted(maps.Values(roots)) {
		for _, folder := range t.LibraryFolders() {
			file := filepath.Join(root, folder, name)
			if _, err := os.Stat(file); err == nil {
				return file, nil
			}
		}
	}
	return "", fmt.Errorf("no package of the image has library %s", name)
}

// archive is the initramfs of this payload.
func (p payload) archive(b Build) initramfs.Archive {
	set := map[string]string{"version": b.Version, "built": b.Built}
	if b.Final {
		set["final"] = "yes"
	}
	return initramfs.Archive{
		Arch:    b.target().Arch,
		Program: filepath.Join(b.Source, b.Program),
		Set:     set,
		Files:   append(slices.Clone(p.files), initramfs.File{Path: "etc/os-release", Content: osRelease(b.Version), Mode: 0o644}),
		Temp:    b.cachePath(),
	}
}

// osRelease is os-release(5). systemd-boot shows PRETTY_NAME and sorts by the
// other fields; without them it ignores a UKI.
func osRelease(version string) []byte {
	return fmt.Appendf(nil, "ID=gatehouse\nNAME=Gatehouse\nPRETTY_NAME=\"Gatehouse %s\"\nVERSION_ID=%q\n", version, version)
}
