package console

import (
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
	"gatehouse/appliance/control"
	"gatehouse/appliance/keytext"
)

var groupIn = regexp.MustCompile(`<span>([0-9A-Z]{7})</span>`)

// groups are those of the recovery key that a page shows, if it does.
func groups(p consoletest.Page) (found []string) {
	for _, m := range groupIn.FindAllStringSubmatch(p.Body, -1) {
		found = append(found, m[1])
	}
	return found
}

func lastGroup(t *testing.T, p consoletest.Page) string {
	t.Helper()
	g := groups(p)
	if len(g) != 8 {
		t.Fatalf("the page shows no recovery key: %d %s\n%s", p.Status, p.Path, p.Body)
	}
	return g[7]
}

// TestKEY8_RecoveryKeyIsShownOnce makes one on the page: in the one answer, and
// nowhere after it.
func TestKEY8_RecoveryKeyIsShownOnce(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := br.Send("/keys/recovery/confirm", "typed", "0000000"); p.Status != 422 {
		t.Errorf("confirming what was never made: %d", p.Status)
	}
	if p := br.Open("/"); !strings.Contains(p.Body, "Make the recovery key of the box") || strings.Contains(p.Body, "Dismiss: Make the recovery key") {
		t.Error("Status does not ask for a recovery key, or lets the question be dismissed")
	}
	p := br.Send("/keys/recovery")
	key := groups(p)
	last := lastGroup(t, p)
	if c := p.Header.Get("Cache-Control"); c != "no-store" {
		t.Errorf("the page with the key may be cached: %q", c)
	}
	if _, err := consoletest.RecoveryKind.Parse(strings.Join(key, "-")); err != nil {
		t.Errorf("what the page shows is not the key: %v", err)
	}
	if !strings.Contains(p.Body, `download="`+consoletest.Name+`-recovery-key.txt"`) || !strings.Contains(p.Body, strings.Join(key, "-")) {
		t.Error("the page offers no file with the key")
	}
	for name, typed := range map[string]string{"nothing": "", "spaces": "  ", "another group": key[0], "a part": last[1:], "too long": strings.Repeat("A", 300), "markup": "<script>"} {
		p := br.Send("/keys/recovery/confirm", "typed", typed)
		if p.Status != 422 || !strings.Contains(p.Body, `role="alert"`) {
			t.Errorf("%s: %d", name, p.Status)
		}
		if len(groups(p)) > 0 || strings.Contains(p.Body, last) {
			t.Errorf("%s: the key is shown again", name)
		}
	}
	for _, path := range []string{"/keys", "/keys/recovery", "/keys/recovery/confirm", "/welcome/recovery", "/api/v1/keys", "/", "/audit"} {
		if p := br.Open(path); strings.Contains(p.Body, last) || strings.Contains(p.Body, key[3]) {
			t.Errorf("%s shows the key", path)
		}
	}
	if p := br.Open("/"); !strings.Contains(p.Body, "Show that you keep the new recovery key") {
		t.Error("Status does not say that the key is not confirmed")
	}
	if p := br.Send("/keys/recovery/confirm", "typed", " "+strings.ToLower(last)); p.Path != "/keys" || !strings.Contains(p.Body, "The recovery key is confirmed") {
		t.Errorf("the last group led to %d %s", p.Status, p.Path)
	}
	if p := br.Open("/"); strings.Contains(p.Body, "recovery key of the box") || strings.Contains(p.Body, "new recovery key") {
		t.Error("Status still asks")
	}
	// Another one: the first counts until it is confirmed.
	next := lastGroup(t, br.Send("/keys/recovery"))
	if p := br.Send("/keys/recovery/confirm", "typed", last); p.Status != 422 || !strings.Contains(p.Body, `name="typed"`) || !strings.Contains(p.Body, "The one of before counts until then") {
		t.Errorf("the group of the key before: %d", p.Status)
	}
	if p := br.Open("/keys"); !strings.Contains(p.Body, "takes its place once it is confirmed") {
		t.Error("the page does not say that a new one waits")
	}
	if p := br.Send("/keys/recovery/confirm", "typed", next); p.Path != "/keys" || strings.Contains(p.Body, "once it is confirmed") {
		t.Errorf("the new one's group led to %d %s", p.Status, p.Path)
	}
	if b.Restart(); strings.Contains(b.Log.String(), last) {
		t.Error("the log holds the key")
	}
	for _, e := range b.Events() {
		if doc, err := json.Marshal(e); err != nil || strings.Contains(string(doc), last) {
			t.Errorf("%v: the audit log holds the key: %s", err, doc)
		}
	}
}

