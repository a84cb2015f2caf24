package session

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/right"
)

var update = flag.Bool("update", false, "write the vectors anew")

var (
	seed   = bytes.Repeat([]byte{7}, ed25519.SeedSize)
	signer = ed25519.NewKeyFromSeed(seed)
	public = signer.Public().(ed25519.PublicKey)
	noon   = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	gate   = Key{3}
)

func example() Grant {
	return Grant{
		ID: ID{1, 2, 3}, Site: strings.Repeat("5e", 16), Technician: "ada@example.com", Transport: TLS, Key: Key{1}, Agent: Key{2},
		Target:    Target{"Accounts server", SSH, "192.0.2.10", 22},
		Functions: right.RemoteControl | right.SendFiles | right.Record, Recording: RecordingForced, RecordTo: []byte("a public key"),
		From: noon, Until: noon.Add(time.Hour), Gateways: []Gateway{{"gate.example.com:443", gate}},
	}
}

func TestSES1_GrantsThatAreNotGiven(t *testing.T) {
	for name, spoil := range map[string]func(*Grant){
		"no id":                     func(g *Grant) { g.ID = ID{} },
		"no transport":              func(g *Grant) { g.Transport = "quic" },
		"no site":                   func(g *Grant) { g.Site = "" },
		"site in capitals":          func(g *Grant) { g.Site = strings.Repeat("5E", 16) },
		"no technician":             func(g *Grant) { g.Technician = "" },
		"technician in two lines":   func(g *Grant) { g.Technician = "ada\nroot" },
		"reversed text":             func(g *Grant) { g.Technician = "ada\u202e" },
		"long name":                 func(g *Grant) { g.Target.Name = strings.Repeat("x", 129) },
		"space at the end":          func(g *Grant) { g.Target.Name = "x " },
		"no key":                    func(g *Grant) { g.Key = Key{} },
		"no agent":                  func(g *Grant) { g.Agent = Key{} },
		"one key for both":          func(g *Grant) { g.Agent = g.Key },
		"allows nothing":            func(g *Grant) { g.Functions = 0 },
		"allows what is not known":  func(g *Grant) { g.Functions |= 1 << 20 },
		"unknown kind":              func(g *Grant) { g.Target.Kind = "gopher" },
		"no port":                   func(g *Grant) { g.Target.Port = 0 },
		"the box has no port":       func(g *Grant) { g.Target = Target{"Box", Box, "", 22} },
		"the box has no host":       func(g *Grant) { g.Target = Target{"Box", Box, "192.0.2.1", 0} },
		"no host":                   func(g *Grant) { g.Target.Host = "" },
		"loopback":                  func(g *Grant) { g.Target.Host = "127.0.0.1" },
		"loopback by name":          func(g *Grant) { g.Target.Host = "localhost" },
		"loopback by another name":  func(g *Grant) { g.Target.Host = "box.localhost" },
		"loopback in v6 clothes":    func(g *Grant) { g.Target.Host = "::ffff:127.0.0.1" },
		"v6 loopback":               func(g *Grant) { g.Target.Host = "::1" },
		"long form":                 func(g *Grant) { g.Target.Host = "2001:db8:0:0::1" },
		"unspecified":               func(g *Grant) { g.Target.Host = "0.0.0.0" },
		"this network":              func(g *Grant) { g.Target.Host = "0.1.2.3" },
		"octal":                     func(g *Grant) { g.Target.Host = "0177.0.0.1" },
		"one number":                func(g *Grant) { g.Target.Host = "2130706433" },
		"link-local":                func(g *Grant) { g.Target.Host = "169.254.169.254" },
		"zone":                      func(g *Grant) { g.Target.Host = "fe80::1%eth0" },
		"group":                     func(g *Grant) { g.Target.Host = "224.0.0.251" },
		"empty label":               func(g *Grant) { g.Target.Host = "a..b" },
		"a URL":                     func(g *Grant) { g.Target.Host = "http://a" },
		"recording without a key":   func(g *Grant) { g.RecordTo = nil },
		"a key without recording":   func(g *Grant) { g.Recording = RecordingOff },
		"a long key":                func(g *Grant) { g.RecordTo = make([]byte, maxRecordTo+1) },
		"an empty key":              func(g *Grant) { g.RecordTo = []byte{} },
		"unknown recording":         func(g *Grant) { g.Recording = "maybe" },
		"ends before it begins":     func(g *Grant) { g.Until = g.From.Add(-time.Second) },
		"a day and a second":        func(g *Grant) { g.Until = g.From.Add(MaxLife + time.Second) },
		"no gateway":                func(g *Grant) { g.Gateways = nil },
		"nine gateways":             func(g *Grant) { g.Gateways = make([]Gateway, 9) },
		"a gateway without a key":   func(g *Grant) { g.Gateways[0].Key = Key{} },
		"a gateway without a port":  func(g *Grant) { g.Gateways[0].Address = "gate.example.com" },
		"a gateway with port 0":     func(g *Grant) { g.Gateways[0].Address = "gate.example.com:0" },
		"a gateway with port 00443": func(g *Grant) { g.Gateways[0].Address = "gate.example.com:00443" },
	} {
		g := example()
		spoil(&g)
		if b, err := g.Sign(signer); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: signed, %v: %s", name, err, b)
		}
		// An organisation's key that signs nonsense gets no further at the ends.
		b, err := sign(signer, labelGrant, 1<<20, rawGrant{Version, g.ID, g.Site, g.Technician, g.Transport, g.Key, g.Agent, g.Target, g.Functions & right.AllFunctions, g.Recording, g.RecordTo, g.From.Unix(), g.Until.Unix(), g.Gateways})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := OpenGrant(public, b, noon); err == nil && name != "allows what is not known" {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestSES1_GrantIsForItsTimeAndOrganisation(t *testing.T) {
	b, err := example().Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		now  time.Time
		want error
	}{
		{noon.Add(-time.Second), ErrNotYet}, {noon, nil}, {noon.Add(time.Hour), nil}, {noon.Add(time.Hour + time.Second), ErrExpired},
	} {
		if _, err := OpenGrant(public, b, c.now); !errors.Is(err, c.want) {
			t.Errorf("at %s: %v, want %v", c.now, err, c.want)
		}
	}
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, ed25519.SeedSize)).Public().(ed25519.PublicKey)
	if _, err := OpenGrant(other, b, noon); !errors.Is(err, ErrSignature) {
		t.Errorf("another organisation's: %v", err)
	}
	if _, err := OpenGrant(nil, b, noon); err == nil {
		t.Error("opened without a key to check it")
	}
	// A grant is no ticket, though one key signs both.
	if _, err := OpenTicket(public, b, noon, gate, Key{1}); !errors.Is(err, ErrSignature) {
		t.Errorf("a grant as a ticket: %v", err)
	}
}

