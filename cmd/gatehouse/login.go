package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// session is what the box says of the session that asks.
type session struct {
	Email string    `json:"email"`
	Role  string    `json:"role"`
	Until time.Time `json:"until"`
	Idle  int       `json:"idle"` // seconds
}

func loginCommand() *cobra.Command {
	var who signIn
	var asJSON bool
	c := &cobra.Command{
		Use:   "login [BOX]",
		Short: "Sign in, and keep the session for further commands",
		Long: `Sign in at a box as on its page, and keep the session for the commands that
follow. The box ends it after a time without use, and after a longer one in any case:
both are said. The session is kept in sessions.json beside known.json, in a file that
only you can read; password and code are not kept.

At a terminal it asks for what is not given. BOX is the address of a known box; without
it the only known one is meant.`,
		Example: "  gatehouse login\n  gatehouse login 192.168.1.40 --email ada@example.org --password file:password --code -",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, s, err := askBox(cmd.Context(), args)
			if err != nil {
				return err
			}
			err = s.login(cmd.Context(), b, who, newAsker(cmd))
			if err != nil {
				return err
			}
			return s.report(cmd, b, asJSON)
		},
	}
	f := c.Flags()
	f.StringVar(&who.email, "email", "", "sign in as `ADDRESS`")
	f.StringVar(&who.password, "password", "", "read the password from file:`PATH` or -")
	f.StringVar(&who.code, "code", "", "read the code of the second factor, or a recovery code, from file:`PATH` or -")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "logout [BOX]",
		Short:   "End the kept session at the box, and forget it",
		Long:    "End the session that gatehouse login keeps: at the box, and here. If the box cannot be\nreached it is forgotten here all the same, and the exit code says so.",
		Example: "  gatehouse logout",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return logout(cmd.Context(), args, cmd.ErrOrStderr())
		},
	}
}

// signing is one login.
type signing struct {
	kept *kept
	old  keptSession
	now  session
}

// askBox finds the box that is meant and what is kept of it.
func askBox(ctx context.Context, args []string) (*box, *signing, error) {
	b, _, err := askStatus(ctx, args, "")
	if err != nil {
		return nil, nil, err
	}
	k, err := readKept()
	if err != nil {
		return nil, nil, err
	}
	s := &signing{kept: k}
	s.old, _ = k.find(b.id())
	return b, s, nil
}

// asker asks a person, where there is one.
type asker struct {
	in     io.Reader
	lines  *bufio.Reader
	out    io.Writer
	secret func() (string, error) // reads a line without showing it; nil: nobody is there
}

func newAsker(cmd *cobra.Command) *asker {
	a := &asker{in: cmd.InOrStdin(), lines: bufio.NewReader(cmd.InOrStdin()), out: cmd.ErrOrStderr()}
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		a.secret = func() (string, error) {
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(a.out)
			return string(b), err
		}
	}
	return a
}

func (a *asker) ask(question, flag string, hidden bool) (string, error) {
	otherwise := "signing in takes --" + flag
	if hidden {
		return a.hidden(question, otherwise)
	}
	return a.line(question, otherwise)
}

// line asks for something that is seen while it is typed.
func (a *asker) line(question, otherwise string) (string, error) {
	return a.answer(question, otherwise, func() (string, error) { return a.lines.ReadString('\n') })
}

// hidden asks for something that is not.
func (a *asker) hidden(question, otherwise string) (string, error) {
	return a.answer(question, otherwise, a.secret)
}

func (a *asker) answer(question, otherwise string, read func() (string, error)) (string, error) {
	if a.secret == nil {
		return "", fail(exitUsage, "%s, since standard input is not a terminal", otherwise)
	}
	fmt.Fprint(a.out, question)
	line, err := read()
	if line = strings.TrimSpace(line); err != nil || line == "" {
		return "", fail(exitUsage, "%s: nothing was typed", otherwise)
	}
	return line, nil
}

