package update

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
	"gatehouse/appliance/intake"
	"gatehouse/firmware/window"
)

// How long an upload may be silent, and how long it may take until the last
// piece is verified. The server's bounds are those of a form.
const (
	silent   = 30 * time.Second
	verified = 6 * time.Minute
)

// upload is the body of a request that may take its time as long as it goes on.
type upload struct {
	r    io.Reader
	rc   *http.ResponseController
	most int64 // bytes, with the form around them; -1: nobody said
}

func uploadOf(v *shell.Visit) *upload {
	return &upload{v.R.Body, http.NewResponseController(v.W), v.R.ContentLength}
}

func (u *upload) Read(b []byte) (int, error) {
	now := time.Now()
	if err := errors.Join(u.rc.SetReadDeadline(now.Add(silent)), u.rc.SetWriteDeadline(now.Add(verified))); err != nil {
		return 0, err
	}
	return u.r.Read(b)
}

// source is what is read of it, for the intake.
func (u *upload) source(r io.Reader) intake.Source {
	return intake.Source{Reader: r, Most: u.most, Interrupt: func() { _ = u.rc.SetReadDeadline(time.Unix(1, 0)) }} // it is over already where that fails
}

// stopped puts a transfer that was cut into words. Without an answer of its own
// a connection that still stands would be told that all is well.
func stopped(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, os.ErrDeadlineExceeded) {
		return shell.Refuse("The transfer stopped: nothing came for " + silent.String() + ", or the connection was cut. Send the same again, the box goes on from where it is.")
	}
	return err
}

func (p *Pages) askBring(v *shell.Visit) error {
	w, err := p.view(v)
	if err != nil {
		return err
	}
	return v.Show(p.bring, w)
}

// doBring takes the form of the page as it comes: nothing of it is kept but
// in the slot.
func (p *Pages) doBring(v *shell.Visit) error {
	u := uploadOf(v)
	err := p.takeForm(v, u)
	if err != nil {
		// Browsers show an answer once they have sent everything.
		io.Copy(io.Discard, u)
		return p.again(v, p.bring, err)
	}
	v.Redirect("/system/updates?done=received")
	return nil
}

func (p *Pages) takeForm(v *shell.Visit, u *upload) error {
	v.R.Body = io.NopCloser(u)
	form, err := v.R.MultipartReader()
	if err != nil {
		return shell.Refuse("Choose the file of a release.")
	}
	again := false
	for {
		part, err := form.NextPart()
		switch {
		case errors.Is(err, io.EOF):
			return shell.Refuse("Choose the file of a release.")
		case err != nil:
			return err
		}
		switch part.FormName() {
		case "again":
			b, err := io.ReadAll(io.LimitReader(part, 8))
			if err != nil {
				return err
			}
			again = string(b) == "yes"
		case "bundle":
			if part.FileName() == "" {
				return shell.Refuse("Choose the file of a release.")
			}
			_, err := p.Intake.Bundle(v.Ctx(), by(v), again, u.source(part))
			return stopped(err)
		}
	}
}

// judge reads the settings; PID 1 judges them again.
func judge(s control.UpdateSettings) (window.Window, error) {
	w, err := window.Parse(s.Window)
	if err != nil {
		return w, notUnderstood(err)
	}
	if err := intake.Check(s); err != nil {
		return w, err
	}
	if s.Automatic && s.Mirror == "" {
		return w, shell.Refuse("Without a mirror nothing comes by itself: give its address, or leave that off.")
	}
	return w, nil
}
