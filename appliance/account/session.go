package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Stage is how far a sign-in has come.
type Stage string

// The stages of a session.
const (
	StageCode  Stage = "code"  // the password was right, the second step is to come
	StageEnrol Stage = "enrol" // the password was right and there is no second factor yet
	StageFull  Stage = "full"  // signed in
)

// The times after which a session ends by itself.
const (
	IdleTime     = 30 * time.Minute
	AbsoluteTime = 12 * time.Hour
	CodeTime     = 5 * time.Minute  // for the second step
	FreshTime    = 10 * time.Minute // in which factors may be changed without asking again
	codeTries    = 5
	devicesKept  = 20
)

// Session is one signed-in browser.
type Session struct {
	ID        int64
	Person    Person
	Stage     Stage
	Created   time.Time
	Seen      time.Time
	Confirmed time.Time
	Source    string
	Agent     string
}

// Fresh says whether password and factor were given a short while ago.
func (a *Accounts) Fresh(s Session) bool {
	age := a.steady().Sub(s.Confirmed)
	return s.Stage == StageFull && age >= 0 && age < FreshTime
}

// ErrNoSession means that the cookie is nobody's, or its time is over.
var ErrNoSession = errors.New("not signed in")

// Start opens a session at a stage and returns its cookie. replace is the
// cookie that the browser had; that session ends, so that a cookie from before
// a sign-in is never one after it.
func (a *Accounts) Start(ctx context.Context, p Person, stage Stage, o Origin, replace string) (token string, s Session, err error) {
	token = newToken()
	now := a.steady()
	s = Session{Person: p, Stage: stage, Created: now, Seen: now, Confirmed: now, Source: o.From(), Agent: o.Agent}
	err = a.db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM session WHERE token = ?", digest(replace)); err != nil {
			return fmt.Errorf("ending the earlier session: %w", err)
		}
		if err := forgetEnrolment(ctx, tx, p, stage); err != nil {
			return err
		}
		oldest := now.Add(-AbsoluteTime).Unix()
		if _, err := tx.ExecContext(ctx, "DELETE FROM session WHERE created < ?", oldest); err != nil {
			return fmt.Errorf("removing old sessions: %w", err)
		}
		res, err := tx.ExecContext(ctx, "INSERT INTO session (token, person, stage, created, seen, confirmed, source, agent) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
			digest(token), p.ID, string(stage), now.Unix(), now.Unix(), now.Unix(), s.Source, shorten(o.Agent, 300))
		if err != nil {
			return fmt.Errorf("storing the session: %w", err)
		}
		s.ID, err = res.LastInsertId()
		return err
	})
	return token, s, err
}

// forgetEnrolment drops a second factor that was begun in another session, and
// with it the other sessions that set one up: who saw its secret there would
// know it once it is verified here.
func forgetEnrolment(ctx context.Context, tx *sql.Tx, p Person, stage Stage) error {
	if stage == StageCode { // the password alone interrupts nobody
		return nil
	}
	if _, err := tx.ExecContext(ctx, "UPDATE person SET totp_pending = NULL WHERE id = ?", p.ID); err != nil {
		return fmt.Errorf("dropping a second factor that was begun: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM session WHERE person = ? AND stage = 'enrol'", p.ID); err != nil {
		return fmt.Errorf("ending the sessions that set up a second factor: %w", err)
	}
	return nil
}

// Session finds the session of a cookie. use notes that a person did something;
// a page that refreshes itself does not, or nobody would ever be idle.
func (a *Accounts) Session(ctx context.Context, token string, use bool) (Session, error) {
	if len(token) != 43 {
		return Session{}, ErrNoSession
	}
	s, err := a.find(ctx, token)
	if err != nil {
		return Session{}, err
	}
	now := a.steady()
	if over(s, now) {
		return Session{}, errors.Join(ErrNoSession, a.End(ctx, s.Person, s.ID))
	}
	if use && now.Sub(s.Seen) >= time.Minute { // not a write per request
		// On a full disk the use is not noted and the session ends the sooner; till
		// then whoever has it has to be able to make room.
		_ = a.db.Update(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE session SET seen = ? WHERE id = ?", now.Unix(), s.ID)
			return err
		})
	}
	return s, nil
}

func over(s Session, now time.Time) bool {
	age, idle := now.Sub(s.Created), now.Sub(s.Seen)
	if age < -time.Minute || idle < -time.Minute { // from the future: the clock went back over a restart
		return true
	}
	return age >= AbsoluteTime || idle >= IdleTime || s.Stage == StageCode && age >= CodeTime
}

