package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// control speaks QMP (docs/interop/qmp-spec.txt in QEMU's sources): one JSON
// object a line, a greeting, then each command answered in order; events come
// between and are not needed here.
type control struct {
	mu   sync.Mutex
	conn net.Conn
	in   *bufio.Scanner
}

// commandTimeout is far above what QEMU needs to answer; it only keeps a hung
// machine from hanging its caller.
const commandTimeout = 30 * time.Second

func dialControl(ctx context.Context, socket string, p *process) (*control, error) {
	c := &control{}
	err := waitFor(ctx, p, func() error {
		var err error
		c.conn, err = net.Dial("unix", socket)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to QEMU's control socket: %w", err)
	}
	c.in = bufio.NewScanner(c.conn)
	c.in.Buffer(nil, 1<<20)
	if err := c.conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	if !c.in.Scan() { // the greeting
		// QEMU is about to end, or has: what it said of the reason is worth
		// more than that its socket closed.
		select {
		case <-p.ended:
		case <-time.After(commandTimeout):
		}
		return nil, errors.Join(fmt.Errorf("QEMU's control socket closed: %w", errors.Join(c.in.Err(), p.result())), c.conn.Close())
	}
	if err := c.run("qmp_capabilities"); err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	return c, nil
}

// run executes one command that has no arguments and no result.
func (c *control) run(command string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return fmt.Errorf("QEMU command %s: %w", command, err)
	}
	request, err := json.Marshal(map[string]string{"execute": command})
	if err != nil {
		return err
	}
	if _, err := c.conn.Write(append(request, '\n')); err != nil {
		return fmt.Errorf("QEMU command %s: %w", command, err)
	}
	for c.in.Scan() {
		var answer struct {
			Return *json.RawMessage
			Error  *struct{ Class, Desc string }
		}
		if err := json.Unmarshal(c.in.Bytes(), &answer); err != nil {
			return fmt.Errorf("QEMU command %s: answer %q: %w", command, c.in.Text(), err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("QEMU command %s: %s", command, answer.Error.Desc)
		case answer.Return != nil:
			return nil
		}
	}
	return fmt.Errorf("QEMU command %s: the machine is gone: %w", command, errors.Join(c.in.Err(), net.ErrClosed))
}

func (c *control) close() { _ = c.conn.Close() }
