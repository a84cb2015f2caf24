package target

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/session/api"
)

// Moved is a target on the way to another box, with what is signed in with
// there. It is in a file that is encrypted, and nowhere else.
type Moved struct {
	api.TargetNew
	Created    time.Time `json:"created"`
	User       string    `json:"user,omitempty"`
	Password   string    `json:"password,omitempty"`
	PrivateKey []byte    `json:"private_key,omitempty"`
	HostKeys   [][]byte  `json:"host_keys,omitempty"` // SSH's wire form
}

// maxHostKeys is more than a target ever has pinned.
const maxHostKeys = 16

// Export returns all targets but the box, which every box has.
func (s *Store) Export(ctx context.Context) (list []Moved, err error) {
	err = s.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		targets, err := s.targets(ctx, tx, nil, "ORDER BY name")
		if err != nil {
			return err
		}
		for _, t := range targets {
			m := Moved{TargetNew: api.TargetNew{Target: t.Target, Recording: t.Recording, Idle: t.Idle}, Created: t.Created}
			c, keys, err := s.held(ctx, tx, t.ID)
			if err != nil {
				return err
			}
			m.User, m.Password, m.PrivateKey, m.HostKeys = c.User, c.Password, c.PrivateKey, keys
			list = append(list, m)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the targets: %w", err)
	}
	return list, nil
}

// CheckMoved says what is wrong with targets that are to be taken here.
func (s *Store) CheckMoved(list []Moved) error {
	if len(list) > maxTargets {
		return asker.Refuse("There are %d targets in it, and %d are the most.", len(list), maxTargets)
	}
	seen := make(map[string]bool)
	for _, m := range list {
		name := strings.ToLower(m.Name)
		if err := s.judge(m.TargetNew); err != nil {
			return err
		}
		c := credential{m.User, m.Password, m.PrivateKey}
		switch text, err := json.Marshal(c); {
		case err != nil:
			return err
		case m.ID != 0 || seen[name]:
			return asker.Refuse("The target %q is there twice.", m.Name)
		case len(text) > maxCredential:
			return asker.Refuse("The credential of target %q is larger than they are.", m.Name)
		case len(m.HostKeys) > maxHostKeys:
			return asker.Refuse("Target %q has %d host keys, and %d are the most.", m.Name, len(m.HostKeys), maxHostKeys)
		}
		for _, k := range m.HostKeys {
			if _, err := ssh.ParsePublicKey(k); err != nil || len(k) > 4<<10 {
				return asker.Refuse("A host key of target %q is not one.", m.Name)
			}
		}
		seen[name] = true
	}
	return nil
}

// Import puts the targets in the place of those that are there. Call Moved once
// the transaction is on disk.
func (s *Store) Import(ctx context.Context, tx *sql.Tx, list []Moved) error {
	if err := s.CheckMoved(list); err != nil {
		return err
	}
	for _, q := range []string{"DELETE FROM host_key", "DELETE FROM target"} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("removing the targets of before: %w", err)
		}
	}
	for _, m := range list {
		if err := s.place(ctx, tx, m); err != nil {
			return fmt.Errorf("importing the target %s: %w", m.Name, err)
		}
	}
	return nil
}

func (s *Store) place(ctx context.Context, tx *sql.Tx, m Moved) error {
	r, err := tx.ExecContext(ctx, "INSERT INTO target (name, kind, host, port, recording, idle, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
		m.Name, string(m.Kind), m.Host, m.Port, string(m.Recording), m.Idle, m.Created.Unix())
	if err != nil {
		return err
	}
	id, err := r.LastInsertId()
	if err != nil {
		return err
	}
	if m.User != "" || m.Password != "" || m.PrivateKey != nil {
		text, err := json.Marshal(credential{m.User, m.Password, m.PrivateKey})
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "UPDATE target SET credential = ? WHERE id = ?", s.cfg.DB.Seal(credentialCell(id), text), id); err != nil {
			return err
		}
	}
	for i, k := range m.HostKeys {
		// One after the other: they are listed by when they were added.
		if _, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO host_key (target, key, added) VALUES (?, ?, ?)", id, k, s.cfg.Wall().Unix()+int64(i)); err != nil {
			return err
		}
	}
	return nil
}
