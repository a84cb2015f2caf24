package intake

import (
	"bytes"
	"strings"
	"testing"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
)

// What is known to be too short is not offered: that alone empties a slot.
func TestBOX4_ShortBundlesAreNotOffered(t *testing.T) {
	p := newPlace(t, nil)
	var whole bytes.Buffer
	if err := firmware.WriteBundle(&whole, p.manifest, bytes.NewReader(p.system)); err != nil {
		t.Fatal(err)
	}
	by, n := control.By{Actor: "ada@example.org"}, int64(whole.Len())
	for _, most := range []int64{1, n - size, n - 1} {
		_, err := p.intake.Bundle(t.Context(), by, false, Source{Reader: bytes.NewReader(whole.Bytes()), Most: most})
		if err == nil || !strings.Contains(err.Error(), "was not copied as a whole") || len(p.begun) > 0 {
			t.Errorf("%d bytes of %d: %v, offered %d times", most, n, err, len(p.begun))
		}
	}
	// Nobody said how long it is, or the privileged process has to say what is wrong.
	if _, err := p.intake.Bundle(t.Context(), by, false, Source{Reader: bytes.NewReader(whole.Bytes()[:n-1]), Most: -1}); err == nil || len(p.begun) != 1 {
		t.Errorf("of no length: %v, offered %d times", err, len(p.begun))
	}
	var strange bytes.Buffer
	if err := firmware.WriteBundle(&strange, []byte("what is this\n"), strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	p.refuses = invalid("no manifest")
	if _, err := p.intake.Bundle(t.Context(), by, false, Source{Reader: &strange, Most: 1}); err != p.refuses {
		t.Errorf("no manifest: %v", err)
	}
	p.refuses = nil
	if at, err := p.intake.Bundle(t.Context(), by, false, Source{Reader: bytes.NewReader(whole.Bytes()), Most: n}); err != nil || at.Offset != size {
		t.Errorf("the whole: %+v, %v", at, err)
	}
}
