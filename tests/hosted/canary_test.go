package hosted

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// remembers says whether a process has these bytes anywhere in the memory that
// it can write.
func (b *behind) remembers(pid int, what []byte) bool {
	b.Helper()
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer maps.Close()
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		b.Fatal(err)
	}
	defer memory.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		const piece = 1 << 20
		buf := make([]byte, piece+len(what))
		for at := from; at < to; at += piece {
			n, err := memory.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if err != nil && err != io.EOF {
				break // it was given back meanwhile
			}
			if bytes.Contains(buf[:n], what) {
				return true
			}
		}
	}
	return false
}

// TestSES2_CanaryIsNotAtTheGateway sends a secret there and back through the
// gateway of a whole box, again and again while it is looked for. The agent,
// which ends the session's TLS, is where it is found: so it can be.
func TestSES2_CanaryIsNotAtTheGateway(t *testing.T) {
	b := targeted(t, "off")
	canary := make([]byte, 32)
	rand.Read(canary)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := b.before(ctx, b.toolPath(), "exec", "nas", "--no-direct", "--", "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.machine.Do(t, cmd.Start)
	there := make([]byte, 2048)
	exchange := func() {
		t.Helper()
		// More than the canary, so that the buffers on the way are filled with it.
		if _, err := in.Write(bytes.Repeat(canary, len(there)/len(canary))); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, there); err != nil || !bytes.Contains(there, canary) {
			t.Fatalf("it does not come back: %v", err)
		}
	}
	atAgent, end := false, time.Now().Add(20*time.Second)
	for i := 0; i < 5 || !atAgent && time.Now().Before(end); i++ {
		for range 20 {
			exchange()
		}
		if b.remembers(b.role("gateway"), canary) {
			t.Fatalf("the gateway holds %s", hex.EncodeToString(canary))
		}
		atAgent = atAgent || b.remembers(b.role("agent"), canary)
	}
	if !atAgent {
		t.Error("it was not found where it must be: this test could not fail")
	}
	in.Close()
	cmd.Wait()
}
