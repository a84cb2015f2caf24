package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Qcow2Size is the size of the disk that a virtual machine sees: the file only
// holds what is written, and a disk of 8 GiB has room for data.
const Qcow2Size = 8 << 30

// WriteQcow2 copies a raw disk into QEMU's format (docs/interop/qcow2.txt in
// its sources, version 3), clusters of zeros left out. The order of the file
// is header, reference counts, tables, data; nothing in it is dated.
func WriteQcow2(out io.Writer, raw io.ReaderAt, size int64) error {
	const (
		cluster    = 64 << 10
		perL2      = cluster / 8
		copied     = 1 << 63 // reference count is exactly one
		headerSize = 104
	)
	be := binary.BigEndian
	data, err := dataClusters(raw, size, cluster)
	if err != nil {
		return err
	}
	l2Count := int64(Qcow2Size) / cluster / perL2
	total := 1 + 1 + 1 + 1 + l2Count + int64(len(data)) // header, refcount table, one block, L1, L2, data
	if total > cluster/2 {
		return fmt.Errorf("%d clusters are more than one block of reference counts holds (%d)", total, cluster/2)
	}
	meta := make([]byte, (4+l2Count)*cluster)
	copy(meta, "QFI\xfb")
	be.PutUint32(meta[4:], 3)
	be.PutUint32(meta[20:], 16) // cluster size as a power of two
	be.PutUint64(meta[24:], Qcow2Size)
	be.PutUint32(meta[36:], uint32(l2Count))
	be.PutUint64(meta[40:], 3*cluster) // L1
	be.PutUint64(meta[48:], 1*cluster) // table of reference counts
	be.PutUint32(meta[56:], 1)
	be.PutUint32(meta[96:], 4) // counts of 16 bits
	be.PutUint32(meta[100:], headerSize)
	be.PutUint64(meta[1*cluster:], 2*cluster)
	for i := range total {
		be.PutUint16(meta[2*cluster+2*i:], 1)
	}
	for i := range l2Count {
		be.PutUint64(meta[3*cluster+8*i:], uint64((4+i)*cluster)|copied)
	}
	for i, n := range data {
		be.PutUint64(meta[4*cluster+8*n:], uint64((4+l2Count+int64(i))*cluster)|copied)
	}
	if _, err := out.Write(meta); err != nil {
		return err
	}
	buffer := make([]byte, cluster)
	for _, n := range data {
		clear(buffer)
		if _, err := raw.ReadAt(buffer[:min(cluster, size-n*cluster)], n*cluster); err != nil {
			return fmt.Errorf("reading the disk: %w", err)
		}
		if _, err := out.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

// dataClusters lists the clusters that are not all zeros.
func dataClusters(raw io.ReaderAt, size, cluster int64) ([]int64, error) {
	var out []int64
	buffer, zeros := make([]byte, cluster), make([]byte, cluster)
	for n := int64(0); n*cluster < size; n++ {
		part := buffer[:min(cluster, size-n*cluster)]
		if _, err := raw.ReadAt(part, n*cluster); err != nil {
			return nil, fmt.Errorf("reading the disk: %w", err)
		}
		if !bytes.Equal(part, zeros[:len(part)]) {
			out = append(out, n)
		}
	}
	return out, nil
}
