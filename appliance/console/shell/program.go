package shell

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"gatehouse/appliance/token"
)

// program judges the token of a program (RFC 6750, section 2.1: the header
// alone; an address or a form would be in logs). What is wrong with a token is
// not told: it would say which guess came near.
func (v *Visit) program() (bool, error) {
	refuse := func(status int, challenge, text string) (bool, error) {
		v.W.Header().Set("WWW-Authenticate", `Bearer realm="gatehouse"`+challenge)
		v.fail(status, text, "")
		return false, nil
	}
	given := v.R.Header["Authorization"]
	if len(given) == 0 {
		return refuse(http.StatusUnauthorized, "", "This is for programs with a token. An owner or administrator makes one on the page System, Tokens; send it as \"Authorization: Bearer gh_…\".")
	}
	kind, text, _ := strings.Cut(given[0], " ")
	if len(given) > 1 || !strings.EqualFold(kind, "Bearer") {
		text = "" // judged, refused and counted like any wrong one
	}
	_, err := v.Box.Tokens.Use(v.Ctx(), text, v.Route.Token, v.Origin)
	var busy *token.BusyError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &busy):
		v.W.Header().Set("Retry-After", fmt.Sprint(int(busy.Wait/time.Second)))
		v.fail(http.StatusTooManyRequests, "Too many wrong tokens came from your address. Wait a few seconds.", "")
		return false, nil
	case errors.Is(err, token.ErrNot):
		return refuse(http.StatusUnauthorized, `, error="invalid_token"`, "This token is not valid here. It may be mistyped, revoked, expired, or for something else: the page System, Tokens, lists those that are.")
	}
	return false, err
}
