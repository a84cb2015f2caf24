package hosted

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// recover runs `gatehoused recover` with what is typed.
func (b *box) recover(typed string, env ...string) (out string, err error) {
	b.Helper()
	exe, err := filepath.Abs(program)
	if err != nil {
		b.Fatal(err)
	}
	c := exec.Command(exe, "recover", "--state", b.state)
	c.Env, c.Stdin = append([]string{"PATH=/usr/bin:/bin", "GATEHOUSE_HOSTED=host"}, env...), strings.NewReader(typed+"\n")
	said, err := c.CombinedOutput()
	return string(said), err
}

// The passphrase is forgotten: the box is locked and says by which way it opens,
// only its own recovery key opens it, and from then on the new passphrase does.
func TestKEY8_HostedBoxIsRecovered(t *testing.T) {
	b := newBox(t)
	plain := b.env
	b.env = append(plain, "GATEHOUSE_KEY=the passphrase that is forgotten")
	b.start("unclaimed")
	b.claim()
	ann := b.client()
	b.signIn(ann)
	key, _ := b.makeRecovery(ann)
	b.stop()

	b.env = append(plain, "GATEHOUSE_KEY=not the passphrase that it was")
	b.start("locked")
	if _, page := b.get(b.client(), "/"); !strings.Contains(page, "gatehoused recover") || strings.Contains(page, "<form") {
		t.Errorf("the locked page does not say how it is recovered, or asks for something:\n%s", page)
	}
	if out, err := b.recover(key); err == nil || !strings.Contains(out, "in use") {
		t.Errorf("beside a serve that runs: %v, %s", err, out)
	}
	b.stop()
	for what, typed := range map[string]string{"nothing": "", "a typing error": "0" + key[1:], "too much": strings.Repeat(key, 9)} {
		if out, err := b.recover(typed, "GATEHOUSE_KEY=a passphrase of somebody"); err == nil {
			t.Errorf("%s: %s", what, out)
		}
	}
	if out, err := b.recover(key, "GATEHOUSE_KEY=short"); err == nil || !strings.Contains(out, "at least 12") {
		t.Errorf("a short passphrase: %v, %s", err, out)
	}
	if out, err := b.recover(key); err == nil || !strings.Contains(out, "set a new one") {
		t.Errorf("without a new passphrase: %v, %s", err, out)
	}
	out, err := b.recover(key, "GATEHOUSE_KEY=the passphrase from now on")
	if err != nil || !strings.Contains(out, "open again") || strings.Contains(out, key) {
		t.Fatalf("%v, %s", err, out)
	}
	b.env = append(plain, "GATEHOUSE_KEY=the passphrase from now on")
	b.start("ready")
	b.stop()
	b.env = append(plain, "GATEHOUSE_KEY=the passphrase that is forgotten")
	b.start("locked")
}
