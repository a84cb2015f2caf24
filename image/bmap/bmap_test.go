package bmap

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

func sample() []byte {
	b := make([]byte, 10*Block+100)
	b[0], b[Block] = 1, 1
	b[5*Block+7] = 1
	b[len(b)-1] = 1
	return b
}

func TestMapNamesWhatIsWrittenAndWhatIsKept(t *testing.T) {
	b := sample()
	m, err := Find(bytes.NewReader(b), int64(len(b)), []Range{{At: 7*Block + 5, Size: Block}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Range{{At: 0, Size: 2 * Block}, {At: 5 * Block, Size: Block}, {At: 7 * Block, Size: 2 * Block}, {At: 10 * Block, Size: 100}}
	for i := range want {
		want[i].Sum = sha256.Sum256(b[want[i].At:][:want[i].Size])
	}
	if fmt.Sprint(m.Ranges) != fmt.Sprint(want) || m.Bytes() != 5*Block+100 {
		t.Errorf("got\n%v\nwant\n%v", m.Ranges, want)
	}
	again, err := Decode(m.Encode())
	if err != nil || fmt.Sprint(again) != fmt.Sprint(m) {
		t.Errorf("read back: %v, %v", again, err)
	}
}

func TestBOX3_BadMapsAreRefused(t *testing.T) {
	b := sample()
	m, err := Find(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	good := string(m.Encode())
	// edit changes a map and makes its own sum right again.
	edit := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("the map has no %q:\n%s", old, good)
		}
		at := strings.Index(good, "<BmapFileChecksum> ") + len("<BmapFileChecksum> ")
		text := strings.Replace(good[:at]+noSum+good[at+64:], old, new, 1)
		sum := sha256.Sum256([]byte(text))
		return strings.Replace(text, noSum, fmt.Sprintf("%x", sum), 1)
	}
	if _, err := Decode([]byte(edit(" 5 ", " 5-5 "))); err != nil {
		t.Fatalf("another writing of the same: %v", err)
	}
	for says, text := range map[string]string{
		"not XML":           "bmap",
		"own sum":           strings.Replace(good, " 5 ", " 6 ", 1),
		`version "1.3"`:     edit(`"2.0"`, `"1.3"`),
		"sha1":              edit("> sha256 <", "> sha1 <"),
		"in blocks":         edit("> 4096 <", "> 4095 <"),
		"an image of":       edit(fmt.Sprint(len(b)), "-1"),
		`range " 5-4 "`:     edit(" 5 ", " 5-4 "),
		`range " 1 "`:       edit(" 5 ", " 1 "),
		`range " 5-4000 "`:  edit(" 5 ", " 5-4000 "),
		"a sum":             edit(`chksum="`, `chksum="zz`),
		"more than":         strings.Repeat(" ", MaxSize+1),
		`range " all of it`: edit(" 5 ", " all of it "),
	} {
		if _, err := Decode([]byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}