func TestSES1_EveryBitOfAGrantCounts(t *testing.T) {
	g := example()
	b, err := g.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		for bit := range 8 {
			if testing.Short() && bit != i%8 {
				continue
			}
			bad := bytes.Clone(b)
			bad[i] ^= 1 << bit
			if _, err := OpenGrant(public, bad, noon); err == nil {
				t.Fatalf("bit %d of byte %d changed, and it opened", bit, i)
			}
		}
	}
	for _, bad := range [][]byte{nil, b[:len(b)-1], append(bytes.Clone(b), ' '), append([]byte(" "), b...), append(bytes.Clone(b), b...), bytes.Repeat([]byte("["), MaxGrant)} {
		if _, err := OpenGrant(public, bad, noon); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
	back, err := OpenGrant(public, b, noon)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.Sign(signer)
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("read and written it is another one: %v\n%s\n%s", err, again, b)
	}
}

func TestSES1_TicketsRefused(t *testing.T) {
	ticket := example().Ticket(ID{9}, TechnicianSide, gate, noon)
	b, err := ticket.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		now           time.Time
		gateway, held Key
		want          error
	}{
		"good":               {noon, gate, Key{1}, nil},
		"the other end's":    {noon, gate, Key{2}, ErrOther},
		"nobody's":           {noon, gate, Key{}, ErrOther},
		"another gateway":    {noon, Key{4}, Key{1}, ErrOther},
		"late":               {noon.Add(MaxWait + time.Second), gate, Key{1}, ErrExpired},
		"from a slow clock":  {noon.Add(-59 * time.Second), gate, Key{1}, nil},
		"for next month's":   {noon.Add(-time.Hour), gate, Key{1}, ErrNotYet},
		"at its last moment": {noon.Add(MaxWait), gate, Key{1}, nil},
	} {
		if _, err := OpenTicket(public, b, c.now, c.gateway, c.held); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, spoil := range map[string]func(*Ticket){
		"no id": func(k *Ticket) { k.ID = ID{} }, "no key": func(k *Ticket) { k.Key = Key{} }, "no gateway": func(k *Ticket) { k.Gateway = Key{} },
		"no side": func(k *Ticket) { k.Side = "" }, "a third side": func(k *Ticket) { k.Side = "relay" }, "ends before": func(k *Ticket) { k.End = k.Until.Add(-time.Second) },
	} {
		bad := ticket
		spoil(&bad)
		if _, err := bad.Sign(signer); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := OpenTicket(public, bad, noon, gate, Key{1}); err == nil {
			t.Fatalf("byte %d changed, and it opened", i)
		}
	}
}

