// Package target keeps what sessions can reach: hosts of the site's network as their owner declared them, what the agent signs in with there, and their pinned host keys.
//
// A credential is encrypted in the database and told to the agent alone. Every
// change is in the audit log before it is made.
package target

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/broker/asker"
	"gatehouse/appliance/enroll/attend"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/store"
)

// Limits of what is kept about a target.
const (
	maxIdle       = 24 * 60 // minutes
	maxCredential = 16 << 10
)

func credentialCell(id int64) store.Cell {
	return store.Cell{Table: "target", Column: "credential", Row: id}
}

// credential is what the vault keeps of a target.
type credential struct {
	User       string
	Password   string
	PrivateKey []byte
}

// box is the target that is always there.
func (s *Store) box() api.Target {
	return api.Target{Target: session.Target{Name: s.cfg.Box, Kind: session.Box}, Recording: session.RecordingAllowed, Idle: 15}
}

// Targets are all of them, by name; the box is the first.
func (s *Store) Targets(ctx context.Context) ([]api.Target, error) {
	list := []api.Target{s.box()}
	err := s.cfg.DB.View(ctx, func(tx *sql.Tx) error {
		var err error
		list, err = s.targets(ctx, tx, list, "ORDER BY name")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing targets: %w", err)
	}
	return list, nil
}

func (s *Store) targets(ctx context.Context, tx *sql.Tx, list []api.Target, where string, args ...any) ([]api.Target, error) {
	rows, err := tx.QueryContext(ctx, "SELECT id, name, kind, host, port, recording, idle, created, credential FROM target "+where, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	first := len(list)
	for rows.Next() {
		var t api.Target
		var created int64
		var sealed []byte
		if err := rows.Scan(&t.ID, &t.Name, &t.Kind, &t.Host, &t.Port, &t.Recording, &t.Idle, &created, &sealed); err != nil {
			return nil, err
		}
		t.Created = time.Unix(created, 0).UTC()
		c, err := s.unseal(t.ID, sealed)
		if err != nil {
			return nil, err
		}
		if t.User = c.User; c.Password != "" {
			t.Credential = "password"
		} else if c.PrivateKey != nil {
			t.Credential = "key"
		}
		list = append(list, t)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, err
	}
	for i := first; i < len(list); i++ {
		keys, err := hostKeys(ctx, tx, list[i].ID)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			list[i].HostKeys = append(list[i].HostKeys, Fingerprint(k))
		}
	}
	return list, nil
}

// Fingerprint shows a host key as ssh does.
func Fingerprint(key []byte) string {
	k, err := ssh.ParsePublicKey(key)
	if err != nil {
		return "not a key"
	}
	return k.Type() + " " + ssh.FingerprintSHA256(k)
}

func hostKeys(ctx context.Context, tx *sql.Tx, id int64) ([][]byte, error) {
	rows, err := tx.QueryContext(ctx, "SELECT key FROM host_key WHERE target = ? ORDER BY added", id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var keys [][]byte
	for rows.Next() {
		var k []byte
		if err := rows.Scan(&k); err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	return keys, rows.Err()
}

// held is what is kept of a target besides what everybody may see.
func (s *Store) held(ctx context.Context, tx *sql.Tx, id int64) (credential, [][]byte, error) {
	var sealed []byte
	if err := tx.QueryRowContext(ctx, "SELECT credential FROM target WHERE id = ?", id).Scan(&sealed); err != nil {
		return credential{}, nil, err
	}
	c, err := s.unseal(id, sealed)
	if err != nil {
		return credential{}, nil, err
	}
	keys, err := hostKeys(ctx, tx, id)
	return c, keys, err
}

func (s *Store) unseal(id int64, sealed []byte) (credential, error) {
	var c credential
	if sealed == nil {
		return c, nil
	}
	text, err := s.cfg.DB.Unseal(credentialCell(id), sealed)
	if err != nil {
		return c, fmt.Errorf("opening the credential of target %d: %w", id, err)
	}
	if err := json.Unmarshal(text, &c); err != nil {
		return c, fmt.Errorf("reading the credential of target %d: %w", id, err)
	}
	return c, nil
}

var errNoTarget = asker.None("There is no such target. It may have been removed.")

// Target is one of them; 0 is the box.
func (s *Store) Target(ctx context.Context, id int64) (api.Target, error) {
	if id == 0 {
		return s.box(), nil
	}
	return s.one(ctx, "WHERE id = ?", id)
}

func (s *Store) one(ctx context.Context, where string, arg any) (api.Target, error) {
	var list []api.Target
	err := s.cfg.DB.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = s.targets(ctx, tx, nil, where, arg)
		return err
	})
	switch {
	case err != nil:
		return api.Target{}, fmt.Errorf("reading a target: %w", err)
	case len(list) == 0:
		return api.Target{}, errNoTarget
	}
	return list[0], nil
}

// Find takes a name, or an id in digits.
func (s *Store) Find(ctx context.Context, named string) (api.Target, error) {
	if strings.EqualFold(named, s.cfg.Box) || named == "box" {
		return s.box(), nil
	}
	t, err := s.one(ctx, "WHERE name = ?", named)
	if !errors.Is(err, errNoTarget) {
		return t, err
	}
	if id, perr := strconv.ParseInt(named, 10, 64); perr == nil {
		return s.Target(ctx, id)
	}
	return t, err
}

// judge says in words what is wrong with a target that is to be declared.
func (s *Store) judge(q api.TargetNew) error {
	if q.Kind == session.Box {
		return asker.Refuse("The box itself is a target already. Choose what speaks at another host: ssh, http, https, rdp, vnc or tcp.")
	}
	if err := q.Check(); err != nil {
		return asker.Refuse("The target is not declared: %v.", asker.Words(err))
	}
	switch {
	case strings.EqualFold(q.Name, s.cfg.Box) || q.Name == "box":
		return asker.Refuse("%q is the box itself. Choose another name.", q.Name)
	case strings.Trim(q.Name, "0123456789") == "":
		return asker.Refuse("A name that is a number alone would be taken for another target's number. Add a letter.")
	case q.Recording != session.RecordingOff && q.Recording != session.RecordingAllowed && q.Recording != session.RecordingForced:
		return asker.Refuse("Recording is off, allowed or forced.")
	case q.Idle < 0 || q.Idle > maxIdle:
		return asker.Refuse("A session ends after 1 to %d minutes without input, or, with 0, never for that.", maxIdle)
	case q.Recording == session.RecordingForced && q.Kind != session.SSH:
		return asker.Refuse("Only terminals can be recorded: a forced recording is for targets of kind ssh. What goes through to %s as it is cannot be read here.", q.Kind)
	}
	return nil
}

// Declare makes a target, or changes one. Another host or port forgets host
// keys and credential: they were for the machine before.
func (s *Store) Declare(ctx context.Context, who asker.Who, q api.TargetNew) (api.Target, error) {
	q.Name = strings.TrimSpace(q.Name)
	if a, err := netip.ParseAddr(q.Host); err == nil {
		q.Host = a.Unmap().String() // as grants write it
	} else {
		q.Host = strings.ToLower(strings.TrimSpace(q.Host))
	}
	if q.Port == 0 {
		q.Port = q.Kind.UsualPort()
	}
	if err := s.judge(q); err != nil {
		return api.Target{}, err
	}
	action, moved := "declare target", false
	if q.ID != 0 {
		old, err := s.one(ctx, "WHERE id = ?", q.ID)
		if err != nil {
			return api.Target{}, err
		}
		action, moved = "change target", old.Host != q.Host || old.Port != q.Port || old.Kind != q.Kind
	}
	if other, err := s.one(ctx, "WHERE name = ?", q.Name); err == nil && other.ID != q.ID {
		return api.Target{}, asker.Refuse("There is a target %q already. Choose another name.", other.Name)
	}
	detail := map[string]string{"kind": string(q.Kind), "host": q.Host, "port": strconv.Itoa(int(q.Port)), "recording": string(q.Recording), "idle": strconv.Itoa(q.Idle)}
	if err := s.audit(ctx, who, action, q.Name, detail); err != nil {
		return api.Target{}, err
	}
	err := s.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		if q.ID != 0 {
			return change(ctx, tx, q, moved)
		}
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM target").Scan(&n); err != nil {
			return err
		}
		if n >= maxTargets {
			return asker.Refuse("There are %d targets, which is the most. Remove one that is not used.", n)
		}
		r, err := tx.ExecContext(ctx, "INSERT INTO target (name, kind, host, port, recording, idle, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
			q.Name, string(q.Kind), q.Host, q.Port, string(q.Recording), q.Idle, s.cfg.Wall().Unix())
		if err != nil {
			return fmt.Errorf("keeping the target: %w", err)
		}
		q.ID, err = r.LastInsertId()
		return err
	})
	if err != nil {
		return api.Target{}, err
	}
	if moved {
		s.cfg.Gone(ctx, q.ID, "the target was changed")
	}
	return s.Target(ctx, q.ID)
}

