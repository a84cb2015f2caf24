package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatehouse/appliance/control"
	"gatehouse/firmware"
)

// A release is sent in parts, each a request of its own: what came of one is
// known before the next, and a cut costs one at most.
const (
	sendPart  = 1 << 20
	sendWait  = 2 * time.Minute // for a part; the last one is answered when the whole was read back
	sendTries = 10              // after cuts in a row
)

func updateSendCommand(f *changeFlags) *cobra.Command {
	var again bool
	c := &cobra.Command{
		Use:   "send FILE",
		Short: "Bring a release into the slot that does not run",
		Long: `Bring a release into the slot that does not run: the file whose name ends in .update.
Nothing restarts. If the connection is cut, it goes on by itself where it was, for some
minutes; after that, send the same file again, which goes on, too.`,
		Example: "  gatehouse update send gatehouse-1.5.0-amd64.update && gatehouse update start --follow",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := openBundle(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			return f.signedIn(cmd, updateAPI, func(ctx context.Context, r *change) error { return r.send(ctx, file, again) })
		},
	}
	c.Flags().BoolVar(&again, "again", false, "also a version that failed on this box before")
	return c
}

// bundle is a file with a manifest and a system after it.
type bundle struct {
	*os.File
	manifest []byte
	at       int64 // where the system begins
	size     int64 // of the system
}

func openBundle(path string) (b *bundle, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fail(exitNotFound, "opening the release: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	b = &bundle{File: file}
	if b.manifest, _, err = firmware.ReadBundle(file); err != nil {
		return nil, fail(exitVerification, "%s: %w", path, err)
	}
	b.at = firmware.BundleHead(b.manifest)
	size := info.Size() - b.at
	said, err := firmware.Unverified(b.manifest)
	if err != nil {
		return nil, fail(exitVerification, "%s: %w", path, err)
	}
	// The box makes room for what it is offered. Of which processor it is, it says then.
	if !slices.ContainsFunc(said.Systems, func(s firmware.System) bool { return s.Size == size }) {
		return nil, fail(exitVerification, "%s: the file has a system of %d bytes, and its manifest names none of that size: it was not copied as a whole; fetch it again", path, size)
	}
	b.size = size
	return b, nil
}

// send offers the release and sends its system from where the box has it.
func (r *change) send(ctx context.Context, b *bundle, again bool) error {
	var at control.UpdateOffset
	if _, err := r.call(ctx, "POST", r.api+"/offer", map[string]any{"manifest": b.manifest, "again": again}, &at); err != nil {
		return err
	}
	if at.Size != b.size {
		return fail(exitVerification, "the file has a system of %d bytes, and this box needs the one of %d: take the file for its processor", b.size, at.Size)
	}
	bar := &sendLine{from: at.Offset, begun: time.Now()}
	if f, ok := r.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		bar.out = f
	}
	if at.Offset > 0 && at.Offset < at.Size {
		fmt.Fprintf(r.err, "The box has %d %% of version %s already.\n", 100*at.Offset/at.Size, printable(at.Version))
	}
	for cuts := 0; at.Offset < at.Size; {
		bar.show(at)
		next, err := r.part(ctx, b, at)
		if err == nil {
			at, cuts = next, 0
			continue
		}
		var f *failure
		if !errors.As(err, &f) || f.code != exitUnreachable || cuts >= sendTries || ctx.Err() != nil {
			bar.clear()
			return err
		}
		if cuts++; cuts == 1 {
			bar.clear()
			fmt.Fprintf(r.err, "Cut at %s; trying to go on.\n", how(at.Offset, at.Size, 0))
		}
		if err := pause(ctx, time.Duration(cuts)*time.Second); err != nil {
			return err
		}
		at = r.where(ctx, at)
	}
	bar.clear()
	took := time.Since(bar.begun)
	if r.asJSON {
		return printJSON(r.out, at)
	}
	fmt.Fprintf(r.out, "Version %s is in the other slot, verified: %.1f MB in %s.\nStart it with gatehouse update start.\n", printable(at.Version), float64(at.Size-bar.from)/1e6, took.Round(100*time.Millisecond))
	return nil
}

// where asks how far the box has it after a cut: some of a part may have come.
// While the box cannot be asked, it stays where it was.
func (r *change) where(ctx context.Context, at control.UpdateOffset) control.UpdateOffset {
	var d control.UpdateView
	if _, err := r.call(ctx, "GET", r.api, nil, &d); err == nil && d.Transfer != nil && d.Transfer.Version == at.Version {
		at.Offset = min(d.Transfer.Received, at.Size)
	}
	return at
}

// part sends one part.
func (r *change) part(ctx context.Context, b *bundle, at control.UpdateOffset) (next control.UpdateOffset, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendWait)
	defer cancel()
	n := min(at.Size-at.Offset, sendPart)
	address := fmt.Sprintf("https://%s%s/part?version=%s&offset=%d", r.address, r.api, at.Version, at.Offset)
	req, err := http.NewRequestWithContext(ctx, "POST", address, io.NewSectionReader(b, b.at+at.Offset, n))
	if err != nil {
		return at, err
	}
	req.ContentLength = n
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Accept", "application/json")
	patient := *r.client
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if errors.Is(err, errOtherKey) {
		return at, fail(exitVerification, "%s shows another certificate than before: something may stand between you and the box. Compare with its console", r.address)
	}
	if err != nil {
		return at, fail(exitUnreachable, "sending to the box at %s: %w", r.address, err)
	}
	defer resp.Body.Close()
	text, err := r.text(resp)
	if err != nil {
		return at, err
	}
	if resp.StatusCode == http.StatusServiceUnavailable {
		return at, fail(exitUnreachable, "%s", reason(text))
	}
	if resp.StatusCode != http.StatusOK {
		return at, &refusal{resp.StatusCode, reason(text)}
	}
	if err := json.Unmarshal(text, &next); err != nil || next.Offset <= at.Offset || next.Offset > at.Size {
		return at, fmt.Errorf("%s does not answer as a Gatehouse does: it stands at %d after %d of %d", r.address, next.Offset, at.Offset+n, at.Size)
	}
	next.Version, next.Size = at.Version, at.Size
	return next, nil
}

// sendLine is a line on a terminal; elsewhere it is nothing.
type sendLine struct {
	out   *os.File
	from  int64
	begun time.Time
	width int
}

func (l *sendLine) show(at control.UpdateOffset) {
	if l.out == nil {
		return
	}
	text := how(at.Offset, at.Size, float64(at.Offset-l.from)/max(time.Since(l.begun).Seconds(), 0.001))
	fmt.Fprintf(l.out, "\r%-*s", l.width, text)
	l.width = len(text)
}

func (l *sendLine) clear() {
	if l.out != nil && l.width > 0 {
		fmt.Fprintf(l.out, "\r%*s\r", l.width, "")
		l.width = 0
	}
}
