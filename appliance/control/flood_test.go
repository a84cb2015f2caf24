package control

import (
	"context"
	"net"
	"strings"
	"testing"
)

// A role that was taken over must not push everything else out of the log.
func TestRefusalsOfOneCallerDoNotFloodTheLog(t *testing.T) {
	path, said := serve(t, me(Gateway), func(s *Server) {
		Handle(s, OpPower, func(context.Context, Role, Power) (None, error) { return None{}, nil })
	})
	c := dial(t, path)
	for range 500 {
		if _, err := OpPower.Call(t.Context(), c, Power{Action: "off"}); err == nil {
			t.Fatal("the gateway switched off")
		}
	}
	if n := strings.Count(said.String(), "\n"); n < 1 || n > 100 {
		t.Errorf("500 refusals made %d lines", n)
	}
}

// Questions are short. The privileged process must not be made to hold
// hundreds of long ones on a box of 256 MB.
func TestLongQuestionsAreNotRead(t *testing.T) {
	path, _ := serve(t, me(Gateway), status)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	question := `{"id":1,"op":"status","body":{}` + strings.Repeat(" ", maxQuestion) + "}"
	_, _ = conn.Write(frameOf(question)) // may be cut short by the other end
	if b, err := frame(conn, MaxMessage); err == nil {
		t.Errorf("it was answered: %s", b)
	}
}