func change(ctx context.Context, tx *sql.Tx, q api.TargetNew, moved bool) error {
	_, err := tx.ExecContext(ctx, "UPDATE target SET name = ?, kind = ?, host = ?, port = ?, recording = ?, idle = ? WHERE id = ?",
		q.Name, string(q.Kind), q.Host, q.Port, string(q.Recording), q.Idle, q.ID)
	if err != nil || !moved {
		return err
	}
	if _, err = tx.ExecContext(ctx, "UPDATE target SET credential = NULL WHERE id = ?", q.ID); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "DELETE FROM host_key WHERE target = ?", q.ID)
	return err
}

// Remove forgets a target, and ends its sessions.
func (s *Store) Remove(ctx context.Context, who asker.Who, id int64) error {
	t, err := s.one(ctx, "WHERE id = ?", id)
	if err != nil {
		return err
	}
	if err := s.audit(ctx, who, "remove target", t.Name, map[string]string{"host": t.Host}); err != nil {
		return err
	}
	err = s.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM host_key WHERE target = ?", id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM target WHERE id = ?", id)
		return err
	})
	if err != nil {
		return fmt.Errorf("removing a target: %w", err)
	}
	s.cfg.Gone(ctx, id, "the target was removed")
	return nil
}

// SetCredential puts what the agent signs in with into the vault; all empty
// takes it out. It is not to be had again by anybody but the agent.
func (s *Store) SetCredential(ctx context.Context, who asker.Who, q api.CredentialSet) error {
	t, err := s.one(ctx, "WHERE id = ?", q.ID)
	if err != nil {
		return err
	}
	if t.Kind != session.SSH {
		return asker.Refuse("A credential is for targets of kind ssh; %s is %s.", t.Name, t.Kind)
	}
	c := credential{q.User, q.Password, nil}
	if q.PrivateKey != "" {
		c.PrivateKey = []byte(q.PrivateKey)
	}
	kind := "none"
	switch {
	case c.User == "" && c.Password == "" && c.PrivateKey == nil:
	case c.User == "" || len(c.User) > 64 || strings.ContainsFunc(c.User, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return asker.Refuse("A credential has the name of a user, of 1 to 64 characters without spaces.")
	case c.Password != "" && c.PrivateKey != nil:
		return asker.Refuse("Give a password or a private key, not both.")
	case c.PrivateKey != nil:
		if _, err := ssh.ParsePrivateKey(c.PrivateKey); err != nil {
			return asker.Refuse("The private key cannot be used: %s. It is wanted as OpenSSH or PEM writes it, without a passphrase.", keyWords(err))
		}
		kind = "key"
	case len(c.Password) > 1024:
		return asker.Refuse("A password has at most 1024 characters.")
	default:
		kind = "password"
	}
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("keeping a credential: %w", err)
	}
	if len(text) > maxCredential {
		return asker.Refuse("The private key is larger than keys are.")
	}
	if err := s.audit(ctx, who, "set credential", t.Name, map[string]string{"kind": kind, "user": c.User}); err != nil {
		return err
	}
	var sealed []byte
	if kind != "none" {
		sealed = s.cfg.DB.Seal(credentialCell(q.ID), text)
	}
	return s.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE target SET credential = ? WHERE id = ?", sealed, q.ID)
		return err
	})
}

