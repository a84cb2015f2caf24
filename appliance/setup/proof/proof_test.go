package proof

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"gatehouse/appliance/cert/certtest"
)

var (
	testSalt = [SaltSize]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	testKey  = [32]byte{31: 1}
)

func mustParse(t testing.TB, s string) Code {
	t.Helper()
	c, err := ParseCode(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseCodeRefusals(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "this one has 0",
		"7K2M-QX9D-4TB":            "this one has 11",
		"7K2M-QX9D-4TBHX":          "this one has 13",
		"7K2M-QX9D-4TBU":           `'U' does not occur`,
		"7K2M-QX9D-4TBu":           `'U' does not occur`,
		"7K2M_QX9D_4TBH":           `'_' does not occur`,
		"7K2M-QX9D-4TBÖ":           `'Ö' does not occur`,
		"7K2M-QX9D-4TB\xff":        `does not occur`,
		"７K2M-QX9D-4TBH":           `does not occur`,
		strings.Repeat("7K2M", 50): "200 bytes",
	} {
		c, err := ParseCode(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseCode(%q) = %v, %v, want an error with %q", in, c, err, want)
		}
		if c != (Code{}) {
			t.Errorf("ParseCode(%q) gave a code beside its error", in)
		}
	}
}

func TestParseCodeAsPeopleType(t *testing.T) {
	want := mustParse(t, "7K2M-QX9D-40B1")
	for _, in := range []string{"7k2mqx9d40b1", " 7K2M QX9D 40B1\r\n", "7K2M-QX9D-4OBI", "7k2m-qx9d-4obl", "7-K-2-M-Q-X-9-D-4-0-B-L"} {
		if got, err := ParseCode(in); err != nil || got != want {
			t.Errorf("ParseCode(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
	if got := want.String(); got != "7K2M-QX9D-40B1" {
		t.Errorf("String = %q", got)
	}
}

func TestNewCode(t *testing.T) {
	if _, err := NewCode(iotest.ErrReader(errors.New("no entropy"))); err == nil {
		t.Error("a code was made without random bytes")
	}
	if _, err := NewCode(bytes.NewReader(make([]byte, 11))); err == nil {
		t.Error("a code was made of too few random bytes")
	}
	seen := make(map[rune]int)
	codes := make(map[Code]bool)
	for range 4000 {
		c, err := NewCode(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if codes[c] {
			t.Fatalf("%v was drawn twice", c)
		}
		codes[c] = true
		if back := mustParse(t, c.String()); back != c {
			t.Fatalf("%v read back as %v", c, back)
		}
		for _, r := range strings.ReplaceAll(c.String(), "-", "") {
			seen[r]++
		}
	}
	// 1,500 expected of each of 32, standard deviation 38.
	if len(seen) != 32 {
		t.Errorf("%d different symbols, want 32", len(seen))
	}
	for r, n := range seen {
		if n < 1250 || n > 1750 {
			t.Errorf("symbol %c came %d times, want about 1500", r, n)
		}
	}
}

func TestCodeStaysOutOfLogs(t *testing.T) {
	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("made", "code", mustParse(t, "7K2M-QX9D-4TBH"))
	if strings.Contains(b.String(), "7K2M") {
		t.Errorf("the log holds the code: %s", b.String())
	}
}

func TestDeriveRefusesTheZeroCode(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Derive of the zero Code gave a key")
		}
	}()
	Derive(Code{}, testSalt)
}

// The values were computed with libargon2 20171227 and, for the MACs,
// Python's hmac, from the description in the package comment.
func TestVectors(t *testing.T) {
	key := Derive(mustParse(t, "7K2M-QX9D-4TBH"), testSalt)
	binding := bytes.Repeat([]byte{0xb1}, 32)
	client, server := ClientProof(key, binding), ServerProof(key, binding)
	for name, v := range map[string]struct{ got, want string }{
		"key":    {hex.EncodeToString(key[:]), "5364c32e5931a8a30ef437ee6d13460f27a0a23b141eee8a2232356613566dfa"},
		"client": {hex.EncodeToString(client[:]), "6aea6b239c8cbcc873012d784bdd1a26bdc0e4744ed5555f952c9d6ca1d92f34"},
		"server": {hex.EncodeToString(server[:]), "bee28a9f9aa377c3732fc3428b3bec57d04af96251ad178277a88634bb1ad58a"},
	} {
		if v.got != v.want {
			t.Errorf("%s = %s, want %s", name, v.got, v.want)
		}
	}
	other := testSalt
	other[0] ^= 1
	if Derive(mustParse(t, "7K2M-QX9D-4TBH"), other) == key {
		t.Error("the salt does not matter")
	}
}

func TestACC1_VerifyRefusals(t *testing.T) {
	binding := bytes.Repeat([]byte{7}, 32)
	client, server := ClientProof(testKey, binding), ServerProof(testKey, binding)
	if !VerifyClient(testKey, binding, client[:]) || !VerifyServer(testKey, binding, server[:]) {
		t.Fatal("right proofs are refused")
	}
	if VerifyServer(testKey, binding, client[:]) || VerifyClient(testKey, binding, server[:]) {
		t.Error("a proof sent back to its maker is accepted")
	}
	otherKey, otherBinding := testKey, bytes.Clone(binding)
	otherKey[0] ^= 1
	otherBinding[31] ^= 1
	if VerifyClient(otherKey, binding, client[:]) || VerifyServer(otherKey, binding, server[:]) {
		t.Error("a proof under another code is accepted")
	}
	if VerifyClient(testKey, otherBinding, client[:]) || VerifyServer(testKey, otherBinding, server[:]) {
		t.Error("a proof for another channel is accepted")
	}
	for _, bad := range [][]byte{nil, {}, client[:31], append(client[:], 0), make([]byte, 32)} {
		if VerifyClient(testKey, binding, bad) {
			t.Errorf("the proof %x is accepted", bad)
		}
	}
	for _, bad := range [][]byte{nil, {}, binding[:31]} {
		p := ClientProof(testKey, bad)
		if VerifyClient(testKey, bad, p[:]) {
			t.Errorf("a proof bound to %x is accepted", bad)
		}
	}
	for i := range client {
		bad := client
		bad[i] ^= 0x80
		if VerifyClient(testKey, binding, bad[:]) {
			t.Errorf("a proof with byte %d changed is accepted", i)
		}
	}
}

func TestBindingRefusals(t *testing.T) {
	if _, err := Binding(nil); err == nil {
		t.Error("plain HTTP was bound")
	}
	if _, err := Binding(&tls.ConnectionState{}); err == nil {
		t.Error("a connection before its handshake was bound")
	}
	cert := certtest.Self(t)
	client, server := handshake(t, cert, tls.VersionTLS12)
	if _, err := Binding(client); err == nil {
		t.Error("the client bound to TLS 1.2")
	}
	if _, err := Binding(server); err == nil {
		t.Error("the server bound to TLS 1.2")
	}
}

func TestACC1_BindingIsOfOneChannel(t *testing.T) {
	cert := certtest.Self(t)
	var seen [][]byte
	for range 3 {
		c, s := handshake(t, cert, tls.VersionTLS13)
		cb, err := Binding(c)
		if err != nil {
			t.Fatal(err)
		}
		sb, err := Binding(s)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(cb, sb) {
			t.Fatal("the two ends of one connection disagree")
		}
		for _, other := range seen {
			if bytes.Equal(cb, other) {
				t.Fatal("two connections have one binding")
			}
		}
		seen = append(seen, cb)
	}
}

// A man in the middle with a certificate of his own, and even one who holds
// the box's own key and certificate, passes every byte on; neither end accepts.
func TestACC1_ManInTheMiddleIsRefused(t *testing.T) {
	box := certtest.Self(t)
	key := Derive(mustParse(t, "7K2M-QX9D-4TBH"), testSalt)
	for name, his := range map[string]tls.Certificate{"own certificate": certtest.Self(t), "stolen key": box} {
		victim, hisServer := handshake(t, his, tls.VersionTLS13)
		_, real := handshake(t, box, tls.VersionTLS13)
		atVictim, err1 := Binding(victim)
		atHim, err2 := Binding(hisServer)
		atBox, err3 := Binding(real)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		relayed := ClientProof(key, atVictim)
		if !VerifyClient(key, atHim, relayed[:]) {
			t.Fatalf("%s: the test does not relay what it means to", name)
		}
		if VerifyClient(key, atBox, relayed[:]) {
			t.Errorf("%s: the box accepts a relayed proof", name)
		}
		boxAnswer := ServerProof(key, atBox)
		if VerifyServer(key, atVictim, boxAnswer[:]) {
			t.Errorf("%s: the person's end accepts a relayed answer", name)
		}
		if VerifyServer(key, atVictim, relayed[:]) {
			t.Errorf("%s: the person's end accepts its own proof back", name)
		}
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[[32]byte]string{
		{}:                         "abacus abacus abacus abacus abacus abacus",
		{31: 1}:                    "abdomen abacus abacus abacus abacus abacus",
		{30: 0x1e, 31: 0x5f}:       "zoom abacus abacus abacus abacus abacus", // 7775
		{30: 0x1e, 31: 0x60}:       "abacus abdomen abacus abacus abacus abacus",
		sha256.Sum256([]byte("a")): "gala karma sublet exodus recital drizzle",
	} {
		if got := Words(in); got != want {
			t.Errorf("Words(%x) = %q, want %q", in, got, want)
		}
	}
}

func TestWordsKnowEveryNumber(t *testing.T) {
	seen := make(map[string]bool)
	for n := range 7776 {
		var spki [32]byte
		spki[30], spki[31] = byte(n>>8), byte(n)
		w := strings.Fields(Words(spki))
		if len(w) != 6 {
			t.Fatalf("%d gives %q, want six words", n, w)
		}
		seen[w[0]] = true
	}
	if len(seen) != 7776 {
		t.Errorf("%d different words, want 7776", len(seen))
	}
}

func FuzzParseCode(f *testing.F) {
	f.Add("7K2M-QX9D-4TBH")
	f.Add("oil0-oil0-oil0")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCode(s)
		if err != nil {
			return
		}
		if back, err := ParseCode(c.String()); err != nil || back != c || len(c.String()) != 14 {
			t.Errorf("%q → %v → %v, %v", s, c, back, err)
		}
	})
}

// handshake makes one real connection over loopback and returns what each end sees of it.
func handshake(t *testing.T, cert tls.Certificate, version uint16) (client, server *tls.ConnectionState) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: version, MaxVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan *tls.ConnectionState, 1)
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := io.Copy(conn, conn); err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
		cs := conn.(*tls.Conn).ConnectionState()
		done <- &cs
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cs := conn.ConnectionState()
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	sv := <-done
	if sv == nil {
		t.Fatal("the server saw no connection")
	}
	return &cs, sv
}
