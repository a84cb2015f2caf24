package enroll

import (
	"crypto/hmac"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Scheme begins the Authorization header of a signed request.
const Scheme = "Gatehouse-HMAC-SHA512"

const labelRequest = "gatehouse/site/1 request"

// Request is what a signature covers.
type Request struct {
	Method  string
	Path    string // as sent, with the query if there is one
	Body    []byte
	Channel Channel // of the connection it is sent on
}

// Authorize returns the value of the request's Authorization header:
// scheme, id, time in seconds, nonce and MAC in hex, one space between each.
func (k Keys) Authorize(r Request, now time.Time, n Nonce) string {
	t := now.Unix()
	return fmt.Sprintf("%s %s %d %x %x", Scheme, k.ID, t, n[:], k.request(r, t, n))
}

func (k Keys) request(r Request, unix int64, n Nonce) []byte {
	body := sha512.Sum512(r.Body)
	return authenticate(k.Request[:], labelRequest, []byte(r.Method), []byte(r.Path), body[:],
		[]byte(strconv.FormatInt(unix, 10)), n[:], r.Channel[:])
}

// Authorization is a parsed header that is not checked yet.
type Authorization struct {
	ID    ID
	Time  time.Time
	nonce Nonce
	mac   []byte
}

// ParseAuthorization reads a header, in the one form that Authorize writes.
func ParseAuthorization(s string) (Authorization, error) {
	var a Authorization
	bad := fmt.Errorf("%w: the Authorization header is not %s with id, time, nonce and MAC", ErrMalformed, Scheme)
	if len(s) > 512 {
		return a, bad
	}
	f := strings.Split(s, " ")
	if len(f) != 5 || f[0] != Scheme || a.ID.UnmarshalText([]byte(f[1])) != nil {
		return a, bad
	}
	t, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || strconv.FormatInt(t, 10) != f[2] {
		return a, bad
	}
	n, err := hex.DecodeString(f[3])
	if err != nil || len(n) != nonceSize || hex.EncodeToString(n) != f[3] {
		return a, bad
	}
	if a.mac, err = hex.DecodeString(f[4]); err != nil || len(a.mac) != sha512.Size || hex.EncodeToString(a.mac) != f[4] {
		return a, bad
	}
	copy(a.nonce[:], n)
	a.Time = time.Unix(t, 0).UTC()
	return a, nil
}

// Verify checks MAC, clock and nonce of a request, in this order.
func (k Keys) Verify(a Authorization, r Request, now time.Time, seen *Replay) error {
	if a.ID != k.ID || !hmac.Equal(a.mac, k.request(r, a.Time.Unix(), a.nonce)) {
		return ErrMAC
	}
	return seen.Check(k.ID, a.nonce, a.Time, now)
}
