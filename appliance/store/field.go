package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strconv"
)

// Keys are the two subkeys of the data key that the console is given.
type Keys struct {
	Fields []byte // 32 bytes: encrypts fields
	Pepper []byte // 32 bytes: keyed lookups
}

type fieldKeys struct {
	aead   cipher.AEAD
	lookup []byte
}

// derive takes a key of our own from each subkey, so that the same subkey may
// serve the certificate store too without one ever decrypting for the other.
func (k Keys) derive() (fieldKeys, error) {
	if len(k.Fields) != 32 || len(k.Pepper) != 32 {
		return fieldKeys{}, fmt.Errorf("the database's keys have %d and %d bytes, want 32 each", len(k.Fields), len(k.Pepper))
	}
	fields, err := hkdf.Key(sha256.New, k.Fields, nil, "gatehouse store fields v1", 32)
	if err != nil {
		return fieldKeys{}, err
	}
	lookup, err := hkdf.Key(sha256.New, k.Pepper, nil, "gatehouse store lookup v1", 32)
	if err != nil {
		return fieldKeys{}, err
	}
	block, err := aes.NewCipher(fields)
	if err != nil {
		return fieldKeys{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return fieldKeys{}, err
	}
	return fieldKeys{aead, lookup}, nil
}

// Cell names one field of one row. It is authenticated with the value, so that
// a value moved to another row or column does not open there.
type Cell struct {
	Table, Column string
	Row           int64
}

func (c Cell) additional() []byte {
	return []byte(c.Table + "\x00" + c.Column + "\x00" + strconv.FormatInt(c.Row, 10))
}

// Seal encrypts a value for a cell with AES-256-GCM under a random nonce.
func (db *DB) Seal(c Cell, value []byte) []byte {
	return db.fields.aead.Seal(nil, nil, value, c.additional())
}

// Unseal opens what Seal made for the same cell.
func (db *DB) Unseal(c Cell, sealed []byte) ([]byte, error) {
	b, err := db.fields.aead.Open(nil, nil, sealed, c.additional())
	if err != nil {
		return nil, fmt.Errorf("opening %s.%s of row %d: the value was not written by this box for this place: %w", c.Table, c.Column, c.Row, err)
	}
	return b, nil
}

// Lookup is the keyed hash by which a value that is stored encrypted can be
// found again; kind keeps the values of different columns apart.
func (db *DB) Lookup(kind, value string) []byte {
	m := hmac.New(sha256.New, db.fields.lookup)
	m.Write([]byte(kind + "\x00" + value))
	return m.Sum(nil)
}
