// Package window parses when a box may restart into a new release, as in "Sun 02:00-04:00", and says when that is next; pure.
package window

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Window is some hours of some days of each week, in UTC, because a box has no
// other time: its hours stay where they are when summer begins. The zero Window
// is never open.
type Window struct {
	days   [7]bool // on which it begins, by time.Weekday
	begins int     // minutes after midnight
	length int     // minutes, 1 to 1439; it may reach into the next day
}

// Examples are shown beside fields and in refusals.
const Examples = `"Sun 02:00-04:00", "Mon,Thu 23:30-01:00" or "daily 02:00-04:00"`

var names = [7]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

const day = 24 * 60

// Parse reads one. The empty text is the window that is never open. Only the
// one spelling that String gives is taken: what a person meant by another one
// is not guessed.
func Parse(text string) (Window, error) {
	if text == "" {
		return Window{}, nil
	}
	w, err := parse(text)
	if err != nil {
		if len(text) > 60 {
			text = strings.ToValidUTF8(text[:60], "") + "…"
		}
		return Window{}, fmt.Errorf("the window %q is not understood: %w. Write it like %s, in UTC", text, err, Examples)
	}
	return w, nil
}

func parse(text string) (w Window, err error) {
	days, hours, ok := strings.Cut(text, " ")
	if !ok {
		return w, errors.New("it is days, a space, and hours")
	}
	if days == "daily" {
		w.days = [7]bool{true, true, true, true, true, true, true}
	} else {
		for name := range strings.SplitSeq(days, ",") {
			i := slices.Index(names[:], name)
			if i < 0 {
				return w, errors.New("its days are daily, or Mon, Tue, Wed, Thu, Fri, Sat, Sun with commas between")
			}
			if w.days[i] {
				return w, errors.New(name + " is in it twice")
			}
			w.days[i] = true
		}
	}
	from, to, _ := strings.Cut(hours, "-")
	if w.begins, err = minutes(from); err != nil {
		return w, err
	}
	end, err := minutes(to)
	if err != nil {
		return w, err
	}
	if end == w.begins {
		return w, errors.New("it ends when it begins")
	}
	w.length = (end - w.begins + day) % day
	return w, nil
}

// minutes reads exactly HH:MM.
func minutes(text string) (int, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, errors.New("its hours are two times from 00:00 to 23:59 with - between")
	}
	return t.Hour()*60 + t.Minute(), nil
}

// String is the text that Parse reads, with the days from Monday on.
func (w Window) String() string {
	var days []string
	for i := range names {
		if d := (i + 1) % 7; w.days[d] {
			days = append(days, names[d])
		}
	}
	switch len(days) {
	case 0:
		return ""
	case 7:
		days = []string{"daily"}
	}
	end := (w.begins + w.length) % day
	return fmt.Sprintf("%s %02d:%02d-%02d:%02d", strings.Join(days, ","), w.begins/60, w.begins%60, end/60, end%60)
}

// UTC is the window in UTC of one whose hours are those of a zone, which is so
// far east of it. Where the zone has a summer time, they are those of now.
func (w Window) UTC(east time.Duration) Window {
	if w == (Window{}) {
		return w
	}
	minute := w.begins - int(east/time.Minute)
	days := minute / day // towards zero
	if minute < 0 && minute%day != 0 {
		days--
	}
	u := Window{begins: minute - days*day, length: w.length}
	for i, is := range w.days {
		if is {
			u.days[((i+days)%7+7)%7] = true
		}
	}
	return u
}

// Next is the first moment from now on when it is open: now itself, where it is
// open now. It is false for a window that never is.
func (w Window) Next(now time.Time) (time.Time, bool) {
	now = now.UTC()
	// From yesterday, whose window may reach into today, to this day next week.
	for i := -1; i <= 7; i++ {
		begins := time.Date(now.Year(), now.Month(), now.Day()+i, 0, w.begins, 0, 0, time.UTC)
		if !w.days[begins.Weekday()] || !now.Before(begins.Add(time.Duration(w.length)*time.Minute)) {
			continue
		}
		if begins.Before(now) {
			return now, true
		}
		return begins, true
	}
	return time.Time{}, false
}