// secret reads one from where its flag says, or asks.
func (a *asker) read(flag, value, question string, hidden bool) (string, error) {
	if value == "" {
		return a.ask(question, flag, hidden)
	}
	return readSecret(flag, value, a.in)
}

// login does the two steps of the page. The code is asked for when the password
// was right, as there.
func (s *signing) login(ctx context.Context, b *box, who signIn, a *asker) (err error) {
	for name, v := range map[string]string{"password": who.password, "code": who.code} {
		if err := checkSecretFlag(name, v); err != nil {
			return err
		}
	}
	if err := oneStdin(who.password, who.code); err != nil {
		return err
	}
	if who.email == "" {
		if who.email, err = a.ask("E-mail address: ", "email", false); err != nil {
			return err
		}
	}
	password, err := a.read("password", who.password, "Password: ", true)
	if err != nil {
		return err
	}
	// The old session ends with the new one's first step (the box replaces it).
	if s.old.Session != "" {
		err = b.useSession(s.old)
	} else {
		b.client.Jar, err = cookiejar.New(nil)
	}
	if err != nil {
		return err
	}
	next, err := b.post(ctx, "/sign-in", url.Values{"email": {who.email}, "password": {password}})
	if err != nil {
		return err
	}
	if !strings.HasPrefix(next, "/sign-in/code") {
		return fail(exitConflict, "%s has no second factor yet: finish the set-up on the box's page first", who.email)
	}
	code, err := a.read("code", who.code, "Code of the second factor, or a recovery code: ", false)
	if err != nil {
		return err
	}
	if _, err := b.post(ctx, "/sign-in/code", url.Values{"code": {code}}); err != nil {
		return err
	}
	if _, err := b.call(ctx, http.MethodGet, "/api/v1/session", nil, &s.now); err != nil {
		return refusedHow(err)
	}
	mine := b.session()
	mine.Email, mine.Until = s.now.Email, s.now.Until
	return s.kept.put(mine)
}

func (s *signing) report(cmd *cobra.Command, b *box, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), s.now)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "Signed in at %s as %s until %s, or until it is not used for %d minutes.\n",
		b.address, printable(s.now.Email), s.now.Until.Local().Format("2006-01-02 15:04 MST"), s.now.Idle/60)
	return err
}

func logout(ctx context.Context, args []string, diag io.Writer) error {
	b, s, err := askBox(ctx, args)
	var f *failure
	if errors.As(err, &f) && f.code == exitUnreachable {
		return errors.Join(err, forgetUnreached(ctx, args, diag))
	}
	if err != nil {
		return err
	}
	if s.old.Session == "" {
		return fail(exitNotFound, "no session is kept for %s", b.address)
	}
	if err := b.useSession(s.old); err != nil {
		return err
	}
	_, ended := b.post(ctx, "/sign-out", nil)
	if err := s.kept.put(keptSession{SPKI: s.old.SPKI}); err != nil {
		return err
	}
	if ended != nil {
		return fmt.Errorf("the session is forgotten here, and was not ended at the box, which ends it after a time without use: %w", ended)
	}
	fmt.Fprintln(diag, "Signed out.")
	return nil
}

// forgetUnreached removes the session of a box that does not answer.
func forgetUnreached(ctx context.Context, args []string, diag io.Writer) error {
	boxes, err := readKnown()
	if err != nil {
		return err
	}
	if len(args) == 0 && len(boxes.Boxes) == 1 {
		args = []string{boxes.Boxes[0].Address}
	}
	if len(args) == 0 {
		return nil
	}
	address, err := resolve(ctx, args[0])
	if err != nil {
		return err
	}
	known, ok := boxes.find(address)
	k, err := readKept()
	if err != nil || !ok {
		return err
	}
	if _, ok := k.find(known.SPKI); !ok {
		return nil
	}
	fmt.Fprintln(diag, "The session is forgotten here. The box ends it after a time without use.")
	return k.put(keptSession{SPKI: known.SPKI})
}
