// Package proof shows over a TLS channel that both its ends know the claim code, bound to that channel.
//
// The box shows a code of 60 bits at its console. Both ends stretch it to a
// key with Argon2id, and each sends a MAC of the channel's exporter under that
// key: first the client, then, only after a right answer, the box.
//
//	client → box   GET  salt
//	client → box   POST ClientProof(key, binding)
//	box → client        ServerProof(key, binding)
//
// A man in the middle ends two channels, whose exporters differ, so that what
// he gets on one is worth nothing on the other, whatever his certificate says.
// What he can keep of it is the material for guessing: 2^60 codes at the price
// of one Argon2id each, while the code lives until the next start of the box.
// A salt of his own choosing gains him nothing but a table of the same size.
// The proofs are not a password-authenticated key exchange and need not be:
// the code is drawn by the box, never chosen by a person.
package proof

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/sethvargo/go-diceware/diceware"
	"golang.org/x/crypto/argon2"
)

// SaltSize is the length of the salt of Derive, in bytes.
const SaltSize = 16

// Cost of Derive (RFC 9106): 32 MiB is what a box of 256 MiB can spare once,
// and four passes make up for some of the memory that it cannot.
const (
	passes = 4
	memory = 32 << 10 // KiB
	lanes  = 1
)

// exporter names the keying material of RFC 8446, 7.5: this label, an empty
// context, 32 bytes. RFC 5705 leaves EXPERIMENTAL labels to private use.
const (
	exporter       = "EXPERIMENTAL-gatehouse-claim-v1"
	exporterLength = 32
)

// The two directions have labels of their own, or a proof could be sent back
// to the end that made it.
const (
	labelClient = "gatehouse claim v1 client\x00"
	labelServer = "gatehouse claim v1 server\x00"
)

// Derive stretches a code to the key that makes and checks proofs. It takes
// 32 MiB and some tenths of a second on the smallest box.
func Derive(c Code, salt [SaltSize]byte) [32]byte {
	if c.text == "" {
		panic("proof: Derive of the zero Code")
	}
	return [32]byte(argon2.IDKey([]byte(c.text), salt[:], passes, memory, lanes, 32))
}

// Binding returns what makes this channel differ from every other: both ends
// of one TLS 1.3 connection get the same bytes, and nobody else gets them.
func Binding(cs *tls.ConnectionState) ([]byte, error) {
	if cs == nil {
		return nil, errors.New("binding to the channel: it is not TLS")
	}
	if !cs.HandshakeComplete || cs.Version != tls.VersionTLS13 {
		return nil, fmt.Errorf("binding to the channel: it is %s, TLS 1.3 is needed", tls.VersionName(cs.Version))
	}
	b, err := cs.ExportKeyingMaterial(exporter, nil, exporterLength)
	if err != nil {
		return nil, fmt.Errorf("binding to the channel: %w", err)
	}
	return b, nil
}

// ClientProof is what the person's end sends, HMAC-SHA-256 of the binding.
func ClientProof(key [32]byte, binding []byte) [32]byte { return mac(key, labelClient, binding) }

// ServerProof is what the box answers once VerifyClient was satisfied.
func ServerProof(key [32]byte, binding []byte) [32]byte { return mac(key, labelServer, binding) }

// VerifyClient checks a ClientProof in constant time.
func VerifyClient(key [32]byte, binding, proof []byte) bool {
	return verify(ClientProof(key, binding), binding, proof)
}

// VerifyServer checks a ServerProof in constant time.
func VerifyServer(key [32]byte, binding, proof []byte) bool {
	return verify(ServerProof(key, binding), binding, proof)
}

// verify refuses a binding of another length: a forgotten one would let any
// channel through.
func verify(want [32]byte, binding, proof []byte) bool {
	return len(binding) == exporterLength && hmac.Equal(want[:], proof)
}

func mac(key [32]byte, label string, binding []byte) [32]byte {
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(label))
	h.Write(binding)
	return [32]byte(h.Sum(nil))
}

// Words names a public key, by the SHA-256 of its SubjectPublicKeyInfo, with
// six words of the EFF's large list. The hash is read as one number and
// written in base 7776; six digits of it are 77 bits, and since the number has
// 256, no word is likelier than another by more than one part in 2^178.
func Words(spki [32]byte) string {
	list := diceware.WordListEffLarge()
	base, digit := big.NewInt(7776), new(big.Int)
	n := new(big.Int).SetBytes(spki[:])
	words := make([]string, 6)
	for i := range words {
		n.DivMod(n, base, digit)
		words[i] = list.WordAt(dice(int(digit.Int64())))
	}
	return strings.Join(words, " ")
}

// dice writes a number below 6^5 as the five rolls by which the list is
// ordered: 0 is 11111, 7775 is 66666.
func dice(n int) int {
	rolls := 0
	for place := 1; place <= 10000; place *= 10 {
		rolls += (n%6 + 1) * place
		n /= 6
	}
	return rolls
}
