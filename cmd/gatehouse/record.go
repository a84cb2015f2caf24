package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/api"
)

// maxCastLine bounds one event of a recording, in bytes: as the agent writes
// them, with room for JSON's spelling.
const maxCastLine = 2 << 20

func recordCommand() *cobra.Command {
	var a askAs
	one := func(use, short, long, example string, do func(context.Context, *signed, *cobra.Command, targets.ID) error) *cobra.Command {
		return &cobra.Command{Use: use + " ID", Short: short, Long: long, Example: example, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd, func(ctx context.Context, s *signed) error {
				id, err := s.recording(ctx, args[0])
				if err != nil {
					return err
				}
				return do(ctx, s, cmd, id)
			})
		}}
	}
	p := &player{}
	play := one("play", "Play a recording in this terminal", "Play a recording in this terminal, as it was seen. Ctrl-C ends it. The first digits of the\nID are enough, if no other recording has them.",
		"  gatehouse record play 3fa9 --speed 2 --idle-limit 1s", func(ctx context.Context, s *signed, cmd *cobra.Command, id targets.ID) error {
			if p.speed <= 0 || p.speed > 1000 || p.idle < 0 {
				return fail(exitUsage, "--speed is above 0 and at most 1000, --idle-limit is not negative")
			}
			return p.show(ctx, s, id)
		})
	play.Flags().Float64Var(&p.speed, "speed", 1, "so many times as fast")
	play.Flags().DurationVar(&p.idle, "idle-limit", 0, "the longest pause, such as 2s; 0: as it was")
	var file string
	export := one("export", "Write a recording as asciicast v2", "Write a recording as asciicast v2, which asciinema plays, to standard output or to a file\nthat only you can read.",
		"  gatehouse record export 3fa9 > nas.cast\n  gatehouse record export 3fa9 --file nas.cast", func(ctx context.Context, s *signed, _ *cobra.Command, id targets.ID) error {
			return exportCast(ctx, s, id, file)
		})
	export.Flags().StringVar(&file, "file", "", "write into a new `FILE`")
	var yes bool
	remove := one("remove", "Remove a recording for good", "Remove a recording for good. The audit log keeps that it was there, and who removed it.",
		"  gatehouse record remove 3fa9 --yes", func(ctx context.Context, s *signed, cmd *cobra.Command, id targets.ID) error {
			return removeCast(ctx, s, cmd.InOrStdin(), id, yes)
		})
	remove.Flags().BoolVar(&yes, "yes", false, "do not ask")
	list := &cobra.Command{Use: "list", Short: "List the recordings", Example: "  gatehouse record list --json", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return a.run(cmd, listRecordings)
	}}
	c := group("record", "List, play, export and remove recordings", list, play, export, remove)
	c.Long = "Recordings of terminals, which the box keeps encrypted. What was typed is not in them,\nonly what was seen."
	c.Example = "  gatehouse record list\n  gatehouse record play 3fa9 --idle-limit 2s"
	a.flags(c.PersistentFlags())
	return c
}

func (b *box) recordings(ctx context.Context) ([]api.RecordingInfo, error) {
	var l api.RecordingList
	_, err := b.call(ctx, http.MethodGet, api.Recordings, nil, &l)
	return l.Recordings, err
}

func (s *signed) recording(ctx context.Context, typed string) (targets.ID, error) {
	list, err := s.recordings(ctx)
	if err != nil {
		return targets.ID{}, err
	}
	var ids []targets.ID
	for _, r := range list {
		ids = append(ids, r.Session)
	}
	return pick("recording", typed, ids)
}

func listRecordings(ctx context.Context, s *signed) error {
	list, err := s.recordings(ctx)
	if err != nil {
		return err
	}
	if s.asJSON {
		return printJSON(s.out, api.RecordingList{Recordings: list})
	}
	if len(list) == 0 {
		fmt.Fprintln(s.err, "There is no recording.")
		return nil
	}
	fmt.Fprintf(s.out, "%-8s  %-17s  %-20s %-24s %9s %10s  %s\n", "ID", "STARTED", "TARGET", "WHO", "LENGTH", "BYTES", "STATE")
	for _, r := range list {
		state := "whole"
		if !r.Whole {
			state = "cut: " + r.Problem
		}
		fmt.Fprintf(s.out, "%-8s  %-17s  %-20s %-24s %9s %10d  %s\n", r.Session.String()[:8], when(r.Started, ""), printable(r.Target.Name), printable(r.Technician),
			lasting(r.Seconds), r.Size, printable(state))
	}
	return nil
}

