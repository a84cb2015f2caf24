package enroll

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectors are for those who write the other side; docs/protocol.md explains them.
type vectors struct {
	Comment       string `json:"comment"`
	APIKey        string `json:"api_key_hex"`
	Text          string `json:"api_key_text"`
	MAC           string `json:"mac_hex"`
	Request       string `json:"request_hex"`
	ID            string `json:"id"`
	Now           int64  `json:"now"`
	Exporter      string `json:"exporter_hex"`
	Enrol         string `json:"enrol"`
	Answer        string `json:"answer"`
	Method        string `json:"method"`
	Path          string `json:"path"`
	Body          string `json:"body"`
	Authorization string `json:"authorization"`
}

// TestHUB2_Vectors holds the wire fast: whoever changes a byte sees it here.
func TestHUB2_Vectors(t *testing.T) {
	key := fixedKey()
	k := keysOf(t, key)
	e := enrolSample(t)
	answer, err := k.SealAnswer(e, at.Add(time.Second), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	r := requestSample()
	v := vectors{
		Comment: "made by go test ./appliance/enroll -run Vectors -update",
		APIKey:  hex.EncodeToString(key[:]), Text: key.Text(),
		MAC: hex.EncodeToString(k.MAC[:]), Request: hex.EncodeToString(k.Request[:]), ID: k.ID.String(),
		Now: at.Unix(), Exporter: hex.EncodeToString(e.Channel[:]),
		Enrol: string(sealEnrol(t, k, e)), Answer: string(answer),
		Method: r.Method, Path: r.Path, Body: string(r.Body),
		Authorization: k.Authorize(r, at, fill(0xB1)),
	}
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the messages changed: a new version of the protocol, or a mistake.\ngot:\n%s", got)
	}
	parsed, err := ParseAPIKey(v.Text)
	if err != nil || parsed != key {
		t.Errorf("the text of the key: %v", err)
	}
}
