package qemu

import (
	"crypto/x509"
	"errors"
	"fmt"

	"gatehouse/image/efivar"
)

// SecureBoot is who may say what such a machine starts. Without Platform nobody
// does yet: the machine is in set-up mode, and whoever runs on it may enrol keys.
type SecureBoot struct {
	Platform, Exchange, Programs *x509.Certificate
}

// enrol writes the certificates into the variables of a machine that was never
// started: what a person does in the set-up screen. The machine then has
// Secure Boot on.
func (s SecureBoot) enrol(vars []byte) ([]byte, error) {
	if s.Platform == nil {
		return vars, nil
	}
	store, err := readStore(vars)
	if err != nil {
		return nil, fmt.Errorf("enrolling keys: %w", err)
	}
	if store.end != store.log {
		return nil, errors.New("enrolling keys: this machine was started before")
	}
	for _, v := range []struct {
		name string
		cert *x509.Certificate
	}{{"PK", s.Platform}, {"KEK", s.Exchange}, {"db", s.Programs}} {
		err := store.Add(Variable{Name: v.name, Vendor: efivar.Vendor(v.name), Attributes: efivar.Attributes, Data: efivar.SignatureList(v.cert)})
		if err != nil {
			return nil, fmt.Errorf("enrolling keys: %w", err)
		}
	}
	return store.raw, nil
}
