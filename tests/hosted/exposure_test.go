package hosted

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/account/onetime"
	"gatehouse/appliance/control"
)

func (l *lan) exposure() (e control.Exposure) {
	l.Helper()
	code, text := l.open(l.from(friend), "/api/v1/exposure")
	if err := json.Unmarshal([]byte(text), &e); code != 200 || err != nil {
		l.Fatalf("the exposure: %d %s", code, text)
	}
	return e
}

func of(e control.Exposure, counter string) uint64 {
	for _, c := range e.Counters {
		if c.Name == counter {
			return c.Packets
		}
	}
	return 0
}

func sampled(e control.Exposure) (n uint64) {
	for _, r := range e.Reasons {
		n += r.Samples
	}
	return n
}

// apply makes lists be in force for good.
func (l *lan) apply(lists ...list) {
	l.Helper()
	c := l.try(lists...)
	if code, text := l.api(l.from(friend), "/api/v1/allowlists/keep", map[string]string{"id": c.ID}, nil); code != 200 {
		l.Fatalf("keeping: %d %s", code, text)
	}
}

// TestNET6_RefusedSourceAppearsAndIsLetIn goes the whole way with the real
// kernel: refused, counted, sampled, shown with its reason, put into a list by
// the page's own links, served. A gateway that is killed loses nothing of it.
func TestNET6_RefusedSourceAppearsAndIsLetIn(t *testing.T) {
	l := newLAN(t)
	l.own()
	l.apply(office(friend))
	before := l.exposure()
	if !before.InKernel || !before.Sampling || len(before.Drops) != 0 {
		t.Fatalf("before: %+v\n%s", before, l.output())
	}
	const knocks = 5
	for range knocks { // one SYN each: the next would come after a second
		if c, err := l.dialFrom(stranger, 300*time.Millisecond); err == nil {
			c.Close()
			t.Fatal("a stranger is served")
		}
	}
	var e control.Exposure
	l.eventually("the refusals appear", func() bool {
		e = l.exposure()
		return sampled(e) >= knocks
	})
	refused := of(e, "web_refused") - of(before, "web_refused")
	if refused != knocks || sampled(e) != refused || e.Day.Refused-before.Day.Refused != refused || e.Lost != 0 || e.Damaged != 0 {
		t.Errorf("%d knocks: %d counted, %d sampled, %d in the history, %d lost, %d damaged", knocks, refused, sampled(e), e.Day.Refused, e.Lost, e.Damaged)
	}
	if len(e.Drops) != 1 {
		t.Fatalf("drops: %+v", e.Drops)
	}
	if d := e.Drops[0]; d.Source.String() != stranger || d.Port != 443 || d.Proto != "tcp" || d.Reason != "no-list" || d.Link != "lan0" || d.Samples != knocks || d.SourcePort < 1024 || time.Since(d.Last) > patience {
		t.Errorf("the drop: %+v", d)
	}
	i := slices.IndexFunc(e.Lists, func(h control.Hits) bool { return h.Name == "office" })
	if i < 0 || e.Lists[i].Day == 0 || e.Lists[i].Day > of(e, "list_office") {
		t.Errorf("hits of a day: %+v, the counter says %d", e.Lists, of(e, "list_office"))
	}

	unix.Kill(l.role("gateway"), unix.SIGKILL)
	l.eventually("the gateway is back", func() bool { return l.reaches(friend) })
	if again := l.exposure(); sampled(again) != knocks || len(again.Drops) != 1 {
		t.Errorf("after the gateway was killed: %+v", again.Drops)
	}
	if c, err := l.dialFrom(stranger, 300*time.Millisecond); err == nil {
		c.Close()
	}
	l.eventually("the new gateway reads the samples", func() bool { return sampled(l.exposure()) > knocks })

	link := "/allowlists/add?address=" + stranger
	if _, page := l.open(l.from(friend), "/"); !strings.Contains(page, link) || !strings.Contains(page, "in no list that is on") {
		t.Fatalf("the status page:\n%s", page)
	}
	if code, page := l.open(l.from(friend), link); code != 200 || !strings.Contains(page, `name="add" value="`+stranger+`"`) || !strings.Contains(page, `value="office"`) {
		t.Fatalf("the choice: %d\n%s", code, page)
	}
	if _, page := l.open(l.from(friend), "/allowlists/edit?name=office&add="+stranger); !strings.Contains(page, stranger+"  # was refused") {
		t.Fatalf("the editor:\n%s", page)
	}
	if l.reaches(stranger) {
		t.Error("looking let the stranger in")
	}
	l.apply(office(friend + "\n" + stranger + "  # was refused\n"))
	if !l.reaches(stranger) {
		t.Error("the list with the address does not let it in")
	}
	out, code := l.run("", "exposure", "--email", "ann@example.com", "--password", l.file("password", password), "--code", l.file("code", onetime.Code(l.secret, onetime.Step(time.Now()))))
	if code != 0 || !strings.Contains(out, stranger) || !strings.Contains(out, "in no list that is on") || !strings.Contains(out, "last 24 hours") {
		t.Errorf("the tool: %d\n%s", code, out)
	}
}

// flood sends SYNs of that many sources to the box's port 443.
func (l *lan) flood(packets int) {
	l.Helper()
	l.machine.Do(l.T, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}}
		p := make([]byte, 40)
		p[0], p[8], p[9] = 0x45, 64, 6
		copy(p[16:], to.Addr[:])
		binary.BigEndian.PutUint16(p[22:], 443)
		p[32], p[33] = 5<<4, 2 // SYN
		for i := range packets {
			copy(p[12:], []byte{198, 51, byte(i >> 8), byte(i)})
			binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60000))
			for {
				err := unix.Sendto(fd, p, 0, to)
				if err == unix.ENOBUFS {
					time.Sleep(time.Millisecond)
					continue
				}
				if err != nil {
					return err
				}
				break
			}
		}
		return nil
	})
}

