package firmware

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A bundle is a manifest and the system of one architecture in one file, for who
// carries a release to a box by hand: a line, the signed note, the system.
const bundleLine = "gatehouse update 1 "

// WriteBundle writes one.
func WriteBundle(w io.Writer, note []byte, system io.Reader) error {
	if len(note) > MaxManifest {
		return fmt.Errorf("%w: it has %d bytes, more than %d", ErrMalformed, len(note), MaxManifest)
	}
	if _, err := fmt.Fprintf(w, "%s%d\n", bundleLine, len(note)); err != nil {
		return err
	}
	if _, err := w.Write(note); err != nil {
		return err
	}
	_, err := io.Copy(w, system)
	return err
}

// BundleHead is how many bytes of a bundle come before its system.
func BundleHead(note []byte) int64 {
	return int64(len(bundleLine) + len(strconv.Itoa(len(note))) + 1 + len(note))
}

// ReadBundle returns the signed note, which nobody has verified yet, and what
// follows it. Neither is trusted for its size.
func ReadBundle(r io.Reader) (note []byte, system io.Reader, err error) {
	b := bufio.NewReaderSize(r, 4096)
	line, err := b.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		return nil, nil, fmt.Errorf("reading an update: %w", err) // of the way, not of the file
	}
	number, ok := strings.CutPrefix(string(line), bundleLine)
	size, convErr := strconv.Atoi(strings.TrimSuffix(number, "\n"))
	if err != nil || !ok || convErr != nil || size <= 0 || size > MaxManifest || number != strconv.Itoa(size)+"\n" {
		return nil, nil, fmt.Errorf("%w: this is not a Gatehouse update: take the file whose name ends in .update", ErrMalformed)
	}
	note = make([]byte, size)
	if _, err := io.ReadFull(b, note); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, nil, fmt.Errorf("%w: the file ends within its manifest", ErrMalformed)
		}
		return nil, nil, fmt.Errorf("reading an update: %w", err)
	}
	return note, b, nil
}