func (a *Accounts) find(ctx context.Context, token string) (s Session, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		var person int64
		s, person, err = scanSession(tx.QueryRowContext(ctx, "SELECT "+sessionColumns+" FROM session WHERE token = ?", digest(token)))
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNoSession
		}
		if err != nil {
			return fmt.Errorf("reading a session: %w", err)
		}
		r, err := a.load(ctx, tx, "id", person)
		if err == nil && (!r.claimed || s.Stage == StageEnrol && r.Factor) {
			return ErrNoSession
		}
		s.Person = r.Person
		return err
	})
	return s, err
}

const sessionColumns = "id, person, stage, created, seen, confirmed, source, agent"

func scanSession(row interface{ Scan(...any) error }) (s Session, person int64, err error) {
	var created, seen, confirmed int64
	err = row.Scan(&s.ID, &person, &s.Stage, &created, &seen, &confirmed, &s.Source, &s.Agent)
	s.Created, s.Seen, s.Confirmed = time.Unix(created, 0), time.Unix(seen, 0), time.Unix(confirmed, 0)
	return s, person, err
}

// Sessions lists the sessions of a person, newest first.
func (a *Accounts) Sessions(ctx context.Context, p Person) (list []Session, err error) {
	err = a.db.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT "+sessionColumns+" FROM session WHERE person = ? ORDER BY id DESC", p.ID)
		if err != nil {
			return fmt.Errorf("listing sessions: %w", err)
		}
		defer rows.Close()
		for rows.Next() {
			s, _, err := scanSession(rows)
			if err != nil {
				return fmt.Errorf("listing sessions: %w", err)
			}
			if s.Person = p; !over(s, a.steady()) {
				list = append(list, s)
			}
		}
		return rows.Err()
	})
	return list, err
}

// SignedIn is the ids of all sessions that are signed in now.
func (a *Accounts) SignedIn(ctx context.Context) (map[int64]bool, error) {
	ids := make(map[int64]bool)
	err := a.db.View(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT "+sessionColumns+" FROM session")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			s, _, err := scanSession(rows)
			if err != nil {
				return err
			}
			if s.Stage == StageFull && !over(s, a.steady()) {
				ids[s.ID] = true
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("listing who is signed in: %w", err)
	}
	return ids, nil
}

// CountTry counts a wrong code in a session that waits for its second step,
// and ends it after five: then the password is asked again.
func (a *Accounts) CountTry(ctx context.Context, s Session) (left int, err error) {
	err = a.db.Update(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRowContext(ctx, "UPDATE session SET tries = tries + 1 WHERE id = ? RETURNING tries", s.ID).Scan(&left); err != nil {
			return fmt.Errorf("counting a try: %w", err)
		}
		if left = codeTries - left; left <= 0 {
			_, err := tx.ExecContext(ctx, "DELETE FROM session WHERE id = ?", s.ID)
			return err
		}
		return nil
	})
	return left, err
}

// Confirm notes that password and factor were given again.
func (a *Accounts) Confirm(ctx context.Context, s Session) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE session SET confirmed = ? WHERE id = ? AND stage = 'full'", a.steady().Unix(), s.ID)
		return err
	})
}

// End ends one session of a person.
func (a *Accounts) End(ctx context.Context, p Person, id int64) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM session WHERE id = ? AND person = ?", id, p.ID)
		return err
	})
}

// EndOthers ends all sessions of a person but one, and forgets other browsers.
func (a *Accounts) EndOthers(ctx context.Context, p Person, keep int64, device string) error {
	return a.db.Update(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "DELETE FROM device WHERE person = ? AND token <> ?", p.ID, digest(device)); err != nil {
			return fmt.Errorf("forgetting browsers: %w", err)
		}
		_, err := tx.ExecContext(ctx, "DELETE FROM session WHERE person = ? AND id <> ?", p.ID, keep)
		return err
	})
}

// KnowDevice makes the browser of a person who has just signed in one that
// strangers' guesses do not hold up, and returns its cookie.
func (a *Accounts) KnowDevice(ctx context.Context, p Person, device string) (string, error) {
	token := newToken()
	return token, a.db.Update(ctx, func(tx *sql.Tx) error {
		known, err := knownDevice(ctx, tx, p.ID, device)
		if err != nil {
			return fmt.Errorf("looking for a known browser: %w", err)
		}
		if known {
			token = device
			return nil
		}
		if _, err := tx.ExecContext(ctx, "INSERT INTO device (token, person, created) VALUES (?, ?, ?)", digest(token), p.ID, a.wall().Unix()); err != nil {
			return fmt.Errorf("storing a known browser: %w", err)
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM device WHERE token IN (SELECT token FROM device WHERE person = ? ORDER BY created DESC LIMIT -1 OFFSET ?)", p.ID, devicesKept)
		return err
	})
}
