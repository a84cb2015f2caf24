package program

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
)

// efi is the smallest program that a signature can be put on, and where its parts are.
func efi(size int) []byte {
	le := binary.LittleEndian
	b := make([]byte, size)
	for i := 0x200; i < size; i++ {
		b[i] = byte(i)
	}
	copy(b, "MZ")
	le.PutUint32(b[offsetOfPE:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	le.PutUint16(b[0x80+optionalHeader:], magicPE32Plus)
	return b
}

const (
	checksum = 0x80 + optionalHeader + offsetOfChecksum
	table    = 0x80 + optionalHeader + offsetOfTable
)

// signed puts something of n bytes where signatures are.
func signed(b []byte, n int) []byte {
	b = append(bytes.Clone(b), make([]byte, Padding(int64(len(b))))...)
	binary.LittleEndian.PutUint32(b[table:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[table+4:], uint32(n))
	return append(b, bytes.Repeat([]byte{9}, n)...)
}

func sum(t *testing.T, b []byte) [32]byte {
	t.Helper()
	s, err := Digest(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// The sum is that of the program without checksum and signatures, and of every other byte.
func TestKEY10_DigestIsOfTheProgramAlone(t *testing.T) {
	for _, size := range []int{1024, 1029} {
		b := efi(size)
		h := sha256.New()
		h.Write(b[:checksum])
		h.Write(b[checksum+4 : table])
		h.Write(b[table+TableEntry:])
		h.Write(make([]byte, Padding(int64(size))))
		want := [32]byte(h.Sum(nil))
		for name, same := range map[string][]byte{"bare": b, "signed": signed(b, 64), "signed by another": signed(b, 1024)} {
			if sum(t, same) != want {
				t.Errorf("%d bytes, %s: another sum", size, name)
			}
		}
		for i := range b {
			if i < 2 || i >= offsetOfPE && i < offsetOfPE+4 || i >= 0x80 && i < 0x84 || i >= 0x80+optionalHeader && i < 0x80+optionalHeader+2 || i >= table && i < table+TableEntry {
				continue // then it is no program, or one that says it is signed
			}
			other := bytes.Clone(b)
			other[i] ^= 1
			if left := i >= checksum && i < checksum+4; (sum(t, other) == want) != left {
				t.Errorf("%d bytes: byte %d changed, the same sum: %v", size, i, !left)
			}
		}
	}
}

// broken is a disk of which nothing can be read behind a place.
type broken struct {
	b  []byte
	at int64
}

var errBroken = errors.New("input/output error")

func (r broken) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > r.at {
		return 0, errBroken
	}
	return bytes.NewReader(r.b).ReadAt(b, at)
}

func TestKEY10_WhatIsNoProgramHasNoDigest(t *testing.T) {
	good := signed(efi(1024), 64)
	with := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	le := binary.LittleEndian
	for name, b := range map[string][]byte{
		"nothing": nil, "text": bytes.Repeat([]byte("#!/bin/sh\n"), 100), "cut in its headers": good[:0x100], "cut in its signatures": good[:len(good)-1],
		"more behind": append(bytes.Clone(good), 0), "32 bits": with(func(b []byte) { b[0x80+optionalHeader] ^= 1 }),
		"headers beyond its end":     with(func(b []byte) { le.PutUint32(b[offsetOfPE:], 0xffffffff) }),
		"signatures in its headers":  with(func(b []byte) { le.PutUint32(b[table:], 8); le.PutUint32(b[table+4:], uint32(len(b)-8)) }),
		"signatures of no place":     with(func(b []byte) { le.PutUint32(b[table:], 0) }),
		"signatures at an odd place": with(func(b []byte) { le.PutUint32(b[table:], uint32(len(b)-63)); le.PutUint32(b[table+4:], 63) }),
	} {
		if s, err := Digest(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: %x", name, s)
		}
	}
	for _, at := range []int64{0, 0x80, 0x200, 1000} {
		if _, err := Digest(broken{good, at}, int64(len(good))); !errors.Is(err, errBroken) {
			t.Errorf("nothing is read behind byte %d: %v", at, err)
		}
	}
	if _, err := Digest(bytes.NewReader(good[:600]), int64(len(good))); err == nil {
		t.Error("it ends before it says")
	}
}