// TestKEY8_SetUpShowsTheRecoveryKey goes on with "later", and comes back to it.
func TestKEY8_SetUpShowsTheRecoveryKey(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	p := br.Open("/welcome/recovery")
	if p.Path != "/welcome/recovery" || !strings.Contains(p.Body, `href="/welcome/place">Later`) {
		t.Fatalf("%d %s: it cannot be put off", p.Status, p.Path)
	}
	br.Send("/welcome/recovery")
	if p := br.Open("/welcome/recovery"); !strings.Contains(p.Body, "A key waits to be confirmed") {
		t.Error("coming back does not show that one waits")
	}
	if p := br.Send("/welcome/recovery/confirm", "typed", lastGroup(t, br.Send("/welcome/recovery"))); p.Path != "/welcome/place" {
		t.Errorf("the last group led to %d %s", p.Status, p.Path)
	}
	if p := br.Open("/welcome/recovery"); p.Path != "/welcome/place" {
		t.Errorf("a screen that is done is shown again: %s", p.Path)
	}
	b.SetKeys(control.Keys{}) // a form without keys of its own
	if p := br.Open("/welcome/recovery"); p.Path != "/welcome/place" {
		t.Errorf("a key is offered where none can be made: %s", p.Path)
	}
	if p := br.Open("/keys"); p.Status != 200 || !strings.Contains(p.Body, "None that could be changed") {
		t.Errorf("%d: no empty state", p.Status)
	}
}

func TestKEY5_RotationOnThePage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	for _, what := range []string{"", "everything", "host-id", "recovery"} {
		if p := br.Send("/keys/rotate", "what", what); p.Status != 422 {
			t.Errorf("%q: %d %s", what, p.Status, p.Path)
		}
	}
	before := b.Events()
	b.FailKeys(errors.New("the TPM does not answer"))
	if p := br.Send("/keys/rotate", "what", "tpm"); p.Status != 422 || !strings.Contains(p.Body, "The TPM does not answer.") {
		t.Errorf("a failure: %d", p.Status)
	}
	b.FailKeys(nil)
	if p := br.Open("/keys/rotate?what=tpm"); strings.Count(p.Body, `name="what"`) != 2 || !strings.Contains(p.Body, `value="tpm" required checked`) {
		t.Error("what can be made anew is not offered, or not chosen already")
	}
	for _, what := range []string{"tpm", "data"} {
		if p := br.Send("/keys/rotate", "what", what); p.Path != "/keys" || !strings.Contains(p.Body, "The key was made anew") {
			t.Errorf("%s: %d %s", what, p.Status, p.Path)
		}
	}
	if got := b.KeysAsked(); !slices.Equal(got[len(got)-2:], []string{"key rotated:tpm", "key rotated:data"}) {
		t.Errorf("%v", got)
	}
	if e := b.Events()[0].Event; len(b.Events()) != len(before)+3 || e.Actor != "ada@example.org" || e.From != "127.0.0.1" {
		t.Errorf("the asker is not told: %+v", e)
	}
}

