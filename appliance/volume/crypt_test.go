package volume

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
)

func TestKEY1_CryptParametersRefuse(t *testing.T) {
	key := make([]byte, KeySize)
	for name, c := range map[string]struct {
		key     []byte
		sectors uint64
	}{
		"no key":                 {nil, 8},
		"a key of 256 bits":      {key[:32], 8},
		"a longer key":           {append(key, 0), 8},
		"an empty partition":     {key, 0},
		"a part of a 4096 block": {key, 9},
	} {
		if p, err := cryptParameters(c.key, "254:3", c.sectors); err == nil {
			t.Errorf("%s: %q", name, p)
		}
	}
}

func TestCryptParameters(t *testing.T) {
	key := make([]byte, KeySize)
	for i := range key {
		key[i] = byte(i)
	}
	p, err := cryptParameters(key, "254:3", 4096)
	if err != nil {
		t.Fatal(err)
	}
	want := "aes-xts-plain64 " + hex.EncodeToString(key) + " 0 254:3 0 2 sector_size:4096 iv_large_sectors"
	if string(p) != want {
		t.Errorf("got  %s\nwant %s", p, want)
	}
	if cap(p) != len(p) {
		t.Error("the buffer grew, and may have left the key behind")
	}
}

func TestOpenCryptRefusesFiles(t *testing.T) {
	if _, err := OpenCrypt("/dev/null", "x", make([]byte, KeySize)); err == nil || !strings.Contains(err.Error(), "not a block device") {
		t.Errorf("OpenCrypt of a character device: %v", err)
	}
}

func TestRequestRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		name string
		t    *target
	}{
		"no name":           {"", nil},
		"a path":            {"a/b", nil},
		"dots":              {"..", nil},
		"a zero in it":      {"a\x00b", nil},
		"too long":          {strings.Repeat("x", 128), nil},
		"no kind":           {"x", &target{}},
		"a long kind":       {"x", &target{kind: strings.Repeat("x", 16)}},
		"a zero in a table": {"x", &target{kind: "crypt", params: []byte("a\x00b")}},
	} {
		if _, err := dmRequest(c.name, 0, c.t); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRequest(t *testing.T) {
	if got := dmCommand(dmTableLoad); got != 0xc138fd09 {
		t.Errorf("DM_TABLE_LOAD is %#x, want 0xc138fd09", got)
	}
	le := binary.NativeEndian
	buf, err := dmRequest("data", dmFlagSecureData, &target{kind: "crypt", sectors: 4096, params: []byte("12345678")})
	if err != nil {
		t.Fatal(err)
	}
	// 8 characters and their zero take 16 bytes.
	if want := 312 + 40 + 16; len(buf) != want || le.Uint32(buf[12:]) != uint32(want) {
		t.Errorf("length %d, said %d, want %d", len(buf), le.Uint32(buf[12:]), want)
	}
	for name, c := range map[string]struct{ got, want uint64 }{
		"version":     {uint64(le.Uint32(buf)), 4},
		"data start":  {uint64(le.Uint32(buf[16:])), 312},
		"targets":     {uint64(le.Uint32(buf[20:])), 1},
		"flags":       {uint64(le.Uint32(buf[28:])), 1 << 15},
		"first":       {le.Uint64(buf[312:]), 0},
		"sectors":     {le.Uint64(buf[320:]), 4096},
		"next target": {uint64(le.Uint32(buf[332:])), 56},
	} {
		if c.got != c.want {
			t.Errorf("%s is %d, want %d", name, c.got, c.want)
		}
	}
	if !bytes.HasPrefix(buf[48:], []byte("data\x00")) || !bytes.HasPrefix(buf[336:], []byte("crypt\x00")) ||
		!bytes.Equal(buf[352:], []byte("12345678\x00\x00\x00\x00\x00\x00\x00\x00")) {
		t.Errorf("texts are wrong: %q", buf[312:])
	}
}

func TestDeviceNumber(t *testing.T) {
	for dev, want := range map[uint64][2]uint32{0xfd00: {253, 0}, 0xfe03: {254, 3}, 0x1000fd05: {253, 0x10005}} {
		if major, minor := deviceNumber(dev); major != want[0] || minor != want[1] {
			t.Errorf("deviceNumber(%#x) = %d:%d, want %v", dev, major, minor, want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("data", "crypt", []byte("aes-xts-plain64 00 0 8:1 0"))
	f.Fuzz(func(t *testing.T, name, kind string, params []byte) {
		buf, err := dmRequest(name, 0, &target{kind: kind, sectors: 8, params: params})
		if err != nil {
			return
		}
		if len(buf)%8 != 0 || int(binary.NativeEndian.Uint32(buf[12:])) != len(buf) || buf[len(buf)-1] != 0 || buf[48+127] != 0 {
			t.Errorf("a buffer of %d bytes that the kernel would refuse or read past", len(buf))
		}
		if !bytes.Equal(buf[dmHeader+dmSpec:][:len(params)], params) {
			t.Error("the parameters are not in it")
		}
	})
}
