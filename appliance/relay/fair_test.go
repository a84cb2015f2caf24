// What says something of times and memory runs alone, and without the race
// detector: make test does so.
//go:build alone

package relay

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatehouse/appliance/cert/certtest"
)

const (
	equals = 50                    // flows that want the same
	share  = 2 << 20               // bytes that each of them has
	bite   = 16 << 10              // and sends at once
	pause  = 16 * time.Millisecond // before the next
	hogged = 1 << 30               // bytes that the hog has at most
	hungry = 32 << 20              // and at least, or it was none
	echoes = 400                   // of one byte there and back
)

// urgency gives all threads of this process, and those to come, a place among
// those that want the processor.
func urgency(set func(thread int) error) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range threads {
		id, err := strconv.Atoi(t.Name())
		if err != nil {
			return err
		}
		if err := set(id); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// first is for what is measured, the gateway and who types: it runs whenever it
// can, whatever else the machine does, and what is left is the gateway's own. In
// this class nobody's time is cut short, so the gateway's threads hold each
// other up rather more than elsewhere.
func first(thread int) error {
	err := unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	if errors.Is(err, unix.EPERM) { // not root: it takes a machine with less to do
		return nil
	}
	return err
}

// usual is as programs are.
func usual(thread int) error {
	return unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
}

// last is for ends that stand for other machines, and must not take the
// processor from the gateway as those could not.
func last(thread int) error {
	return unix.SchedSetAttr(thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
}

// meetings brings ends together at a gateway: "seed key address".
func meetings(args []string, n int) (senders, receivers []net.Conn, err error) {
	seed, err := hex.DecodeString(args[0])
	if err != nil {
		return nil, nil, err
	}
	b := &bench{t: part{}, signer: ed25519.NewKeyFromSeed(seed), address: args[2]}
	if err := b.key.UnmarshalText([]byte(args[1])); err != nil {
		return nil, nil, err
	}
	if b.agent, err = certtest.New(); err != nil {
		return nil, nil, err
	}
	if b.techn, err = certtest.New(); err != nil {
		return nil, nil, err
	}
	for range n {
		a, t, err := b.meeting()
		if err != nil {
			return nil, nil, err
		}
		senders, receivers = append(senders, a), append(receivers, t)
	}
	return senders, receivers, nil
}

// hogPart is one flow that takes what it gets.
func hogPart(args []string, stdin *bufio.Reader) error {
	if err := urgency(last); err != nil {
		return err
	}
	senders, receivers, err := meetings(args, 1)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	var got atomic.Int64
	go func() { // both end with the process
		b := make([]byte, 256<<10)
		for left := hogged; left > 0; left -= len(b) {
			if _, err := senders[0].Write(b); err != nil {
				return
			}
		}
	}()
	go func() {
		b := make([]byte, 256<<10)
		for {
			n, err := receivers[0].Read(b)
			if err != nil {
				return
			}
			got.Add(int64(n))
		}
	}()
	_, _ = stdin.ReadString('\n')
	fmt.Println(got.Load())
	io.Copy(io.Discard, stdin)
	return nil
}

// equalPart is flows that want the same. It says how equal they were when the
// first of them had its share (Jain's index).
func equalPart(args []string, stdin *bufio.Reader) error {
	if err := urgency(usual); err != nil {
		return err
	}
	senders, receivers, err := meetings(args, equals)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := stdin.ReadString('\n'); err != nil {
		return err
	}
	var got [equals]atomic.Int64
	full := make(chan struct{}, equals)
	began := time.Now()
	for i := range equals {
		go func() { // both end with the process
			b := make([]byte, bite)
			for n := range share / bite {
				time.Sleep(time.Until(began.Add(time.Duration(n)*pause + time.Duration(i)*pause/equals)))
				if _, err := senders[i].Write(b); err != nil {
					return
				}
			}
		}()
		go func() {
			b := make([]byte, bite)
			for {
				n, err := receivers[i].Read(b)
				if err != nil || got[i].Add(int64(n)) == share {
					full <- struct{}{}
					return
				}
			}
		}()
	}
	<-full
	var sum, squares float64
	for i := range got {
		v := float64(got[i].Load())
		sum, squares = sum+v, squares+v*v
	}
	fmt.Println(sum * sum / (equals * squares))
	io.Copy(io.Discard, stdin)
	return nil
}

// meeting brings two ends together, without a session between them.
func (b *bench) meeting() (agent, technician net.Conn, err error) {
	g := b.grant()
	ka, kt := b.tickets(g)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var d net.Dialer
	ca, err := d.DialContext(ctx, "tcp", b.address)
	if err != nil {
		return nil, nil, err
	}
	ct, err := d.DialContext(ctx, "tcp", b.address)
	if err != nil {
		return nil, nil, err
	}
	var wrong error
	both(func() { agent, err = Meet(ctx, ca, b.key, b.agent, ka) }, func() { technician, wrong = Meet(ctx, ct, b.key, b.techn, kt) })
	return agent, technician, errors.Join(err, wrong)
}

// echo is the 99th percentile of one byte there and back, n times.
func echo(t *testing.T, n int, here, there net.Conn) time.Duration {
	t.Helper()
	times := []time.Duration{1}
	b := make([]byte, 1)
	for range n {
		began := time.Now()
		for _, step := range [][2]net.Conn{{here, there}, {there, here}} {
			if _, err := step[0].Write(b); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(step[1], b); err != nil {
				t.Fatal(err)
			}
		}
		times = append(times, time.Since(began))
		time.Sleep(time.Millisecond) // as somebody who types
	}
	slices.Sort(times)
	return times[n*99/100]
}

// tell has a part go on.
func (p *process) tell(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.stdin, "\n"); err != nil {
		t.Fatal(err)
	}
}

// fairness is that of a gateway which copies in a way: how many times as long an
// echo takes beside equal flows and a hog as it took a moment before, when the
// same gateway had nothing else to do, and Jain's index of those flows.
func fairness(t *testing.T, flow string, hog bool, n int) (ratio, jain float64, taken int) {
	t.Helper()
	b, gateway := newProcess(t, flow)
	defer gateway.stdin.Close()
	here, there, err := b.meeting()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	defer there.Close()
	var idle, busy []time.Duration
	for range 3 { // in turn: the machine has other things to do, now more and now less
		args := []string{hex.EncodeToString(b.signer.Seed()), b.key.String(), b.address}
		greedy, equal := start(t, "hog", args...), start(t, "equal", args...)
		greedy.line(t)
		equal.line(t)
		idle = append(idle, echo(t, n, here, there))
		if hog {
			greedy.tell(t)
			time.Sleep(50 * time.Millisecond)
		}
		equal.tell(t)
		busy = append(busy, echo(t, n, here, there))
		index, err := strconv.ParseFloat(equal.line(t), 64)
		if err != nil {
			t.Fatal(err)
		}
		if jain == 0 || index < jain {
			jain = index
		}
		if hog {
			greedy.tell(t)
			bytes, err := strconv.Atoi(greedy.line(t))
			if err != nil {
				t.Fatal(err)
			}
			taken += bytes
		}
		greedy.stdin.Close()
		equal.stdin.Close()
		if flow != "" || testing.Short() {
			break
		}
	}
	slices.Sort(idle)
	slices.Sort(busy)
	t.Log("an echo through an idle gateway", idle, "beside a hog", busy)
	return float64(busy[len(busy)/2]) / float64(idle[len(idle)/2]), jain, taken
}

// Fifty flows and a hog: the fifty get the same, and who types does not notice.
// Ratios alone count, and a machine that has other work is given a second look.
func TestSES1_AHogDoesNotHoldUpTheOthers(t *testing.T) {
	if err := urgency(first); err != nil {
		t.Fatal(err)
	}
	defer urgency(usual)
	const looks = 5
	for i := range looks {
		ratio, jain, taken := fairness(t, "", true, echoes)
		said := fmt.Sprintf("an echo takes %.1f times as long as through the idle gateway, want 3 at most; Jain's index of the others is %.4f, want 0.95; the hog took %d MiB, want %d", ratio, jain, taken>>20, hungry>>20)
		if t.Log(said); ratio <= 3 && jain >= 0.95 && taken >= hungry {
			break
		}
		if i == looks-1 {
			t.Error(said)
		}
	}
	// What this is for would be seen: a gateway that copies from an end for as
	// long as it has bytes, and one that has patience with it.
	if ratio, _, _ := fairness(t, "drains", true, echoes/8); ratio <= 3 {
		t.Errorf("a gateway that serves the hog first holds an echo up %.1f times: this finds nothing", ratio)
	}
	if _, jain, _ := fairness(t, "waits", false, 0); jain >= 0.95 {
		t.Errorf("a gateway that serves one after the other has an index of %.4f: this finds nothing", jain)
	}
}