func TestKEY5_PassphraseOfTheStart(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	const good = "amber canyon violin drift"
	if p := br.Open("/keys"); !strings.Contains(p.Body, `href="/keys/passphrase"`) {
		t.Error("a box does not offer to ask for a passphrase")
	}
	if p := br.Open("/keys/passphrase"); strings.Contains(p.Body, "GATEHOUSE_KEY") || !strings.Contains(p.Body, "gatehouse unlock") {
		t.Error("a box of ours does not say how its passphrase is given")
	}
	b.Host()
	if p := br.Open("/keys/passphrase"); !strings.Contains(p.Body, "GATEHOUSE_KEY") {
		t.Error("a service does not say how its passphrase is given")
	}
	set := func(text, again string) consoletest.Page {
		return br.Send("/keys/passphrase", "password", text, "again", again)
	}
	if p := set(good, good); p.Status != 422 || !strings.Contains(p.Body, "Make the recovery key first") {
		t.Errorf("without a recovery key: %d", p.Status)
	}
	br.Send("/keys/recovery/confirm", "typed", lastGroup(t, br.Send("/keys/recovery")))
	for name, c := range map[string][2]string{
		"empty": {"", ""}, "not the same": {good, good + "s"}, "short": {"xq7 vw3 zz", "xq7 vw3 zz"}, "a space at the end": {good + " ", good + " "}, "longer than a line": {strings.Repeat(good, 9), strings.Repeat(good, 9)}, "weak": {"passwordpassword", "passwordpassword"},
		"no key for it": {"amber cañon violin drift", "amber cañon violin drift"}, "a line end": {good + "\n", good + "\n"}, "endless": {strings.Repeat("amber canyon ", 100), strings.Repeat("amber canyon ", 100)},
	} {
		if p := set(c[0], c[1]); p.Status != 422 || !strings.Contains(p.Body, `role="alert"`) || c[0] != "" && strings.Contains(p.Body, c[0]) {
			t.Errorf("%s: %d %s", name, p.Status, p.Path)
		}
	}
	if b.Passphrase() != "" {
		t.Fatalf("one was set: %q", b.Passphrase())
	}
	if p := set(good, good); p.Path != "/keys" || b.Passphrase() != good || !strings.Contains(p.Body, "Asked for") {
		t.Errorf("%d %s, %q", p.Status, p.Path, b.Passphrase())
	}
	if p := br.Send("/keys/passphrase", "action", "remove"); p.Path != "/keys" || b.Passphrase() != "" || !strings.Contains(p.Body, "Not asked for") {
		t.Errorf("%d %s, %q", p.Status, p.Path, b.Passphrase())
	}
}

