package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// kept is the file of sessions that gatehouse login keeps, one for each box:
// $XDG_CONFIG_HOME/gatehouse/sessions.json, for its owner's eyes only. Who has
// it is signed in until the box ends the session; no password is in it.
type kept struct {
	path     string
	Sessions []keptSession `json:"sessions"`
}

type keptSession struct {
	SPKI    string    `json:"spki"` // of the box: it may move to another address
	Email   string    `json:"email"`
	Until   time.Time `json:"until"`
	Session string    `json:"session"` // cookies
	Browser string    `json:"browser,omitempty"`
}

// The box's cookies, as its pages set them.
const (
	sessionCookie = "__Host-gatehouse"
	browserCookie = "__Host-gatehouse-browser"
)

func readKept() (*kept, error) {
	path, err := configFile("sessions.json")
	if err != nil {
		return nil, err
	}
	k := &kept{path: path}
	if err := readConfig(path, k); err != nil {
		return nil, fmt.Errorf("reading the sessions in %s: %w", path, err)
	}
	return k, nil
}

// readConfig reads a file of the tool's own folder; one that is not there changes nothing.
func readConfig(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// configFile is a file of the tool's own folder.
func configFile(name string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("finding the tool's own folder: %w", err)
	}
	return filepath.Join(dir, "gatehouse", name), nil
}

func (k *kept) find(spki string) (keptSession, bool) {
	i := slices.IndexFunc(k.Sessions, func(s keptSession) bool { return s.SPKI == spki })
	if i < 0 {
		return keptSession{}, false
	}
	return k.Sessions[i], true
}

// put replaces what is kept of a box; without a session it is removed.
func (k *kept) put(s keptSession) error {
	k.Sessions = slices.DeleteFunc(k.Sessions, func(o keptSession) bool { return o.SPKI == s.SPKI })
	if s.Session != "" {
		k.Sessions = append(k.Sessions, s)
	}
	return writeConfig(k.path, k)
}

// writeConfig replaces a file of the tool's own folder by a whole new one that
// only its owner reads.
func writeConfig(path string, v any) error {
	fail := func(err error) error { return fmt.Errorf("writing %s: %w", path, err) }
	j, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "new-*") // mode 0600
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) // there only if it was not renamed
	_, err = f.Write(append(j, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// id is the box's key as text.
func (b *box) id() string {
	k := b.spki()
	return hex.EncodeToString(k[:])
}

// as does something as a person: one who signs in for this one go, or by the
// session that is kept.
func (b *box) as(ctx context.Context, who signIn, stdin io.Reader, do func(context.Context) error) error {
	if who.email != "" {
		return refusedHow(b.signedIn(ctx, who, stdin, do))
	}
	k, err := readKept()
	if err != nil {
		return err
	}
	s, ok := k.find(b.id())
	if !ok {
		return errNotSignedIn()
	}
	if err := b.useSession(s); err != nil {
		return err
	}
	err = do(ctx)
	var r *refusal
	switch {
	case !errors.As(err, &r):
		return err
	case r.status == http.StatusUnauthorized:
		if err := k.put(keptSession{SPKI: s.SPKI}); err != nil {
			return err
		}
		return fail(exitDenied, "the session of %s has ended: run gatehouse login again", s.Email)
	case r.status == http.StatusForbidden && r.text == confirmFirst:
		return fail(exitDenied, "the box wants the password and the code again for this: give --email, --password and --code, or run gatehouse login again")
	}
	return refusedHow(err)
}

// confirmFirst is what the box answers where a session has to be a fresh one.
const confirmFirst = "Confirm that it is you first."

func errNotSignedIn() error {
	return fail(exitDenied, "nobody is signed in: run gatehouse login, or give --email, --password and --code for this one go")
}

// signedInSomewhere finds out before a box is asked whether that can be of use.
func signedInSomewhere(who signIn) error {
	if who.email != "" {
		return who.check()
	}
	if err := who.check(); err != nil {
		return err
	}
	k, err := readKept()
	if err == nil && len(k.Sessions) == 0 {
		err = errNotSignedIn()
	}
	return err
}

// refusedHow gives what a box answered its exit code.
func refusedHow(err error) error {
	var f *failure
	var r *refusal
	if errors.As(err, &f) || !errors.As(err, &r) {
		return err
	}
	switch r.status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fail(exitDenied, "%w", err)
	case http.StatusNotFound:
		return fail(exitNotFound, "%w", err)
	case http.StatusConflict:
		return fail(exitConflict, "%w", err)
	case http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return fail(exitUnreachable, "%w", err)
	}
	return err
}

func (b *box) url() *url.URL { return &url.URL{Scheme: "https", Host: b.address, Path: "/"} }

// useSession makes the box take this for the browser that signed in.
func (b *box) useSession(s keptSession) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	for name, value := range map[string]string{sessionCookie: s.Session, browserCookie: s.Browser} {
		if value != "" {
			jar.SetCookies(b.url(), []*http.Cookie{{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true}})
		}
	}
	b.client.Jar = jar
	return nil
}

// session reads what the box has made of this for the file.
func (b *box) session() (s keptSession) {
	s.SPKI = b.id()
	for _, c := range b.client.Jar.Cookies(b.url()) {
		switch c.Name {
		case sessionCookie:
			s.Session = c.Value
		case browserCookie:
			s.Browser = c.Value
		}
	}
	return s
}
