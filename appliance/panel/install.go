package panel

import (
	"context"
	"fmt"
)

// Installer is what the menu does on a machine that was started from the medium
// that installs.
type Installer interface {
	// Targets are the disks of the machine, those that are refused included.
	Targets() ([]Target, error)
	// Install writes the image to the disk of that name, and restarts; it returns
	// once that has begun, and says on the consoles how it goes on.
	Install(ctx context.Context, name string) error
}

// A Target is a disk that may be installed to.
type Target struct {
	Name    string
	Words   string // model, size
	Holds   string
	Refused string // why not; "": it may
}

const mostTargets = 6 // that a console of 24 lines shows with what is on them

// install asks which disk, and twice whether it is meant: the second answer is
// the disk's name, once what is on it stands there.
func (s *session) install() {
	all, err := s.c.Installer.Targets()
	if err != nil {
		s.notice = "The disks cannot be listed: " + err.Error() + "."
		return
	}
	shown := []string{" Install to a disk", ""}
	for _, t := range all[:min(len(all), mostTargets)] {
		shown = append(shown, "   "+t.Words, "      holds: "+t.Holds)
		if t.Refused != "" {
			shown = append(shown, "      refused: "+t.Refused)
		}
	}
	if n := len(all) - mostTargets; n > 0 {
		shown = append(shown, fmt.Sprintf("   and %d more: their names are taken, too", n))
	}
	if len(all) == 0 {
		s.notice = "There is no disk to install to."
		return
	}
	s.asks(question{shown: shown, text: "Name of the disk (Enter: none): ", wait: addressPause, take: func(_ context.Context, s *session, l string) {
		for _, t := range all {
			switch {
			case t.Name != l || l == "":
			case t.Refused != "":
				s.notice = t.Name + " is refused: " + t.Refused + "."
				return
			default:
				s.question("Everything on "+t.Words+" will be lost (it holds "+t.Holds+"). Type its name again, "+t.Name+", to write to it: ", t.Name, func(ctx context.Context, s *session) {
					s.act(ctx, "Installing to "+t.Name+": this takes some minutes. Leave the machine on.", func(ctx context.Context) error {
						return s.c.Installer.Install(ctx, t.Name)
					})
				})
				return
			}
		}
		s.notice = "Nothing was done: there is no disk of that name."
	}})
}
