package reach

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/session/wire"
)

const (
	maxBanner    = 16 << 10 // bytes of a target's banners that are shown
	maxTries     = 3        // of a password that is typed
	maxQuestions = 8        // that a target may ask at once
)

// auth is one sign-in at the target: with what is kept for it, or with what
// the person types, who may be asked for a second factor besides.
type auth struct {
	link          *Link
	ctx           context.Context
	ask           Asker
	extend, pause func()
	user          string
	password      string
	kept          bool // the password is the vault's, or was right before in this session
	answered      bool // it was given as an answer
	verified      bool // the target has shown the right key
	tried         bool // and was shown who wants to sign in
	typed         string
	broken        error
	banners       int
}

// prepare says with what to try, before the target hears of it.
func (a *auth) prepare() ([]ssh.AuthMethod, error) {
	m, t := a.link.cfg.Material, Describe(a.link.cfg.Target)
	a.link.mu.Lock()
	a.user, a.password = a.link.user, a.link.password
	a.link.mu.Unlock()
	if a.user == "" {
		a.user = m.User
	}
	if a.password == "" {
		a.password = m.Password
	}
	var methods []ssh.AuthMethod
	if len(m.PrivateKey) > 0 {
		key, err := ssh.ParsePrivateKey(m.PrivateKey)
		if err != nil {
			return nil, wire.Refuse(wire.Credential, "the key that is kept for %s cannot be read: it has a passphrase, or is damaged", t)
		}
		methods = append(methods, ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			a.tried = true
			return []ssh.Signer{key}, nil
		}))
	}
	a.kept = a.password != ""
	none := len(methods) == 0 && !a.kept
	if a.ask.Prompt == nil && (none || a.user == "") {
		return nil, wire.Refuse(wire.Credential, "no credential is kept for %s: open a terminal and type it, or have one kept with the target", t)
	}
	if a.user == "" {
		user, err := a.ask.Prompt(a.ctx, "login as: ", false)
		if err != nil {
			return nil, wire.Refuse(wire.Credential, "%v", err)
		}
		a.user = user
	}
	if a.kept {
		methods = append(methods, ssh.PasswordCallback(func() (string, error) { a.tried = true; return a.password, nil }))
	}
	if none {
		methods = append(methods, ssh.RetryableAuthMethod(ssh.PasswordCallback(a.typePassword), maxTries))
	}
	return append(methods, ssh.RetryableAuthMethod(ssh.KeyboardInteractive(a.questions), maxTries)), nil
}

func (a *auth) typePassword() (string, error) {
	text, err := a.wait(fmt.Sprintf("%s@%s's password: ", a.user, a.link.cfg.Target.Name), true)
	a.typed, a.tried = text, true
	return text, err
}

// wait asks the person; the target's time stands still meanwhile.
func (a *auth) wait(text string, hidden bool) (string, error) {
	if a.ask.Prompt == nil {
		return "", errors.New("the target asks more than what is kept for it answers")
	}
	a.pause()
	defer a.extend()
	answer, err := a.ask.Prompt(a.ctx, text, hidden)
	if err != nil {
		a.broken = err
	}
	return answer, err
}

// questions answers keyboard-interactive: the one question for a password with
// the one that is kept, once; all others are the person's.
func (a *auth) questions(name, instruction string, questions []string, echos []bool) ([]string, error) {
	if len(questions) > maxQuestions || len(questions) != len(echos) {
		return nil, fmt.Errorf("the target asks %d questions at once", len(questions))
	}
	a.tried = true
	if a.kept && !a.answered && len(questions) == 1 && !echos[0] {
		a.answered = true
		return []string{a.password}, nil
	}
	if a.kept && a.ask.Prompt == nil && len(questions) > 0 {
		return nil, errors.New("the target asks more than what is kept for it answers")
	}
	for _, text := range []string{name, instruction} {
		_ = a.banner(text)
	}
	answers := make([]string, len(questions))
	for i, q := range questions {
		var err error
		if answers[i], err = a.wait(wire.Printable(strings.TrimRight(q, "\r\n"), 256), !echos[i]); err != nil {
			return nil, err
		}
		if len(questions) == 1 && !echos[i] {
			a.typed = answers[i]
		}
	}
	return answers, nil
}

// banner shows what a target says before the sign-in, up to a limit and line
// by line, so that it cannot pose as one of our own questions further up.
func (a *auth) banner(text string) error {
	if a.ask.Banner == nil || text == "" || a.banners >= maxBanner {
		return nil
	}
	text = text[:min(len(text), maxBanner-a.banners)]
	a.banners += len(text)
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString(wire.Printable(strings.TrimRight(line, "\r\n"), maxBanner) + "\r\n")
	}
	a.ask.Banner(out.String())
	return nil
}

// remember keeps what was typed and right for the further connections of this
// session, in memory alone.
func (a *auth) remember() {
	if a.kept {
		a.typed = a.password
	}
	a.link.mu.Lock()
	defer a.link.mu.Unlock()
	if !a.link.closed {
		a.link.user, a.link.password = a.user, a.typed
	}
}

// judge says in words why there is no connection. The target's words are in it,
// as far as they can be shown.
func (a *auth) judge(err error, late bool) error {
	cfg := a.link.cfg
	t, text := Describe(cfg.Target), wire.Printable(err.Error(), 300)
	switch {
	case a.broken != nil:
		return wire.Refuse(wire.Credential, "%v", a.broken)
	case late:
		return wire.Refuse(wire.Unreachable, "%s is connected and does not finish SSH's handshake within %s", t, cfg.Times.Handshake)
	case a.verified && (a.tried || strings.Contains(text, "unable to authenticate")):
		refused := wire.Refuse(wire.Credential, "%s does not let %s in: %s", t, wire.Printable(a.user, 64), text)
		cfg.Failed(a.user, refused)
		a.link.mu.Lock()
		a.link.user, a.link.password = "", "" // typed anew the next time
		a.link.mu.Unlock()
		return refused
	}
	return wire.Refuse(wire.Unreachable, "%s does not speak SSH with us: %s", t, text)
}
