package hosted

import (
	"bufio"
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/control"
	"gatehouse/appliance/keytext"
	"gatehouse/appliance/secret"
	"gatehouse/appliance/vault"
)

// region is one mapping of a process's memory.
type region struct {
	from, to int64
	mode     string
	name     string
	dumped   bool // a core dump would hold it
	locked   bool // it never reaches swap
}

func (r region) String() string { return fmt.Sprintf("%x-%x %s %s", r.from, r.to, r.mode, r.name) }

// closed says that the process itself cannot read it now.
func (r region) closed() bool { return strings.HasPrefix(r.mode, "---") }

// regions lists the memory of a process.
func (b *box) regions(pid int) (all []region) {
	b.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		words := strings.Fields(lines.Text())
		var r region
		if _, err := fmt.Sscanf(words[0], "%x-%x", &r.from, &r.to); err == nil && len(words) >= 5 {
			r.mode, r.name, r.dumped = words[1], strings.Join(words[5:], " "), true
			all = append(all, r)
		} else if words[0] == "VmFlags:" {
			last := &all[len(all)-1]
			last.dumped, last.locked = !slices.Contains(words, "dd"), slices.Contains(words, "lo")
		}
	}
	return all
}

// finding is where a process holds bytes.
type finding struct {
	region
	at int64
}

// search looks for any of the bytes in all memory of a process, also where the
// process itself may not read: the kernel lets root look there.
func (b *box) search(pid int, what ...[]byte) (found []finding) {
	b.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	longest := 0
	for _, w := range what {
		longest = max(longest, len(w))
	}
	const piece = 1 << 20
	buf := make([]byte, piece+longest)
	for _, r := range b.regions(pid) {
		for at := r.from; at < r.to; at += piece {
			n, err := memory.ReadAt(buf[:min(int64(len(buf)), r.to-at)], at)
			if n == 0 && err != nil && err != io.EOF {
				continue // never touched, given back meanwhile, or the kernel's own
			}
			for _, w := range what {
				for from := 0; ; {
					i := bytes.Index(buf[from:n], w)
					if i < 0 || from+i >= piece {
						break
					}
					found = append(found, finding{r, at + int64(from+i)})
					from += i + 1
				}
			}
		}
	}
	return found
}

// halves are what is looked for of a key: one of them is enough to find it.
func halves(key []byte) [][]byte { return [][]byte{key[:len(key)/2], key[len(key)/2:]} }

// dataKey takes the data key out of the page where the supervisor keeps it, and
// proves that it is that page: the base secret in it derives what the vault derives.
func (b *box) dataKey(v *vault.Vault) (key []byte, page region) {
	b.Helper()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", b.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	want, err := v.Subkey(control.PurposeConsoleFields)
	if err != nil {
		b.Fatal(err)
	}
	id := v.InstallID()
	for _, r := range b.regions(b.cmd.Process.Pid) {
		if !r.closed() || r.dumped {
			continue
		}
		keys := make([]byte, 32+64+32) // data key, volume key, base secret
		if _, err := memory.ReadAt(keys, r.from); err != nil {
			continue
		}
		got, err := hkdf.Key(sha256.New, keys[32+64:], id[:], "gatehouse/1/role:"+control.PurposeConsoleFields, len(want))
		if err == nil && bytes.Equal(got, want[:]) {
			return keys[:32:32], r
		}
	}
	b.Fatal("the supervisor has no closed page that begins with the data key")
	return nil, region{}
}

