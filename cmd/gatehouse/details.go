package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"
)

// signIn is who asks, with where the secrets are read from.
type signIn struct{ email, password, code string }

func (s signIn) check() error {
	if s.email == "" {
		if s.password != "" || s.code != "" {
			return fail(exitUsage, "--password and --code go with --email")
		}
		return nil
	}
	for name, v := range map[string]string{"password": s.password, "code": s.code} {
		if err := checkSecretFlag(name, v); err != nil {
			return err
		}
		if v == "" {
			return fail(exitUsage, "signing in takes --%s: file:PATH, or - for standard input", name)
		}
	}
	return oneStdin(s.password, s.code)
}

// details is what Status shows a person who signs in; the answer is the box's,
// unchanged.
func (b *box) details(ctx context.Context, s signIn, stdin io.Reader) (answer json.RawMessage, err error) {
	err = b.signedIn(ctx, s, stdin, func(ctx context.Context) error {
		_, err := b.call(ctx, "GET", "/api/v1/details", nil, &answer)
		return err
	})
	return answer, err
}

// signedIn signs in as a person does on the page, does something, and signs out.
func (b *box) signedIn(ctx context.Context, s signIn, stdin io.Reader, do func(context.Context) error) error {
	password, err := readSecret("password", s.password, stdin)
	if err != nil {
		return err
	}
	code, err := readSecret("code", s.code, stdin)
	if err != nil {
		return err
	}
	if b.client.Jar, err = cookiejar.New(nil); err != nil {
		return err
	}
	next, err := b.post(ctx, "/sign-in", url.Values{"email": {s.email}, "password": {password}})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(next, "/sign-in/code") {
		return fail(exitConflict, "%s has no second factor yet: finish the set-up on the box's page first", s.email)
	}
	if _, err := b.post(ctx, "/sign-in/code", url.Values{"code": {code}}); err != nil {
		return err
	}
	if err := do(ctx); err != nil {
		// What went wrong is said; that the session lives on for a while is not worse.
		_, _ = b.post(ctx, "/sign-out", nil)
		return err
	}
	_, err = b.post(ctx, "/sign-out", nil)
	return err
}

// post sends a form; where the box leads to next says that it was taken.
func (b *box) post(ctx context.Context, path string, form url.Values) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", "https://"+b.address+path, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := b.client.Do(req)
	if err != nil {
		return "", fail(exitUnreachable, "reaching the box at %s: %w", b.address, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSeeOther {
		return "", fail(exitDenied, "the box refused the sign-in (%d): the password or the code is not right, or there were too many tries", resp.StatusCode)
	}
	return resp.Header.Get("Location"), nil
}

// shown is the part of the details that a person reads first.
type shown struct {
	Name, State, Headline, Version, URL string
	Trust                               struct{ Mechanism, Grade, Sentence string }
	Firewall                            struct{ Sentence string }
	Clock                               struct {
		Trusted bool
		Source  string
		Time    time.Time
	}
	Agents []struct{ Name string }
}

func (d shown) String() string {
	var s strings.Builder
	line := func(name, format string, a ...any) {
		fmt.Fprintf(&s, "%-10s%s\n", name, printable(fmt.Sprintf(format, a...)))
	}
	line(d.Name, "%s", d.Headline)
	line("State", "%s, version %s, %s", d.State, d.Version, d.URL)
	line("Keys", "%s (%s, grade %s)", d.Trust.Sentence, d.Trust.Mechanism, d.Trust.Grade)
	line("Firewall", "%s", d.Firewall.Sentence)
	trusted := "trusted"
	if !d.Clock.Trusted {
		trusted = "not confirmed by anyone"
	}
	line("Clock", "%s from %s, %s", d.Clock.Time.UTC().Format(time.DateTime+" MST"), d.Clock.Source, trusted)
	return s.String()
}
