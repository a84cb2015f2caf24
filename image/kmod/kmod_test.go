package kmod

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"testing/fstest"
)

// object makes the smallest ELF file that has a .modinfo section.
func object(info ...string) []byte {
	text := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	le := binary.LittleEndian
	b := make([]byte, 64)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 1)    // relocatable
	le.PutUint16(b[18:], 0x3e) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	le.PutUint16(b[62:], 2)
	section := func(name, kind uint32, offset, size int) []byte {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], kind)
		le.PutUint64(h[24:], uint64(offset))
		le.PutUint64(h[32:], uint64(size))
		le.PutUint64(h[48:], 1)
		return h
	}
	table := 64 + len(text) + len(names)
	le.PutUint64(b[40:], uint64(table))
	b = append(append(b, text...), names...)
	b = append(b, make([]byte, 64)...)
	b = append(b, section(1, 1, 64, len(text))...)
	return append(b, section(10, 3, 64+len(text), len(names))...)
}

// release is a kernel of a few modules with the relations that have bitten.
func release() fstest.MapFS {
	file := func(content []byte) *fstest.MapFile { return &fstest.MapFile{Data: content} }
	return fstest.MapFS{
		"modules.builtin":                         file([]byte("kernel/crypto/sha256_generic.ko\nkernel/net/ipv6/ipv6.ko\n")),
		"modules.builtin.modinfo":                 file([]byte("sha256_generic.alias=sha256\x00sha256_generic.license=GPL\x00tpm_tis.alias=acpi*:PNP0C31:*\x00")),
		"kernel/net/netfilter/nf_tables.ko":       file(object("softdep=pre: crc32c sha256", "depends=nfnetlink,libcrc32c", "license=GPL")),
		"kernel/net/netfilter/nfnetlink.ko":       file(object("alias=net-pf-16-proto-12", "depends=")),
		"kernel/lib/libcrc32c.ko":                 file(object("depends=", "softdep=post: nothing-has-this")),
		"kernel/crypto/crc32c_generic.ko":         file(object("alias=crc32c", "alias=crypto-crc32c", "depends=")),
		"kernel/arch/x86/crypto/crc32c-intel.ko":  file(object("alias=crc32c", "alias=cpu:type:x86,ven*fam*mod*:feature:*0094*", "depends=")),
		"kernel/drivers/net/e1000e.ko":            file(object("alias=pci:v00008086d0000105Esv*sd*bc*sc*i*", "depends=ptp")),
		"kernel/drivers/ptp/ptp.ko":               file(object("depends=pps-core")),
		"kernel/drivers/pps/pps_core.ko":          file(object("depends=")),
		"kernel/drivers/net/wants-the-missing.ko": file(object("depends=gone")),
	}
}

func read(t *testing.T) *Tree {
	t.Helper()
	tree, err := Read(release())
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestReadRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(fstest.MapFS)
		want   string
	}{
		{"no list of built-in modules", func(f fstest.MapFS) { delete(f, "modules.builtin") }, "built-in"},
		{"no aliases of built-in modules", func(f fstest.MapFS) { delete(f, "modules.builtin.modinfo") }, "built-in"},
		{"a module that is no ELF file", func(f fstest.MapFS) { f["kernel/lib/libcrc32c.ko"].Data = []byte("text") }, "libcrc32c"},
		{"no module at all", func(f fstest.MapFS) {
			for name := range f {
				if strings.HasSuffix(name, ".ko") {
					delete(f, name)
				}
			}
			f["kernel/x.ko.xz"] = &fstest.MapFile{}
		}, "compressed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := release()
			c.change(files)
			if _, err := Read(files); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one about %q", err, c.want)
			}
		})
	}
}

func TestClosureRefusesUnknownModules(t *testing.T) {
	_, err := read(t).Closure([]string{"no_such_driver", "e1000e", "another"})
	for _, name := range []string{"no_such_driver", "another"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got error %v, want one that names %s", err, name)
		}
	}
	if _, err := read(t).Closure([]string{"wants_the_missing"}); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("got error %v, want one that names the missing dependency", err)
	}
}

func names(s Set) string {
	var out []string
	for _, m := range s.Modules {
		out = append(out, m.Name)
	}
	return strings.Join(out, " ")
}

// Without crc32c_generic nf_tables fails with ENOENT, and only its soft
// dependency, an alias, says so.
func TestBOX1_ClosureFollowsAliasesOfSoftDependencies(t *testing.T) {
	set, err := read(t).Closure([]string{"nf-tables"})
	if err != nil {
		t.Fatal(err)
	}
	const want = "crc32c_intel crc32c_generic libcrc32c nf_tables nfnetlink"
	if got := names(set); got != want {
		t.Errorf("closure is %s, want %s", got, want)
	}
}

func TestClosureLeavesOutWhatIsBuiltIn(t *testing.T) {
	set, err := read(t).Closure([]string{"ipv6", "sha256-generic", "tpm_tis"})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(set); got != "" {
		t.Errorf("closure is %s, want nothing", got)
	}
}

func TestIndexes(t *testing.T) {
	set, err := read(t).Closure([]string{"e1000e", "nf_tables"})
	if err != nil {
		t.Fatal(err)
	}
	index := set.Indexes()
	for _, c := range []struct{ file, want string }{
		{"modules.dep", "kernel/drivers/net/e1000e.ko: kernel/drivers/ptp/ptp.ko kernel/drivers/pps/pps_core.ko\n"},
		{"modules.dep", "kernel/drivers/pps/pps_core.ko:\n"},
		{"modules.dep", "kernel/net/netfilter/nf_tables.ko: kernel/lib/libcrc32c.ko kernel/net/netfilter/nfnetlink.ko\n"},
		{"modules.alias", "alias pci:v00008086d0000105Esv*sd*bc*sc*i* e1000e\n"},
		{"modules.softdep", "softdep nf_tables pre: crc32c_generic crc32c_intel\n"},
		{"modules.builtin", "kernel/net/ipv6/ipv6.ko\n"},
	} {
		if !bytes.Contains(index[c.file], []byte(c.want)) {
			t.Errorf("%s lacks %q:\n%s", c.file, c.want, index[c.file])
		}
	}
	if bytes.Contains(index["modules.softdep"], []byte("libcrc32c")) {
		t.Error("modules.softdep names a module that has only unknown wishes")
	}
	if bytes.Contains(index["modules.alias"], []byte("wants_the_missing")) {
		t.Error("modules.alias names a module that is not in the set")
	}
}

func TestBOX1_IndexesSameBytes(t *testing.T) {
	wanted := []string{"nf_tables", "e1000e"}
	first, err := read(t).Closure(wanted)
	if err != nil {
		t.Fatal(err)
	}
	second, err := read(t).Closure([]string{wanted[1], wanted[0]})
	if err != nil {
		t.Fatal(err)
	}
	again := second.Indexes()
	for name, content := range first.Indexes() {
		if !bytes.Equal(content, again[name]) {
			t.Errorf("%s depends on the order of the wishes", name)
		}
	}
}
