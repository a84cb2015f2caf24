package broker

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"

	"gatehouse/appliance/recording"
	"gatehouse/appliance/store"
)

// keys are the organisation's: made once, kept encrypted in the database, gone
// with it.
type keys struct {
	sign     ed25519.PrivateKey
	recorder []byte // private key of recordings
	recordTo []byte // its public half
}

func (k keys) public() ed25519.PublicKey {
	p, ok := k.sign.Public().(ed25519.PublicKey)
	if !ok {
		return nil
	}
	return p
}

func seedCell() store.Cell     { return store.Cell{Table: "organisation", Column: "seed", Row: 1} }
func recorderCell() store.Cell { return store.Cell{Table: "organisation", Column: "recorder", Row: 1} }

func openKeys(ctx context.Context, db *store.DB) (keys, error) {
	var k keys
	err := db.Update(ctx, func(tx *sql.Tx) error {
		var seed, recorder []byte
		err := tx.QueryRowContext(ctx, "SELECT seed, recorder, record_to FROM organisation").Scan(&seed, &recorder, &k.recordTo)
		if errors.Is(err, sql.ErrNoRows) {
			k, err = makeKeys(ctx, tx, db)
			return err
		}
		if err != nil {
			return err
		}
		if seed, err = db.Unseal(seedCell(), seed); err != nil {
			return err
		}
		if len(seed) != ed25519.SeedSize {
			return fmt.Errorf("its seed has %d bytes", len(seed))
		}
		k.sign = ed25519.NewKeyFromSeed(seed)
		k.recorder, err = db.Unseal(recorderCell(), recorder)
		return err
	})
	if err != nil {
		return keys{}, fmt.Errorf("opening the organisation's keys: %w", err)
	}
	return k, nil
}

func makeKeys(ctx context.Context, tx *sql.Tx, db *store.DB) (keys, error) {
	var k keys
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return k, err
	}
	k.sign = private
	if k.recorder, k.recordTo, err = recording.NewKey(); err != nil {
		return k, err
	}
	_, err = tx.ExecContext(ctx, "INSERT INTO organisation (id, seed, recorder, record_to) VALUES (1, ?, ?, ?)",
		db.Seal(seedCell(), private.Seed()), db.Seal(recorderCell(), k.recorder), k.recordTo)
	return k, err
}
