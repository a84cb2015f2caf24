package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"gatehouse/appliance/control"
	"gatehouse/appliance/session/api"
	"gatehouse/appliance/technician"
)

// noticeEach is how often the box is asked, while a session lasts, whether there
// is something to be told.
const noticeEach = 30 * time.Second

// crier tells a person on standard error when the box ends all sessions.
type crier struct {
	out io.Writer
	raw bool // what is below is the screen of a target
	now func() time.Time

	mu    sync.Mutex
	at    time.Time
	stage int // what was told of that time: 0 nothing, 1 that it comes, 2 and 3 that it is near
}

// granted is told with the session; it is cut to this.
func (c *crier) granted(n *api.Notice) {
	if n != nil {
		c.hear(n, 1)
	}
}

// asked is what the box said later.
func (c *crier) asked(n *api.Notice) {
	stage := 0
	if n != nil {
		switch left := n.At.Sub(c.now()); {
		case left <= time.Minute:
			stage = 3
		case left <= control.Grace:
			stage = 2
		}
	}
	c.hear(n, stage)
}

// hear tells each thing once, and what was told and is not so any more.
func (c *crier) hear(n *api.Notice, stage int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case n == nil:
		if c.stage > 0 {
			c.say("the box does not restart")
		}
		c.at, c.stage = time.Time{}, 0
		return
	case !n.At.Equal(c.at):
		c.at, c.stage = n.At, 0
	}
	if stage <= c.stage {
		return
	}
	c.stage = stage
	left := max(n.At.Sub(c.now()), 0)
	in := "in " + left.Round(time.Second).String()
	if left > time.Minute {
		in = fmt.Sprintf("in %d minutes", int(left.Round(time.Minute)/time.Minute))
	}
	if left > 2*time.Hour {
		in = fmt.Sprintf("in %d hours", int(left.Round(time.Hour)/time.Hour))
	}
	c.say(fmt.Sprintf("%s at %s UTC, %s; this session ends then", printable(n.Text), n.At.UTC().Format("15:04"), in))
}

func (c *crier) say(text string) {
	end := "\n"
	if c.raw {
		end = "\r\n"
		fmt.Fprint(c.out, end)
	}
	fmt.Fprintf(c.out, "[gatehouse: %s]%s", text, end)
}

// listen asks until the session is over.
func (c *crier) listen(ctx context.Context, b *box, s *technician.Session, each time.Duration) (stop func()) {
	return during(ctx, s, each, func(ctx context.Context) {
		var board api.NoticeBoard
		if _, err := b.call(ctx, http.MethodGet, api.NoticePath, nil, &board); err == nil {
			c.asked(board.Notice)
		} // if not now, then at the next tick
	})
}
