package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"gatehouse/appliance/control"
)

// The gate asks the box's own page, and it has to be the box's.
func TestBOX4_OwnPageAnswersWithItsCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	at, err := netip.ParseAddrPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(s.Certificate().Raw)
	var shown []string
	for _, b := range sum {
		shown = append(shown, strings.ToUpper(hex.EncodeToString([]byte{b})))
	}
	fingerprint := strings.Join(shown, ":")
	if err := answers(t.Context(), at.Addr(), at.Port(), fingerprint); err != nil {
		t.Error(err)
	}
	for _, other := range []string{"", strings.Replace(fingerprint, fingerprint[:2], "00", 1), strings.Repeat("AA:", 31) + "AA"} {
		if other == fingerprint {
			continue
		}
		if err := answers(t.Context(), at.Addr(), at.Port(), other); err == nil {
			t.Errorf("answered with another certificate than %q, and taken", other)
		}
	}
	s.Close()
	if err := answers(t.Context(), at.Addr(), at.Port(), fingerprint); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("nobody is there: %v", err)
	}
}

func TestBOX4_AddressThatOthersUse(t *testing.T) {
	link := func(carrier bool, addresses ...string) control.Link {
		l := control.Link{Carrier: carrier}
		for _, a := range addresses {
			l.Addresses = append(l.Addresses, netip.MustParsePrefix(a))
		}
		return l
	}
	for _, c := range []struct {
		links []control.Link
		want  string
	}{
		{nil, ""},
		{[]control.Link{link(false, "192.0.2.1/24")}, ""},
		{[]control.Link{link(true, "fe80::1/64", "169.254.3.4/16")}, ""},
		{[]control.Link{link(true, "fe80::1/64"), link(true, "2001:db8::1/64", "192.0.2.1/24")}, "2001:db8::1"},
	} {
		a, ok := ownAddress(c.links)
		if ok != (c.want != "") || ok && a.String() != c.want {
			t.Errorf("%v: %s, %v", c.links, a, ok)
		}
	}
}