// makeRecovery gives ann a second factor, has the page make a recovery key, and
// confirms it.
func (b *box) makeRecovery(c *http.Client) (text string, key []byte) {
	b.Helper()
	post := func(path string, form url.Values) string {
		b.Helper()
		req, err := http.NewRequest("POST", "https://127.0.0.1"+path, strings.NewReader(form.Encode()))
		if err != nil {
			b.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", "https://127.0.0.1")
		r, err := c.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Body.Close()
		page, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode >= 400 {
			b.Fatalf("%s answers %d, %v:\n%s", path, r.StatusCode, err, page)
		}
		if at := r.Header.Get("Location"); at != "" {
			return "it leads to " + at
		}
		return string(page)
	}
	_, page := b.get(c, "/welcome/factor")
	m := secretIn.FindStringSubmatch(html.UnescapeString(page))
	if m == nil {
		b.Fatalf("no second factor is offered:\n%s", page)
	}
	factor, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(m[1])
	if err != nil {
		b.Fatal(err)
	}
	post("/welcome/factor", url.Values{"code": {onetime.Code(factor, onetime.Step(time.Now()))}})
	page = post("/keys/recovery", nil)
	text = regexp.MustCompile(`[0-9A-Z]{7}(-[0-9A-Z]{7}){7}`).FindString(page)
	kind := keytext.Kind{Name: "recovery key", Label: "gatehouse/recovery/1 check "}
	raw, err := kind.Parse(text)
	if err != nil {
		b.Fatalf("the page shows no recovery key: %v\n%.3000s", err, page)
	}
	post("/keys/recovery/confirm", url.Values{"typed": {text[len(text)-7:]}})
	return text, raw[:]
}

// TestKEY7_OnlyTheSupervisorHoldsTheDataKey looks through the memory of every
// process of a box that was started with a passphrase, is claimed and in use.
func TestKEY7_OnlyTheSupervisorHoldsTheDataKey(t *testing.T) {
	const passphrase = "a passphrase that nobody else would think of: 7c1e"
	b := newBox(t)
	b.env = append(b.env, "GATEHOUSE_KEY="+passphrase)
	b.start("unclaimed")
	b.claim()
	ann := b.client()
	b.signIn(ann)
	recovery, recoveryKey := b.makeRecovery(ann)
	// What was begun is the second start: the first makes the keys, each later
	// one takes them out of the header.
	b.stop()
	b.start("ready")
	b.signIn(b.client())

	meta, err := vault.OpenFile(filepath.Join(b.state, "meta"))
	if err != nil {
		t.Fatal(err)
	}
	defer meta.Close()
	v, err := vault.Open(t.Context(), vault.Config{Meta: meta, Passphrase: []byte(passphrase), Form: vault.Host})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Wipe()
	volume, err := v.VolumeKey()
	if err != nil {
		t.Fatal(err)
	}
	data, page := b.dataKey(v)
	if !page.locked || page.to-page.from > int64(os.Getpagesize()) {
		t.Errorf("the data key's page is not locked, or more than one: %v", page)
	}
	secrets := map[string][][]byte{"data key": halves(data), "volume key": halves(volume), "passphrase": {[]byte(passphrase)},
		"recovery key": append(halves(recoveryKey), []byte(recovery))}

	processes := map[string]int{}
	for _, role := range []string{"gateway", "console", "agent"} {
		if processes[role] = b.role(role); processes[role] == 0 {
			t.Fatalf("there is no role %s", role)
		}
	}
	for role, pid := range processes {
		for name, what := range secrets {
			if found := b.search(pid, what...); len(found) > 0 {
				t.Errorf("%s holds the %s: %v", role, name, found)
			}
		}
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || bytes.Contains(env, []byte("GATEHOUSE_KEY")) {
			t.Errorf("%s has the passphrase's variable in its environment (%v): %q", role, err, env)
		}
	}
	supervisor := b.cmd.Process.Pid
	copies := func() (outside []string) {
		for name, what := range secrets {
			inPage := 0
			for _, f := range b.search(supervisor, what...) {
				if f.from == page.from {
					inPage++
				} else {
					outside = append(outside, fmt.Sprintf("%s at %x in %v", name, f.at, f.region))
				}
			}
			if want := map[string]int{"data key": 2, "volume key": 2}[name]; inPage != want {
				t.Fatalf("%d parts of the %s are in the page, want %d", inPage, name, want)
			}
		}
		return outside
	}
	if secret.Erases {
		// The garbage collector runs a second after a key was used.
		b.eventually("no copy of a key outside its page", func() bool { return len(copies()) == 0 })
	} else {
		left := copies()
		t.Logf("%d copies outside the page, which this build does not erase", len(left))
		for _, c := range left {
			if strings.HasPrefix(c, "passphrase") || strings.HasPrefix(c, "volume key") {
				t.Error("outside the page: " + c)
			}
		}
	}
	if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", supervisor)); err != nil || bytes.Contains(env, []byte(passphrase)) {
		t.Errorf("the kernel's copy of the environment holds the passphrase (%v)", errors.Join(err))
	}
}
