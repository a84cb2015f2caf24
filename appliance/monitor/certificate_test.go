package monitor

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/control"
)

func TestNET10_ChallengesAreBoundedAndEnd(t *testing.T) {
	var c certificates
	good := strings.Repeat("t", 43)
	for _, q := range []control.Challenge{
		{}, {Token: good}, {Token: "short", Text: "short.x"}, {Token: good, Text: good + "."}, {Token: good, Text: good + ".<script>"},
		{Token: good, Text: "other." + good}, {Token: good + "/", Text: good + "/.x"}, {Token: "../" + good, Text: "../" + good + ".x"},
		{Token: strings.Repeat("t", 129), Text: strings.Repeat("t", 129) + ".x"}, {Token: good, Text: good + "." + strings.Repeat("x", 300)},
	} {
		if err := c.put(q, 0); !control.IsCode(err, control.CodeInvalid) {
			t.Errorf("%+v: %v", q, err)
		}
	}
	for i := range control.MaxChallenges {
		token := fmt.Sprintf("%s%02d", good, i)
		if err := c.put(control.Challenge{Token: token, Text: token + ".x"}, int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	more := control.Challenge{Token: good + "xx", Text: good + "xx.x"}
	if err := c.put(more, 20); !control.IsCode(err, control.CodeState) {
		t.Errorf("one too many: %v", err)
	}
	if err := c.put(control.Challenge{Token: good + "00", Text: good + "00.y"}, 20); err != nil {
		t.Errorf("one again: %v", err)
	}
	if n := len(c.live(20).Challenges); n != control.MaxChallenges {
		t.Errorf("%d live", n)
	}
	if err := c.put(more, 10+int64(control.ChallengeLife)); err != nil {
		t.Errorf("after the end of others: %v", err)
	}
	if n := len(c.live(21 + int64(control.ChallengeLife)).Challenges); n != 1 {
		t.Errorf("%d outlive their time", n-1)
	}
}

func TestNET10_CertificateFilesAreHandedOn(t *testing.T) {
	m := &Monitor{}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if f := m.certificates.await(ctx, 0); f.Named || f.Version != 0 {
		t.Errorf("%+v", f)
	}
	got := make(chan control.CertificateFiles)
	go func() { got <- m.certificates.await(t.Context(), 0) }()
	m.SetCertificateFiles(control.CertificateFiles{Named: true, Chain: []byte("chain")})
	f := <-got
	if !f.Named || f.Version != 1 || string(f.Chain) != "chain" {
		t.Errorf("%+v", f)
	}
	m.SetCertificateFiles(control.CertificateFiles{Named: true, Problem: "gone"})
	if f = m.certificates.await(t.Context(), 1); f.Version != 2 || f.Problem != "gone" || f.Chain != nil {
		t.Errorf("%+v", f)
	}
}
