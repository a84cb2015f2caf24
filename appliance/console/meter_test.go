package console

import (
	"net/http"
	"strings"
	"testing"

	"gatehouse/appliance/console/consoletest"
)

// What a stranger asks of the password meter must not cost seconds.
func TestMeterTakesShortWordsOnly(t *testing.T) {
	b := consoletest.Start(t, Run)
	long := strings.Repeat("abc-", 15000)
	p := b.Browser().SendJSON("/api/v1/password-strength", `{"password":"`+strings.Repeat("abcdefgh", 32)+`","context":["`+long+`"]}`)
	if p.Status != http.StatusForbidden {
		t.Errorf("a context of %d bytes: %d %s", len(long), p.Status, p.Body)
	}
}
