package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

// maxUnpacked is more than any archive unpacks to: the machine that unpacks it
// at start has little more memory.
const maxUnpacked = 512 << 20

// Read returns the files of an archive by their paths, and under the path of a
// link the file that it leads to.
func Read(packed []byte) (map[string][]byte, error) {
	fail := func(err error) (map[string][]byte, error) { return nil, fmt.Errorf("reading the initramfs: %w", err) }
	z, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fail(err)
	}
	defer z.Close()
	plain, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err != nil {
		return fail(err)
	}
	if len(plain) > maxUnpacked {
		return fail(fmt.Errorf("it unpacks to more than %d bytes", maxUnpacked))
	}
	files, links := make(map[string][]byte), make(map[string]string)
	for in := cpio.Newc.Reader(bytes.NewReader(plain)); ; {
		r, err := in.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fail(err)
		}
		kind := r.Mode & cpio.S_IFMT
		if kind != cpio.S_IFREG && kind != cpio.S_IFLNK {
			continue
		}
		content, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
		if err != nil {
			return fail(err)
		}
		if kind == cpio.S_IFLNK {
			links[r.Name] = path.Join(path.Dir(r.Name), string(content))
		} else {
			files[r.Name] = content
		}
	}
	if len(files) == 0 {
		return fail(errors.New("there is no file in it"))
	}
	for name, target := range links {
		if content, ok := files[target]; ok {
			files[name] = content
		}
	}
	return files, nil
}
