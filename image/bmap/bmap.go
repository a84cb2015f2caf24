// Package bmap says which blocks of a disk image have to be written, with a sum for each run of them: the format of Intel's bmap-tools, version 2.0; pure.
package bmap

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Block is the unit of a map, in bytes.
const Block = 4096

// A Range is some bytes of the image that have to be written, and their SHA-256.
type Range struct {
	At, Size int64
	Sum      [sha256.Size]byte
}

// A Map is that of one image.
type Map struct {
	Size   int64 // of the image
	Ranges []Range
}

// Find makes the map of an image: blocks that are not zeros, and what keep
// names, zeros or not. What is left out keeps what the disk had there before, so
// whoever calls this names all places where zeros mean something.
func Find(image io.ReaderAt, size int64, keep []Range) (Map, error) {
	m := Map{Size: size}
	b, zeros := make([]byte, Block), make([]byte, Block)
	sum := sha256.New()
	end := func() {
		if last := len(m.Ranges) - 1; last >= 0 {
			sum.Sum(m.Ranges[last].Sum[:0])
		}
		sum.Reset()
	}
	for at := int64(0); at < size; at += Block {
		part := b[:min(Block, size-at)]
		if _, err := image.ReadAt(part, at); err != nil && !errors.Is(err, io.EOF) {
			return m, fmt.Errorf("reading the image: %w", err)
		}
		kept := slices.ContainsFunc(keep, func(r Range) bool { return at < r.At+r.Size && r.At < at+Block })
		if !kept && bytes.Equal(part, zeros[:len(part)]) {
			continue
		}
		last := len(m.Ranges) - 1
		if last < 0 || m.Ranges[last].At+m.Ranges[last].Size != at {
			end()
			m.Ranges = append(m.Ranges, Range{At: at})
			last++
		}
		m.Ranges[last].Size += int64(len(part))
		sum.Write(part)
	}
	end()
	return m, nil
}

// Bytes is how many bytes have to be written.
func (m Map) Bytes() (n int64) {
	for _, r := range m.Ranges {
		n += r.Size
	}
	return n
}

const noSum = "0000000000000000000000000000000000000000000000000000000000000000"

// Encode writes a map as bmaptool reads it. The file's own sum is taken with
// zeros in its place.
func (m Map) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> %d </ImageSize>
    <BlockSize> %d </BlockSize>
    <BlocksCount> %d </BlocksCount>
    <MappedBlocksCount> %d </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> %s </BmapFileChecksum>
    <BlockMap>
`, m.Size, Block, blocks(m.Size), blocks(m.Bytes()), noSum)
	for _, r := range m.Ranges {
		first, last := r.At/Block, blocks(r.At+r.Size)-1
		place := fmt.Sprintf("%d-%d", first, last)
		if first == last {
			place = strconv.FormatInt(first, 10)
		}
		fmt.Fprintf(&b, "        <Range chksum=\"%x\"> %s </Range>\n", r.Sum, place)
	}
	b.WriteString("    </BlockMap>\n</bmap>\n")
	sum := sha256.Sum256(b.Bytes())
	return bytes.Replace(b.Bytes(), []byte(noSum), []byte(hex.EncodeToString(sum[:])), 1)
}

func blocks(n int64) int64 { return (n + Block - 1) / Block }

type file struct {
	XMLName xml.Name `xml:"bmap"`
	Version string   `xml:"version,attr"`
	Size    string   `xml:"ImageSize"`
	Block   string   `xml:"BlockSize"`
	Kind    string   `xml:"ChecksumType"`
	Sum     string   `xml:"BmapFileChecksum"`
	Ranges  []struct {
		Sum   string `xml:"chksum,attr"`
		Place string `xml:",chardata"`
	} `xml:"BlockMap>Range"`
}

// MaxSize is the most that the file of a map has.
const MaxSize = 4 << 20

// Decode reads a map of this format with sums by SHA-256, and checks its own.
func Decode(b []byte) (Map, error) {
	var f file
	if len(b) > MaxSize {
		return Map{}, fmt.Errorf("the map has more than %d bytes", MaxSize)
	}
	if err := xml.Unmarshal(b, &f); err != nil {
		return Map{}, fmt.Errorf("the map is not XML as bmap-tools write it: %w", err)
	}
	if f.Version != "2.0" || strings.TrimSpace(f.Kind) != "sha256" {
		return Map{}, fmt.Errorf("the map has version %q with sums of %q: 2.0 with sha256 is known", f.Version, strings.TrimSpace(f.Kind))
	}
	own := strings.TrimSpace(f.Sum)
	sum := sha256.Sum256(bytes.Replace(b, []byte(own), []byte(noSum), 1))
	if own != hex.EncodeToString(sum[:]) {
		return Map{}, errors.New("the map is damaged: its own sum is wrong")
	}
	var m Map
	var err error
	block := int64(0)
	if m.Size, err = strconv.ParseInt(strings.TrimSpace(f.Size), 10, 54); err == nil {
		block, err = strconv.ParseInt(strings.TrimSpace(f.Block), 10, 32)
	}
	if err != nil || m.Size <= 0 || block < 512 || block&(block-1) != 0 {
		return Map{}, fmt.Errorf("the map is for an image of %q bytes in blocks of %q", f.Size, f.Block)
	}
	end := int64(0)
	for _, r := range f.Ranges {
		a, z, both := strings.Cut(strings.TrimSpace(r.Place), "-")
		if !both {
			z = a
		}
		first, err1 := strconv.ParseInt(a, 10, 40)
		last, err2 := strconv.ParseInt(z, 10, 40)
		if err1 != nil || err2 != nil || first < 0 || last < first || first*block < end || first*block >= m.Size || last > (m.Size-1)/block {
			return Map{}, fmt.Errorf("the map has a range %q that cannot be", r.Place)
		}
		raw, err := hex.DecodeString(r.Sum)
		if err != nil || len(raw) != sha256.Size {
			return Map{}, fmt.Errorf("the map has a sum %q that is none", r.Sum)
		}
		end = min((last+1)*block, m.Size)
		m.Ranges = append(m.Ranges, Range{first * block, end - first*block, [sha256.Size]byte(raw)})
	}
	return m, nil
}
