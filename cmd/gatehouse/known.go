package main

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// known is the file of boxes whose key this person has proved:
// $XDG_CONFIG_HOME/gatehouse/known.json.
type known struct {
	path  string
	Boxes []knownBox `json:"boxes"`
}

type knownBox struct {
	Name    string    `json:"name"`
	Address string    `json:"address"` // host:port
	SPKI    string    `json:"spki"`    // SHA-256, hexadecimal
	Since   time.Time `json:"since"`
}

func (k knownBox) key() (*[32]byte, error) {
	b, err := hex.DecodeString(k.SPKI)
	if err != nil || len(b) != 32 {
		return nil, fmt.Errorf("the key of %s in known.json is not a SHA-256: remove the entry and run gatehouse setup or status --proof again", k.Address)
	}
	return (*[32]byte)(b), nil
}

func readKnown() (*known, error) {
	path, err := configFile("known.json")
	if err != nil {
		return nil, err
	}
	k := &known{path: path}
	if err := readConfig(path, k); err != nil {
		return nil, fmt.Errorf("reading the known boxes in %s: %w", path, err)
	}
	return k, nil
}

func (k *known) find(address string) (knownBox, bool) {
	i := slices.IndexFunc(k.Boxes, func(b knownBox) bool { return b.Address == address })
	if i < 0 {
		return knownBox{}, false
	}
	return k.Boxes[i], true
}

// move says that a box answers at another address now.
func (k *known) move(from, to string) error {
	b, ok := k.find(from)
	if !ok {
		return nil // it was never kept
	}
	k.Boxes = slices.DeleteFunc(k.Boxes, func(o knownBox) bool { return o.Address == from })
	b.Address = to
	return k.put(b)
}

// put replaces what was known of an address, and the file by a whole new one.
func (k *known) put(b knownBox) error {
	k.Boxes = append(slices.DeleteFunc(k.Boxes, func(o knownBox) bool { return o.Address == b.Address }), b)
	return writeConfig(k.path, k)
}
