package vault

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestNET3_NetworkCopyInMeta(t *testing.T) {
	dev, err := OpenFile(filepath.Join(t.TempDir(), "meta"))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := ReadNetwork(dev); b != nil || err != nil {
		t.Fatalf("a new META has %q, %v", b, err)
	}
	if err := WriteNetwork(dev, make([]byte, MaxNetwork+1)); err == nil {
		t.Error("more than fits was written")
	}
	for _, text := range []string{"one", "two", "two", "three", string(bytes.Repeat([]byte("x"), MaxNetwork)), "four"} {
		if err := WriteNetwork(dev, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := ReadNetwork(dev); string(b) != text || err != nil {
			t.Fatalf("after %d bytes: %d bytes, %v", len(text), len(b), err)
		}
	}
	// It lies where the map says, and touches nothing else.
	all, err := os.ReadFile(dev.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !isBlank(all[:192<<10]) || !isBlank(all[256<<10:]) {
		t.Error("bytes outside of its place changed")
	}
	if err := erase(dev); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadNetwork(dev); b != nil || err != nil {
		t.Errorf("after erasing: %q, %v", b, err)
	}
}

// A power cut at any block leaves the old copy or the new.
func TestNET3_NetworkCopySurvivesAPowerCut(t *testing.T) {
	old, young := bytes.Repeat([]byte("old "), 3000), bytes.Repeat([]byte("new "), 5000)
	for cut := 0; cut <= networkPlace/blockSize; cut++ {
		dev, err := OpenFile(filepath.Join(t.TempDir(), "meta"))
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteNetwork(dev, old); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(dev.Name())
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteNetwork(dev, young); err != nil {
			t.Fatal(err)
		}
		after, err := os.ReadFile(dev.Name())
		if err != nil {
			t.Fatal(err)
		}
		// The blocks behind the cut are as before.
		for n, at := 0, 0; at < len(after); at += blockSize {
			if !bytes.Equal(before[at:at+blockSize], after[at:at+blockSize]) {
				if n++; n > cut {
					if _, err := dev.WriteAt(before[at:at+blockSize], int64(at)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		got, err := ReadNetwork(dev)
		if err != nil || !bytes.Equal(got, old) && !bytes.Equal(got, young) {
			t.Fatalf("cut after %d blocks: %d bytes, %v", cut, len(got), err)
		}
		if err := WriteNetwork(dev, young); err != nil {
			t.Fatal(err)
		}
		if got, _ := ReadNetwork(dev); !bytes.Equal(got, young) {
			t.Errorf("cut after %d blocks: a later write does not count", cut)
		}
	}
}

func FuzzReadNetwork(f *testing.F) {
	f.Add([]byte(networkMagic), 0)
	f.Add([]byte("\xff\xff\xff\xff"), 16)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		dev, err := OpenFile(filepath.Join(t.TempDir(), "meta"))
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteNetwork(dev, []byte("sound")); err != nil {
			t.Fatal(err)
		}
		place := int64(networkAt + networkPlace) // where the first went
		if at < 0 || at > 100 || len(b) > networkPlace-100 {
			return
		}
		if _, err := dev.WriteAt(b, place+int64(at)); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadNetwork(dev); err != nil || got != nil && string(got) != "sound" {
			t.Errorf("%q, %v", got, err)
		}
	})
}
