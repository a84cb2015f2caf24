// Package asker is who asks the broker, and what is said to people who are refused.
package asker

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"gatehouse/appliance/account"
	"gatehouse/appliance/control"
	"gatehouse/appliance/session"
)

// Who is a person at work, and where from.
type Who struct {
	Person account.Person
	SignIn int64      // of the person, by which this is asked
	From   string     // for the audit log
	Source netip.Addr // exact
	Host   string     // host:port by which the person reaches the gateway
	Local  netip.AddrPort
}

// Event is what the person does, for the audit log.
func (w Who) Event(action, object string, detail map[string]string) control.Event {
	return control.Event{Actor: w.Person.Email, Action: action, Object: object, From: w.From, Outcome: "ok", Detail: detail}
}

// ErrNone is in every refusal that is about something that is not there.
var ErrNone = errors.New("there is none")

// None is a refusal with ErrNone.
func None(format string, a ...any) error { return errors.Join(Refuse(format, a...), ErrNone) }

// Refuse is an error that is shown to the person in these words.
func Refuse(format string, a ...any) error { return &account.Refusal{Text: fmt.Sprintf(format, a...)} }

// Words leaves out the class of an error of package session, which is for programs.
func Words(err error) string {
	_, words, ok := strings.Cut(err.Error(), session.ErrMalformed.Error()+": ")
	if !ok {
		return err.Error()
	}
	return words
}
