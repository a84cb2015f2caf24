// Package onetime makes and checks codes that count once: time-based ones (RFC 6238) and recovery codes.
//
// TOTP is written on crypto/hmac and not taken from a module: the one that is
// usual answers yes or no, but keeping a code from being used twice needs the
// step that it was made for, and it brings image encoders along.
package onetime

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // RFC 6238's default, and the only hash every authenticator app knows; HMAC does not need collision resistance
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"

	"rsc.io/qr"
)

// Period and Digits are what authenticator apps assume.
const (
	Period     = 30 * time.Second
	Digits     = 6
	secretSize = 20
	window     = 1 // steps before and after: 30 s of clock difference each way
)

// NewSecret draws a secret of 160 bits (RFC 4226, section 4).
func NewSecret() []byte {
	b := make([]byte, secretSize)
	rand.Read(b)
	return b
}

// Step is the number of the 30 seconds that t is in.
func Step(t time.Time) int64 { return t.Unix() / int64(Period/time.Second) }

// Code is the code of one step (RFC 4226, section 5.3).
func Code(secret []byte, step int64) string {
	m := hmac.New(sha1.New, secret)
	m.Write(binary.BigEndian.AppendUint64(nil, uint64(step)))
	sum := m.Sum(nil)
	n := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&0xf:]) & 0x7fffffff
	return fmt.Sprintf("%0*d", Digits, n%1_000_000)
}

// Match returns the step that a typed code belongs to, among those around now
// that are newer than last, the newest step that was ever accepted. The caller
// stores the step before it lets anyone in: then no code works twice, also not
// after a restart or when the clock was set back.
func Match(secret []byte, typed string, now time.Time, last int64) (step int64, ok bool) {
	typed = strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, typed)
	for s := Step(now) - window; s <= Step(now)+window; s++ {
		if subtle.ConstantTimeCompare([]byte(Code(secret, s)), []byte(typed)) == 1 && s > last {
			step, ok = s, true
		}
	}
	return step, ok
}

// Manual is the secret as a person types it, in groups of four.
func Manual(secret []byte) string {
	s := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
	var groups []string
	for ; len(s) > 4; s = s[4:] {
		groups = append(groups, s[:4])
	}
	return strings.Join(append(groups, s), " ")
}

// URI is the key URI that authenticator apps read from the QR code.
func URI(secret []byte, box, email string) string {
	q := url.Values{
		"secret":    {base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)},
		"issuer":    {"Gatehouse " + box},
		"algorithm": {"SHA1"},
		"digits":    {fmt.Sprint(Digits)},
		"period":    {fmt.Sprint(int(Period / time.Second))},
	}
	// Apps show a "+" as it stands, so spaces are written as %20.
	return "otpauth://totp/" + url.PathEscape("Gatehouse "+box+":"+email) + "?" + strings.ReplaceAll(q.Encode(), "+", "%20")
}

// Image is text as a QR code, an SVG in a data: address, which the page's
// policy allows for images and which needs no second request for a secret.
func Image(text string) (string, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return "", fmt.Errorf("drawing the QR code: %w", err)
	}
	const quiet = 4 // modules of white around, ISO/IEC 18004
	var path strings.Builder
	for y := range code.Size {
		for x := 0; x < code.Size; x++ {
			start := x
			for x < code.Size && code.Black(x, y) {
				x++
			}
			if x > start {
				fmt.Fprintf(&path, "M%d %dh%dv1h-%dz", start+quiet, y+quiet, x-start, x-start)
			}
		}
	}
	size := code.Size + 2*quiet
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" shape-rendering="crispEdges"><path fill="#fff" d="M0 0h%dv%dH0z"/><path d="%s"/></svg>`, size, size, size, size, path.String())
	return "data:image/svg+xml;base64," + base64.StdEncoding.EncodeToString([]byte(svg)), nil
}
