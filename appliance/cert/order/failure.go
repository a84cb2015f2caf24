package order

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
)

// Failure is an order that did not work, in words, with what to do about it.
type Failure struct {
	Doing string
	Text  string
	// Unreached: the server looked at Name and nobody answered; that is what a
	// list, a router or a wrong DNS entry does.
	Unreached bool
	Name      string
	// Wait is how long the server wants to be left alone.
	Wait time.Duration
}

func (f *Failure) Error() string { return f.Doing + ": " + f.Text }

// maxText bounds what the server's own words take on the page and in the log.
const maxText = 300

// say makes a server's words fit for a page and a terminal.
func say(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// explain turns what the library says into a Failure.
func (c Config) explain(doing string, err error) error {
	f := &Failure{Doing: doing, Text: say(err.Error())}
	var (
		authorization *acme.AuthorizationError
		problem       *acme.Error
		order         *acme.OrderError
		unknown       x509.UnknownAuthorityError
		invalid       x509.CertificateInvalidError
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		f.Text = "the ACME server did not finish in time"
	case errors.Is(err, errTooMuch), errors.Is(err, errElsewhere):
		f.Text = "the ACME server at " + c.Directory + " does not answer as one does: " + say(unwrapped(err))
	case errors.As(err, &unknown):
		f.Text = "no authority that is known vouches for " + c.Directory + ": give the certificate of its authority as PEM"
	case errors.As(err, &invalid):
		f.Text = "the certificate of " + c.Directory + " is not good here, which a wrong clock can cause, too: " + say(invalid.Error())
	case errors.As(err, &authorization):
		f.Name = authorization.Identifier
		f.Text = "it was refused"
		for _, e := range authorization.Errors {
			if errors.As(e, &problem) {
				f.problem(problem)
			}
		}
	case errors.As(err, &order) && order.Problem != nil:
		f.problem(order.Problem)
	case errors.As(err, &problem):
		f.problem(problem)
	}
	if d, limited := acme.RateLimit(err); limited {
		f.Wait = d
	}
	return f
}

func unwrapped(err error) string {
	if errors.Is(err, errTooMuch) {
		return errTooMuch.Error()
	}
	return errElsewhere.Error()
}

func (f *Failure) problem(p *acme.Error) {
	kind := strings.TrimPrefix(p.ProblemType, "urn:ietf:params:acme:error:")
	f.Text = say(fmt.Sprintf("the ACME server says: %s (%s)", p.Detail, kind))
	f.Unreached = kind == "connection" || kind == "tls" && strings.Contains(p.Detail, "timeout")
	if d, limited := acme.RateLimit(p); limited {
		f.Wait = d
	}
}
