package probe

import (
	"bytes"
	"testing"
)

func TestSES3_ProbesAreByTheOtherEndAlone(t *testing.T) {
	secret, other, nonce := Secret(bytes.Repeat([]byte{1}, SecretSize)), Secret(bytes.Repeat([]byte{2}, SecretSize)), bytes.Repeat([]byte{3}, NonceSize)
	a, b := secret.Ping(nonce), secret.Pong(nonce)
	if n, ok := secret.Pinged(a); !ok || !bytes.Equal(n, nonce) {
		t.Error("a ping is not one")
	}
	if !secret.Ponged(nonce, b) {
		t.Error("a pong is not one")
	}
	if _, ok := other.Pinged(a); ok {
		t.Error("a stranger's ping counts")
	}
	if other.Ponged(nonce, b) || secret.Ponged(other[:NonceSize], b) {
		t.Error("a pong of another secret, or to another ping, counts")
	}
	for i := range a {
		for bit := range 8 {
			c := bytes.Clone(a)
			c[i] ^= 1 << bit
			if _, ok := secret.Pinged(c); ok {
				t.Errorf("a ping with bit %d of byte %d turned counts", bit, i)
			}
		}
	}
	for _, c := range [][]byte{nil, a[:len(a)-1], append(bytes.Clone(a), 0), b} {
		if _, ok := secret.Pinged(c); ok {
			t.Errorf("%d bytes count as a ping", len(c))
		}
	}
	if IsQUIC(a) || IsQUIC(b) {
		t.Error("a probe looks like QUIC")
	}
	c := secret.Call()
	if len(c) != CallSize || !secret.Called(c) || secret.Called(other.Call()) || secret.Called(c[1:]) || secret.Called(nil) {
		t.Error("a call is not known by the secret")
	}
}
