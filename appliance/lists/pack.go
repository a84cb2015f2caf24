package lists

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Pack gives the files in force as one piece, for a start that cannot open the
// data; nil if there are none, or if they were switched off. Files come by name:
// length of the name (1 byte), name, length (4 bytes, big-endian), content.
func (f *Folder) Pack(most int) ([]byte, error) {
	if f.kept == "" || f.off {
		return nil, nil
	}
	entries, err := os.ReadDir(f.kept) // by name
	if err != nil {
		return nil, fmt.Errorf("packing the allowlists: %w", err)
	}
	var out []byte
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			return nil, fmt.Errorf("packing the allowlists: %w", err)
		}
		if !validName(e.Name()) || len(e.Name()) > 255 || !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("packing the allowlists: %s is no file of them", e.Name())
		}
		if fi.Size() > int64(most-len(out)) {
			return nil, fmt.Errorf("packing the allowlists: they have more than %d bytes", most)
		}
		b, err := os.ReadFile(filepath.Join(f.kept, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("packing the allowlists: %w", err)
		}
		out = append(append(out, byte(len(e.Name()))), e.Name()...)
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(b))), b...)
	}
	if len(out) > most {
		return nil, fmt.Errorf("packing the allowlists: they have more than %d bytes", most)
	}
	return out, nil
}

// Unpack writes what Pack gave into a new folder, for Open. It takes nothing
// that Pack would not have given.
func Unpack(dir string, packed []byte) error {
	malformed := errors.New("unpacking the allowlists: they are malformed")
	if len(packed) == 0 {
		return errors.New("unpacking the allowlists: there are none")
	}
	const number = "1"
	to := filepath.Join(dir, number)
	if err := os.MkdirAll(to, 0o755); err != nil {
		return fmt.Errorf("unpacking the allowlists: %w", err)
	}
	last := ""
	for len(packed) > 0 {
		n := int(packed[0])
		if len(packed) < 1+n+4 {
			return malformed
		}
		name, size := string(packed[1:1+n]), binary.BigEndian.Uint32(packed[1+n:])
		if packed = packed[1+n+4:]; uint64(size) > uint64(len(packed)) || !validName(name) || strings.Compare(last, name) >= 0 {
			return malformed
		}
		if err := os.WriteFile(filepath.Join(to, name), packed[:size], 0o644); err != nil {
			return fmt.Errorf("unpacking the allowlists: %w", err)
		}
		last, packed = name, packed[size:]
	}
	return point(dir, to, number)
}

// point makes them the ones that count, and readable to the filter whatever the umask.
func point(dir, to, number string) error {
	entries, err := os.ReadDir(to)
	if err == nil {
		err = os.Chmod(to, 0o755)
	}
	for _, e := range entries {
		err = errors.Join(err, os.Chmod(filepath.Join(to, e.Name()), 0o644))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, current), []byte(number+"\n"), fs.FileMode(0o644))
	}
	if err != nil {
		return fmt.Errorf("unpacking the allowlists: %w", err)
	}
	return nil
}
