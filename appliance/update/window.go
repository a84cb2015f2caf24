package update

import (
	"fmt"
	"strings"
	"time"
)

// Window is when a release may start: on some days of the week, from a minute of
// the day to another, in UTC. One that ends before it begins ends on the next day.
type Window struct {
	days     [7]bool
	from, to int // minutes of the day
}

// weekdays are as time.Weekday counts them.
var weekdays = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

const dayMinutes = 24 * 60

// ParseWindow reads "Sun 02:00-04:00", "Sat,Sun 22:00-05:00" or, for each day,
// "02:00-04:00".
func ParseWindow(s string) (Window, error) {
	bad := func(why string) (Window, error) {
		return Window{}, fmt.Errorf("%q is not a window in UTC such as \"Sun 02:00-04:00\", \"Sat,Sun 22:00-05:00\" or \"02:00-04:00\": %s", s, why)
	}
	var w Window
	days, hours, some := strings.Cut(s, " ")
	if !some {
		days, hours = "", s
		for i := range w.days {
			w.days[i] = true
		}
	}
	for name := range strings.SplitSeq(days, ",") {
		if !some {
			break
		}
		known := false
		for i, d := range weekdays {
			if d == name && !w.days[i] {
				w.days[i], known = true, true
			}
		}
		if !known {
			return bad(fmt.Sprintf("%q is no day, or is there twice", name))
		}
	}
	from, to, ok := strings.Cut(hours, "-")
	if !ok {
		return bad("it has no two times")
	}
	for text, at := range map[string]*int{from: &w.from, to: &w.to} {
		t, err := time.Parse("15:04", text)
		if err != nil || len(text) != 5 {
			return bad(fmt.Sprintf("%q is no time of the day", text))
		}
		*at = t.Hour()*60 + t.Minute()
	}
	if from == to {
		return bad("it ends when it begins")
	}
	return w, nil
}

// Next is the first moment from now on that is in the window: now, if it is open.
func (w Window) Next(now time.Time) time.Time {
	now = now.UTC()
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, time.UTC)
	length := (w.to - w.from + dayMinutes) % dayMinutes
	// From yesterday, whose window may reach into today, to the same day of next week.
	for d := -1; d <= 7; d++ {
		day := midnight.AddDate(0, 0, d)
		if !w.days[day.Weekday()] {
			continue
		}
		opens := day.Add(time.Duration(w.from) * time.Minute)
		if closes := opens.Add(time.Duration(length) * time.Minute); now.Before(closes) {
			if now.After(opens) {
				return now
			}
			return opens
		}
	}
	return now // a window has a day: not reached
}