// resident is a process's memory in bytes, and the processor time it has used.
func (l *lan) resident(pid int) (memory uint64, cpu time.Duration) {
	l.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		l.Fatal(err)
	}
	pages, err := strconv.ParseUint(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		l.Fatal(err)
	}
	if b, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil {
		l.Fatal(err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return pages * uint64(os.Getpagesize()), time.Duration(user+system) * 10 * time.Millisecond
}

// TestNET6_FloodIsCountedNotKept floods the box with refused packets of 65,536
// sources: each is counted, few are sampled, and what is kept stays the same.
func TestNET6_FloodIsCountedNotKept(t *testing.T) {
	const packets, room = 65_536, 16 << 20
	l := newLAN(t)
	l.own()
	l.apply(office(friend))
	before, start := l.exposure(), time.Now()
	gateway, supervisor := l.role("gateway"), l.cmd.Process.Pid
	memoryG, cpuG := l.resident(gateway)
	memoryS, cpuS := l.resident(supervisor)
	l.flood(packets)
	var e control.Exposure
	l.eventually("all are counted", func() bool {
		e = l.exposure()
		return of(e, "web_refused")-of(before, "web_refused") >= packets
	})
	l.eventually("the samples are told", func() bool { e = l.exposure(); return sampled(e) > 0 })
	if got := of(e, "web_refused") - of(before, "web_refused"); got != packets {
		t.Errorf("%d packets were counted, %d sent", got, packets)
	}
	if got := e.Day.Refused - before.Day.Refused; got != packets {
		t.Errorf("the history has %d of %d", got, packets)
	}
	if most := uint64(20 * (time.Since(start)/time.Second + 2)); sampled(e) > most {
		t.Errorf("%d samples, the kernel may hand out %d", sampled(e), most)
	}
	if len(e.Drops) > 100 {
		t.Errorf("%d drops are kept", len(e.Drops))
	}
	if l.role("gateway") != gateway {
		t.Errorf("the gateway did not outlive it\n%s", l.output())
	}
	nowG, spentG := l.resident(gateway)
	nowS, spentS := l.resident(supervisor)
	t.Logf("%d samples; gateway %+d kB, %v; supervisor %+d kB, %v", sampled(e), (int64(nowG)-int64(memoryG))>>10, spentG-cpuG, (int64(nowS)-int64(memoryS))>>10, spentS-cpuS)
	if nowG > memoryG+room || nowS > memoryS+room {
		t.Errorf("memory: gateway %d to %d, supervisor %d to %d", memoryG, nowG, memoryS, nowS)
	}
	if !l.reaches(friend) {
		t.Error("a friend is not served")
	}
}

// TestUSE6_MetricsFromTheConsolesListsAlone: a token is no way around the scope
// of the address that it comes from.
func TestUSE6_MetricsFromTheConsolesListsAlone(t *testing.T) {
	l := newLAN(t)
	l.own()
	step := onetime.Step(time.Now())
	tool := func(args ...string) (string, int) {
		t.Helper()
		who := []string{"--email", "ann@example.com", "--password", l.file("password", password), "--code", l.file("code", onetime.Code(l.secret, step))}
		step++ // a code is taken once, and one step early
		return l.run("", append(append([]string{"token"}, args...), who...)...)
	}
	made, code := tool("create", "metrics", "--name", "prometheus", "--days", "1")
	if made = strings.TrimSpace(made); code != 0 || !strings.HasPrefix(made, "gh_") || len(made) != 46 {
		t.Fatalf("making a token: %d %s", code, made)
	}
	scrape := func(from string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+boxAddress+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+made)
		c := l.from(from)
		c.Jar = nil
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, text := scrape(stranger); code != 200 || !strings.Contains(text, "gatehouse_allowlists_enabled 0\n") {
		t.Fatalf("without lists: %d %s", code, text)
	}
	l.apply(office(friend), list{"branches", true, []string{"sites"}, stranger})
	if code, text := scrape(stranger); code != 403 || strings.Contains(text, "gatehouse_info") {
		t.Errorf("from a list for sites: %d %s", code, text)
	}
	var text string
	code, text = scrape(friend)
	for _, want := range []string{`gatehouse_list_packets_total{list="branches"} `, `gatehouse_list_ranges{list="office"} 1`, `gatehouse_firewall_packets_total{counter="web_refused",class="refused"} `,
		`gatehouse_role_running{role="gateway"} 1`, "gatehouse_allowlists_enabled 1\n", "gatehouse_firewall_in_kernel 1\n", "gatehouse_certificate_expiry_time_seconds ", `gatehouse_refused_samples_total{reason="no-list"} 0`} {
		if code != 200 || !strings.Contains(text, want) {
			t.Errorf("from a list for the console: %d, no %s in\n%s", code, want, text)
		}
	}
	if _, page := l.open(l.from(friend), "/system/tokens"); !strings.Contains(page, friend) {
		t.Errorf("the last use is not listed:\n%s", page)
	}
	if out, code := tool("revoke", "prometheus"); code != 0 || !strings.Contains(out, "Revoked.") {
		t.Errorf("revoking: %d %s", code, out)
	}
	if code, _ := scrape(friend); code != 401 {
		t.Errorf("a token that was revoked: %d", code)
	}
}
