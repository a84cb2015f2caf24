package update

import (
	"sync"

	"gatehouse/firmware/slot"
)

// Book is the record of slots and trials in META, which both systems read before
// the data are open.
type Book struct {
	meta slot.Device

	mu      sync.Mutex
	record  slot.Record
	failing error
}

// NewBook goes on from a record that was read.
func NewBook(meta slot.Device, r slot.Record) *Book { return &Book{meta: meta, record: r} }

// Record is the present one.
func (b *Book) Record() slot.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.record
}

// Change writes what f makes of it; on an error nothing has changed.
func (b *Book) Change(f func(slot.Record) (slot.Record, error)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := f(b.record)
	if err != nil {
		return err
	}
	failing, err := slot.KeepRecord(b.meta, next)
	if err != nil {
		return err
	}
	b.record, b.failing = next, failing
	return nil
}

// Failing is what is wrong with one of the two copies; nil: nothing.
func (b *Book) Failing() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failing
}
