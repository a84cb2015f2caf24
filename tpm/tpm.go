// Package tpm seals keys, keeps facts and signs with a TPM 2.0 over any transport.
package tpm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// Transport carries one command to a TPM and brings its response back.
type Transport interface {
	Send(command []byte) ([]byte, error)
}

// TPM is one TPM 2.0. Its methods may be called at the same time; each leaves
// nothing loaded behind.
type TPM struct {
	mu sync.Mutex
	t  Transport
}

// New makes a TPM of a transport.
func New(t Transport) *TPM { return &TPM{t: t} }

// ErrAbsent is every operation of a nil TPM, which is a machine without one: a box
// that was opened by its recovery key there still asks what only its TPM can do.
var ErrAbsent = errors.New("this machine has no TPM 2.0")

// Find opens the TPM at path: a device such as /dev/tpmrm0, or the socket of a
// software TPM. It returns nil if there is none. One that is there and cannot
// be opened fails every command: a broken TPM must never look like an absent
// one, or breaking it would be a way to weaker keys.
func Find(path string) *TPM {
	c, err := Dial(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return New(broken{path, err})
	}
	return New(c)
}

// Close closes the transport, if it can be closed.
func (t *TPM) Close() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, ok := t.t.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Reset begins anew after a command that was not answered, or not with sense:
// until then every further one fails at once, so that a start with a silent
// TPM ends. Where all is well, or the transport cannot be opened anew, it does
// nothing.
func (t *TPM) Reset() error {
	if t == nil {
		return ErrAbsent
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch c := t.t.(type) {
	case broken:
		anew, err := Dial(c.path)
		if err != nil {
			return err
		}
		t.t = anew
	case interface{ Reset() error }:
		return c.Reset()
	}
	return nil
}

type broken struct {
	path string
	err  error
}

func (b broken) Send([]byte) ([]byte, error) {
	return nil, fmt.Errorf("the TPM is there but cannot be opened: %w", b.err)
}