// cast reads a recording from the box, however long it is.
func (b *box) cast(ctx context.Context, id targets.ID, to io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+b.address+api.Recording+"?session="+id.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/x-asciicast")
	client := *b.client
	client.Timeout = 0
	resp, err := client.Do(req)
	if err != nil {
		return fail(exitUnreachable, "reaching the box at %s: %w", b.address, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := b.text(resp)
		if err != nil {
			return err
		}
		return &refusal{resp.StatusCode, reason(text)}
	}
	if _, err := io.Copy(to, resp.Body); err != nil {
		return fmt.Errorf("the recording came only as far as it was readable: %w", err)
	}
	return nil
}

func exportCast(ctx context.Context, s *signed, id targets.ID, file string) error {
	if file == "" {
		return s.cast(ctx, id, s.out)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fail(exitConflict, "%s is there already", file)
	}
	if err != nil {
		return fmt.Errorf("exporting the recording: %w", err)
	}
	return errors.Join(s.cast(ctx, id, f), f.Close())
}

func removeCast(ctx context.Context, s *signed, in io.Reader, id targets.ID, yes bool) error {
	if !yes {
		fmt.Fprintf(s.err, "The recording %s is gone for good then. Type yes to remove it: ", id.String()[:8])
		if line, _ := bufio.NewReader(in).ReadString('\n'); line != "yes\n" {
			return fail(exitConflict, "nothing was removed")
		}
	}
	var answer struct{}
	if _, err := s.call(ctx, http.MethodPost, api.RecordingEnd, api.EndAsk{Session: id}, &answer); err != nil {
		return err
	}
	fmt.Fprintln(s.err, "Removed.")
	return nil
}

// player shows a recording.
type player struct {
	speed float64
	idle  time.Duration
}

// show fetches the whole first: the box does not wait for a slow reader. It
// goes through a file without a name, which is gone with this program.
func (p *player) show(ctx context.Context, s *signed, id targets.ID) error {
	f, err := os.CreateTemp("", "gatehouse-*") // mode 0600
	if err != nil {
		return fmt.Errorf("making room for the recording: %w", err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return fmt.Errorf("making room for the recording: %w", err)
	}
	came := s.cast(ctx, id, f)
	var r *refusal
	var fl *failure
	if errors.As(came, &r) || errors.As(came, &fl) {
		return came
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	defer io.WriteString(s.out, "\x1b[0m\x1b[?25h\x1b[?1049l\r\n") // colours, cursor and screen as before
	return errors.Join(p.play(ctx, f, s.out, wait), came)
}

// wait passes time, or ends early.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// play writes the output of an asciicast v2 in its time.
func (p *player) play(ctx context.Context, in io.Reader, out io.Writer, wait func(context.Context, time.Duration) error) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 64<<10), maxCastLine)
	var head struct {
		Version int `json:"version"`
	}
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &head) != nil || head.Version != 2 {
		return fail(exitVerification, "this is not a recording in the form asciicast v2")
	}
	at := 0.0
	for lines.Scan() {
		var event [3]json.RawMessage
		var when float64
		var kind, text string
		if err := errors.Join(json.Unmarshal(lines.Bytes(), &event), json.Unmarshal(event[0], &when), json.Unmarshal(event[1], &kind), json.Unmarshal(event[2], &text)); err != nil {
			return fail(exitVerification, "an event of the recording cannot be read: %w", err)
		}
		pause := time.Duration((when - at) * float64(time.Second))
		at = max(at, when)
		if p.idle > 0 {
			pause = min(pause, p.idle)
		}
		if pause > 0 {
			if err := wait(ctx, time.Duration(float64(pause)/p.speed)); err != nil {
				return err
			}
		}
		if kind == "o" {
			if _, err := io.WriteString(out, text); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil {
		return fail(exitVerification, "the recording cannot be read to its end: %w", err)
	}
	return nil
}
