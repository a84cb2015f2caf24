package update

import (
	"sync"

	"gatehouse/firmware/slot"
)

// Book is the record of slots and trials in META, which both systems read before
// the data are open.
type Book struct {
	meta slot.Device

	mu     sync.Mutex
	record slot.Record
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
	if err := slot.WriteRecord(b.meta, next); err != nil {
		return err
	}
	b.record = next
	return nil
}