func TestKEY3_PageNamesTheKeysInTheTPM(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	k := consoletest.Guarded(time.Now())
	p := br.Open("/keys")
	for _, want := range []string{k.TPM.EK, k.TPM.AK, k.TPM.Keys[0].Fingerprint, k.TPM.Keys[1].Fingerprint, "never leaves this TPM"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	k.TPM.AK, k.TPM.Keys = "", nil
	b.SetKeys(k)
	if p := br.Open("/keys"); strings.Contains(p.Body, "never leaves this TPM") || strings.Contains(p.Body, "Attestation key") {
		t.Error("the page says of keys that nobody vouched for that they are in the TPM")
	}
}

func TestKEY12_PageNamesTheRegisterThatChanged(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := br.Open("/keys"); strings.Contains(p.Body, "</svg> changed") || strings.Count(p.Body, "as sealed") != 2 || !strings.Contains(p.Body, "approved by the release") || strings.Contains(p.Body, "broken</span>") {
		t.Errorf("nothing changed, and the page says otherwise:\n%s", p.Body)
	}
	k := consoletest.Guarded(time.Now())
	k.Registers[0].Value, k.Behind = strings.Repeat("ab", 32), "the audit log ends at 90, the TPM remembers 112"
	k.Rungs[0] = control.Rung{Name: "firmware", State: control.RungBroken, Sentence: "<b>the signature list</b> changed"}
	k.TPM.Maker = "<img src=x>\u202e"
	b.SetKeys(k)
	p := br.Open("/keys")
	for _, want := range []string{"PCR 7", "Secure Boot: state and keys", k.Registers[0].Value, k.Registers[0].Sealed, "</svg> changed", "older than the TPM remembers", "The audit log ends at 90", "broken</span>", "&lt;b&gt;"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if strings.Contains(p.Body, "<img src") || strings.Contains(p.Body, "\u202e") {
		t.Error("what the TPM calls itself is not made harmless")
	}
}

// TestKEY12_LockedPageSaysWhatBroke, to anybody, and asks for nothing.
func TestKEY12_LockedPageSaysWhatBroke(t *testing.T) {
	b := consoletest.Start(t, Run)
	k := consoletest.Guarded(time.Now())
	k.Registers[0].Value, k.Recovery = strings.Repeat("77c0", 16), "confirmed"
	k.Rungs[0].State, k.Rungs[3].State, k.Rungs[4].State = control.RungBroken, control.RungUnchecked, control.RungUnchecked
	k.Slots = append(k.Slots, control.KeySlot{Kind: "recovery", Made: time.Now(), Confirmed: true})
	b.SetKeys(k)
	b.Stop()
	b.Lock(true)
	b.Boot()
	lockedPage(t, b, "PCR 7")
	p := b.Browser().Open("/")
	for _, want := range []string{"What broke: the firmware", "Secure Boot: state and keys", k.Registers[0].Value, k.Registers[0].Sealed, "the recovery key", "own screen and keyboard", "Erase and start anew", "broken</span>"} {
		if !strings.Contains(p.Body, want) {
			t.Errorf("the page does not say %q:\n%s", want, p.Body)
		}
	}
	for _, private := range []string{k.TPM.EK, k.TPM.AK, k.TPM.Keys[1].Fingerprint, k.TPM.Maker + "<", k.Registers[1].Sealed, "<form", "<input", "<button", "<textarea"} {
		if strings.Contains(p.Body, private) {
			t.Errorf("the page has %q", private)
		}
	}
	k.Recovery, k.Slots = "none", k.Slots[:1]
	b.SetKeys(k)
	if p := b.Browser().Open("/"); !strings.Contains(p.Body, "None was ever made") {
		t.Error("the page offers a recovery key that was never made")
	}
	// Locked, PID 1 may know of no slots, and nothing follows from that.
	k.Slots = nil
	b.SetKeys(k)
	if p := b.Browser().Open("/"); !strings.Contains(p.Body, "If one was made") {
		t.Error("the page says that no recovery key was made, and cannot know")
	}
	k.Slots = []control.KeySlot{{Kind: "passphrase"}}
	b.SetKeys(k)
	if p := b.Browser().Open("/"); !strings.Contains(p.Body, "Open it with the passphrase.") {
		t.Error("the page does not say that a passphrase opens the box")
	}
	for _, path := range []string{"/keys", "/api/v1/keys", "/keys/recovery", "/welcome/recovery"} {
		if p := b.Browser().Open(path); p.Status != 404 {
			t.Errorf("%s in a locked box: %d", path, p.Status)
		}
	}
}

func TestBOX5_SecureBootIsAskedForOnThePage(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := br.Open("/keys/secure-boot"); !strings.Contains(p.Body, "What changes") || len(b.KeysAsked()) != 0 {
		t.Errorf("%d, %v", p.Status, b.KeysAsked())
	}
	if p := br.Send("/keys/secure-boot"); p.Path != "/system/restart" || !strings.Contains(p.Body, "Restart now") || len(b.Powered()) != 0 {
		t.Errorf("enrolling led to %d %s", p.Status, p.Path)
	}
	if p := br.Send("/keys/secure-boot"); p.Status != 422 || strings.Contains(p.Body, "<button class=\"primary\">Write") {
		t.Errorf("a second time: %d", p.Status)
	}
	if p := br.Send("/keys/tpm"); p.Status != 422 {
		t.Errorf("taking a TPM that is not offered: %d", p.Status)
	}
	k := consoletest.Guarded(time.Now())
	k.Slots[0].Kind, k.Offered = "host-id", "a TPM of IBM that was not there when the keys were made"
	b.SetKeys(k)
	if p := br.Open("/keys"); !strings.Contains(p.Body, "A TPM of IBM that was not there") {
		t.Error("the TPM is not offered")
	}
	if p := br.Send("/keys/tpm"); p.Path != "/keys" || !strings.Contains(p.Body, "The keys are sealed to the TPM") {
		t.Errorf("taking it led to %d %s", p.Status, p.Path)
	}
}

func TestKEY3_KeysByAPI(t *testing.T) {
	b, br := consoletest.Owned(t, Run)
	if p := b.Browser().Open("/api/v1/keys"); p.Status != 401 {
		t.Errorf("without a session: %d", p.Status)
	}
	ask := func(path, document string, into any) int {
		t.Helper()
		p := br.SendJSON("/api/v1/keys"+path, document)
		if into != nil && p.Status < 300 {
			if err := json.Unmarshal([]byte(p.Body), into); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
		}
		return p.Status
	}
	for path, document := range map[string]string{
		"/rotate": `{"what":"everything"}`, "/rotate ": `{"what":"tpm","who":1}`, "/passphrase": `{"passphrase":"short"}`, "/recovery": `[]`,
		"/recovery/confirm": `{"text":""}`, "/tpm": `{}`, "/passphrase ": `{"passphrase":"amber canyon violin drift"}`,
	} {
		if status := ask(strings.TrimSpace(path), document, nil); status != 403 {
			t.Errorf("%s %s: %d", path, document, status)
		}
	}
	var made control.RecoveryKey
	if status := ask("/recovery", `{}`, &made); status != 201 || len(made.Text) != 8*keytext.Group+7 {
		t.Fatalf("making a recovery key: %d %q", status, made.Text)
	}
	var k control.Keys
	if status := ask("/recovery/confirm", `{"text":"`+made.Text[len(made.Text)-keytext.Group:]+`"}`, &k); status != 200 || k.Recovery != "confirmed" {
		t.Errorf("confirming it: %d %q", status, k.Recovery)
	}
	if status := ask("/passphrase", `{"passphrase":"amber canyon violin drift"}`, &k); status != 200 || b.Passphrase() == "" || len(k.Slots) != 3 {
		t.Errorf("the passphrase: %d %v", status, k.Slots)
	}
	if status := ask("/passphrase", `{"passphrase":""}`, &k); status != 200 || b.Passphrase() != "" {
		t.Errorf("removing it: %d", status)
	}
	generation := k.Generation
	if status := ask("/rotate", `{"what":"data"}`, &k); status != 200 || k.Generation != generation+1 {
		t.Errorf("rotating: %d", status)
	}
	if status := ask("/secure-boot", `{}`, &k); status != 200 || k.SecureBoot.CanEnrol {
		t.Errorf("Secure Boot: %d", status)
	}
	p := br.Open("/api/v1/keys")
	if strings.Contains(p.Body, made.Text) || json.Unmarshal([]byte(p.Body), &k) != nil || k.Trust.Grade != "B" || len(k.Rungs) != 5 {
		t.Errorf("%s", p.Body)
	}
	// The same grade in the same words on each face.
	for _, path := range []string{"/", "/keys"} {
		if p := br.Open(path); !strings.Contains(p.Body, "Grade B") || !strings.Contains(p.Body, k.Trust.Sentence) || !strings.Contains(p.Body, k.Trust.Raise) {
			t.Errorf("%s has other words of the grade", path)
		}
	}
}