// The times of a ticket never reach beyond its session.
func TestSES7_TicketEndsWithItsSession(t *testing.T) {
	g := example()
	k := g.Ticket(ID{9}, AgentSide, gate, g.Until.Add(-time.Minute))
	if k.Until != g.Until || k.End != g.Until || k.Key != g.Agent {
		t.Errorf("%+v", k)
	}
	if _, err := g.Ticket(ID{9}, AgentSide, gate, g.Until.Add(time.Minute)).Sign(signer); err != nil {
		t.Error(err) // it is signed, and late everywhere
	}
}

func TestSES1_TicketCountsOnce(t *testing.T) {
	s, k := NewTickets(3), example().Ticket(ID{9}, AgentSide, gate, noon)
	if err := s.Use(k, noon); err != nil {
		t.Fatal(err)
	}
	if err := s.Use(k, noon); !errors.Is(err, ErrOther) {
		t.Errorf("twice: %v", err)
	}
	other := k
	other.Side = TechnicianSide
	if err := s.Use(other, noon); err != nil {
		t.Errorf("the other side's: %v", err)
	}
	k.ID[0]++
	if err := s.Use(k, noon); err != nil {
		t.Fatal(err)
	}
	k.ID[0]++
	if err := s.Use(k, noon); !errors.Is(err, ErrNotYet) {
		t.Errorf("full: %v", err)
	}
	if err := s.Use(k, noon.Add(MaxWait+time.Second)); err != nil {
		t.Errorf("when the others are late there is room: %v", err)
	}
}

func TestTargets(t *testing.T) {
	for _, ok := range []Target{{"Box", Box, "", 0}, {"NAS", HTTPS, "nas.lan", 5001}, {"Drucker Süd", TCP, "2001:db8::9", 9100}, {"x", RDP, "10.0.0.1", RDP.UsualPort()}} {
		if err := ok.Check(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	if Reachable(netip.Addr{}) || Reachable(netip.MustParseAddr("::ffff:10.0.0.1")) || !Reachable(netip.MustParseAddr("10.0.0.1")) {
		t.Error("Reachable is wrong")
	}
}

// vector is one of testdata/vectors.json, for other implementations.
type vector struct {
	Seed, Message, Signed string
}

func TestSES1_Vectors(t *testing.T) {
	g := example()
	grant, err := g.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := g.Ticket(ID{9}, AgentSide, gate, noon).Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]vector{}
	for name, b := range map[string][]byte{"grant": grant, "ticket": ticket} {
		var s signed
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		found[name] = vector{base64.StdEncoding.EncodeToString(seed), string(s.Message), string(b)}
	}
	const file = "testdata/vectors.json"
	if *update {
		b, err := json.MarshalIndent(found, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]vector{}
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	for name, v := range found {
		if want[name] != v {
			t.Errorf("%s: the wire has changed:\n%s\nwas\n%s", name, v.Signed, want[name].Signed)
		}
	}
}

func FuzzOpenGrant(f *testing.F) {
	b, err := example().Sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"message":"","signature":""}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		g, err := OpenGrant(public, in, noon)
		if err != nil {
			return
		}
		if again, err := g.Sign(signer); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("opened, and written it is another one: %v %q", err, in)
		}
	})
}

// FuzzGrantMessage has the organisation sign whatever it is given.
func FuzzGrantMessage(f *testing.F) {
	b, err := example().Sign(signer)
	if err != nil {
		f.Fatal(err)
	}
	var s signed
	if err := json.Unmarshal(b, &s); err != nil {
		f.Fatal(err)
	}
	f.Add(s.Message)
	f.Fuzz(func(t *testing.T, message []byte) {
		in, err := json.Marshal(signed{message, ed25519.Sign(signer, labelled(labelGrant, message))})
		if err != nil {
			t.Fatal(err)
		}
		g, err := OpenGrant(public, in, noon)
		if err != nil {
			return
		}
		if err := g.check(); err != nil {
			t.Fatalf("opened, and is refused: %v", err)
		}
		if again, err := g.Sign(signer); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("opened, and written it is another one: %v %q", err, in)
		}
	})
}
