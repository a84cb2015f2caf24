package uki

import (
	"errors"
	"fmt"
)

// Read returns the sections of a UKI, those of the stub among them, signed or
// not. Of a name that is there twice nobody could say which one the stub takes,
// so that is an error.
func Read(program []byte) ([]Section, error) {
	h, err := parse(program)
	if err != nil {
		return nil, fmt.Errorf("reading a UKI: %w", err)
	}
	if len(h.names) != len(h.sections) {
		return nil, errors.New("reading a UKI: a section is there twice")
	}
	var out []Section
	for _, s := range h.sections {
		out = append(out, Section{Name: s.name, Content: program[s.offset : s.offset+min(s.size, s.raw)]})
	}
	return out, nil
}
