package window_test

import (
	"strings"
	"testing"
	"time"

	"gatehouse/firmware/window"
)

func TestUSE3_WindowsThatAreNotUnderstoodAreRefused(t *testing.T) {
	for _, text := range []string{
		" ", "daily", "daily ", "02:00-04:00", "Sun", "Sun 02:00", "Sun 02:00-", "Sun -04:00", "Sun 2:00-4:00", "Sun 02:00-24:00",
		"Sun 02:00-04:60", "Sun 02:00-02:00", "sun 02:00-04:00", "Sunday 02:00-04:00", "Sun,Sun 02:00-04:00", "Sun, Mon 02:00-04:00",
		"Sun,daily 02:00-04:00", "daily,Sun 02:00-04:00", "Mon-Fri 02:00-04:00", ",Sun 02:00-04:00", "Sun  02:00-04:00", " Sun 02:00-04:00",
		"Sun 02:00-04:00 ", "Sun 02:00-04:00\n", "Sun 02:00–04:00", "Sun 02:00-04:00-06:00", "Sun 02:00:00-04:00:00", "Sun +2:00-04:00",
		"Sun 02:00-04:00 Mon 02:00-04:00", "Sun 0２:00-04:00", strings.Repeat("Sun,", 1000), "Sun\x0002:00-04:00",
	} {
		w, err := window.Parse(text)
		if err == nil {
			t.Errorf("%q was taken for %q", text, w)
			continue
		}
		if _, ever := w.Next(time.Now()); ever {
			t.Errorf("%q was refused, and its window opens", text)
		}
		if !strings.Contains(err.Error(), "Sun 02:00-04:00") || len(err.Error()) > 400 {
			t.Errorf("%q: the refusal does not say how it is written: %v", text, err)
		}
	}
}

func TestWindowsAreWrittenAsTheyAreRead(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "Sun 02:00-04:00": "Sun 02:00-04:00", "daily 00:00-23:59": "daily 00:00-23:59", "Sun,Mon 23:30-01:00": "Mon,Sun 23:30-01:00",
		"Mon,Tue,Wed,Thu,Fri,Sat,Sun 02:00-04:00": "daily 02:00-04:00", "Sat 22:00-00:00": "Sat 22:00-00:00",
	} {
		w, err := window.Parse(text)
		if err != nil || w.String() != want {
			t.Errorf("%q: %q, %v", text, w, err)
		}
		if again, err := window.Parse(w.String()); err != nil || again != w {
			t.Errorf("%q is read as something else than it was: %v, %v", w, again, err)
		}
	}
}

func TestUSE3_NextIsNowWithinTheWindowAndItsBeginOtherwise(t *testing.T) {
	at := func(text string) time.Time {
		t.Helper()
		v, err := time.Parse("2006-01-02 15:04:05", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	// 2026-11-29 is a Sunday; 2028 has a 29th of February, a Tuesday.
	for _, c := range []struct{ text, now, want string }{
		{"Sun 02:00-04:00", "2026-11-29 01:59:59", "2026-11-29 02:00:00"},
		{"Sun 02:00-04:00", "2026-11-29 02:00:00", "2026-11-29 02:00:00"},
		{"Sun 02:00-04:00", "2026-11-29 03:59:59", "2026-11-29 03:59:59"},
		{"Sun 02:00-04:00", "2026-11-29 04:00:00", "2026-12-06 02:00:00"},
		{"daily 02:00-04:00", "2026-12-31 04:00:00", "2027-01-01 02:00:00"},
		{"Sat 23:00-01:00", "2026-11-29 00:59:00", "2026-11-29 00:59:00"},
		{"Sat 23:00-01:00", "2026-11-29 01:00:00", "2026-12-05 23:00:00"},
		{"Sun 23:00-22:00", "2026-11-29 12:00:00", "2026-11-29 23:00:00"},
		{"Sun 23:00-22:00", "2026-11-30 21:59:00", "2026-11-30 21:59:00"},
		{"Mon,Thu 05:00-06:00", "2026-12-01 00:00:00", "2026-12-03 05:00:00"},
		{"Tue 00:00-01:00", "2028-02-23 00:00:00", "2028-02-29 00:00:00"},
		{"daily 22:00-00:00", "2026-11-29 23:59:59", "2026-11-29 23:59:59"},
		{"daily 22:00-00:00", "2026-11-29 00:00:00", "2026-11-29 22:00:00"},
	} {
		w, err := window.Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		// Whatever zone the reader of the clock is in.
		now := at(c.now).In(time.FixedZone("far", 13*3600))
		if got, ok := w.Next(now); !ok || !got.Equal(at(c.want)) {
			t.Errorf("%s at %s: %s, want %s", c.text, c.now, got, c.want)
		}
	}
}

// Each minute of a fortnight, against the definition read aloud.
func TestNextIsOpenAndNothingBeforeItIs(t *testing.T) {
	w, err := window.Parse("Wed,Sat 22:15-03:45")
	if err != nil {
		t.Fatal(err)
	}
	open := func(x time.Time) bool {
		m := x.Hour()*60 + x.Minute()
		switch x.Weekday() {
		case time.Wednesday, time.Saturday:
			return m >= 22*60+15
		case time.Thursday, time.Sunday:
			return m < 3*60+45
		}
		return false
	}
	end := time.Date(2026, 12, 20, 0, 0, 0, 0, time.UTC)
	next := end.Add(-4 * time.Hour) // Saturday evening of the week: open at 22:15
	for !open(next) {
		next = next.Add(time.Minute)
	}
	for x := end.Add(-4 * time.Hour); x.After(end.AddDate(0, 0, -14)); x = x.Add(-time.Minute) {
		if open(x) {
			next = x
		}
		if got, ok := w.Next(x); !ok || !got.Equal(next) {
			t.Fatalf("at %s: %s, want %s", x, got, next)
		}
	}
}

func TestWindowsOfAZoneAreTheSameHours(t *testing.T) {
	for _, c := range []struct {
		text string
		east time.Duration
		want string
	}{
		{"", 5 * time.Hour, ""},
		{"daily 02:00-04:00", time.Hour, "daily 01:00-03:00"},
		{"daily 02:00-04:00", 2 * time.Hour, "daily 00:00-02:00"},
		{"Sat,Sun 02:00-06:00", 10 * time.Hour, "Fri,Sat 16:00-20:00"},
		{"Sat,Sun 02:00-06:00", -8 * time.Hour, "Sat,Sun 10:00-14:00"},
		{"Sun 23:00-01:00", -3*time.Hour - 30*time.Minute, "Mon 02:30-04:30"},
		{"Sun 00:30-01:00", 14 * time.Hour, "Sat 10:30-11:00"},
		{"Mon 00:00-02:00", 0, "Mon 00:00-02:00"},
	} {
		w, err := window.Parse(c.text)
		if err != nil {
			t.Fatal(err)
		}
		u := w.UTC(c.east)
		if u.String() != c.want {
			t.Errorf("%q, %s east: %q, want %q", c.text, c.east, u, c.want)
		}
		if again, err := window.Parse(u.String()); err != nil || again != u {
			t.Errorf("%q is not one that can be written: %v", u, err)
		}
		for h := range 14 * 24 { // an hour there and here
			here := time.Date(2026, 11, 29, h, 7, 0, 0, time.UTC)
			at, ok := u.Next(here)
			there, also := w.Next(here.Add(c.east))
			if ok != also || ok && !at.Add(c.east).Equal(there) {
				t.Fatalf("%q at %s: %s, and there %s", c.text, here, at, there)
			}
		}
	}
}