// keyWords says why a key is not one, without any of it.
func keyWords(err error) string {
	var passphrase *ssh.PassphraseMissingError
	if errors.As(err, &passphrase) {
		return "it has a passphrase"
	}
	return "it is not one"
}

// ForgetHostKeys lets the next session ask again.
func (s *Store) ForgetHostKeys(ctx context.Context, who asker.Who, id int64) error {
	t, err := s.one(ctx, "WHERE id = ?", id)
	if err != nil {
		return err
	}
	if err := s.audit(ctx, who, "forget host keys", t.Name, map[string]string{"keys": strings.Join(t.HostKeys, ", ")}); err != nil {
		return err
	}
	return s.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM host_key WHERE target = ?", id)
		return err
	})
}

// Pin keeps a host key that a technician accepted, if there is none yet: a
// second one is a change, which is a matter for the owner.
func (s *Store) Pin(ctx context.Context, id int64, key []byte) error {
	if _, err := ssh.ParsePublicKey(key); err != nil || len(key) > 4<<10 {
		return fmt.Errorf("what was accepted is not a host key: %w", err)
	}
	return s.cfg.DB.Update(ctx, func(tx *sql.Tx) error {
		have, err := hostKeys(ctx, tx, id)
		if err != nil || len(have) > 0 {
			return err
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO host_key (target, key, added) VALUES (?, ?, ?)", id, key, s.cfg.Wall().Unix())
		return err
	})
}

// Material is what the agent is told besides the grant, and the target as it was
// when that was read: a credential is for this machine and for no other.
func (s *Store) Material(ctx context.Context, id int64, who asker.Who) (api.Target, attend.Material, error) {
	t := s.box()
	m := attend.Material{Direct: true, Source: who.Source.String()}
	if id != 0 {
		err := s.cfg.DB.View(ctx, func(tx *sql.Tx) error {
			list, err := s.targets(ctx, tx, nil, "WHERE id = ?", id)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return errNoTarget
			}
			t = list[0]
			c, keys, err := s.held(ctx, tx, id)
			m.User, m.Password, m.PrivateKey, m.HostKeys = c.User, c.Password, c.PrivateKey, keys
			return err
		})
		switch {
		case errors.Is(err, errNoTarget):
			return api.Target{}, attend.Material{}, errNoTarget
		case err != nil:
			return api.Target{}, attend.Material{}, fmt.Errorf("reading a target: %w", err)
		}
	}
	m.Idle = t.Idle
	return t, m, nil
}
