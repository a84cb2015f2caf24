package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"gatehouse/appliance/control"
	"gatehouse/appliance/network/mdns"
	"gatehouse/appliance/setup/proof"
)

func setupCommand() *cobra.Command {
	s := &takeover{find: discover}
	c := &cobra.Command{
		Use:   "setup [ADDRESS]",
		Short: "Take over a new box, safe from a man in the middle",
		Long: `Take over a box that nobody owns yet.

The tool and the box prove to each other that they know the claim code on the
box's console, bound to their TLS channel, so that nobody between them can take
part. The box's key is then kept in known.json. Given --name, --email and
--password it makes the owner at once; otherwise it opens the set-up page in your
browser at a local address, so that no certificate warning appears.

Without ADDRESS it looks for boxes on the network and asks which one is meant.

Code and password come from file:PATH or from standard input (-); the code is
asked for when it is not given.`,
		Example: "  gatehouse setup 192.168.1.40\n" +
			"  gatehouse setup 192.168.1.40 --proof \"amber canyon violin drift pencil north\"\n" +
			"  gatehouse setup 192.168.1.40 --code file:code --name \"Ada\" --email ada@example.org --password file:password",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				s.address = args[0]
			}
			s.stdin, s.stdout, s.stderr = bufio.NewReader(cmd.InOrStdin()), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if f, ok := cmd.InOrStdin().(*os.File); ok {
				s.person = term.IsTerminal(int(f.Fd()))
			}
			return s.run(cmd.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&s.code, "code", "", "the claim code: `file:PATH` or -")
	f.StringVar(&s.words, "proof", "", "the six `WORDS` of the console")
	f.StringVar(&s.name, "name", "", "the owner's `NAME`")
	f.StringVar(&s.email, "email", "", "the owner's e-mail `ADDRESS`")
	f.StringVar(&s.password, "password", "", "the owner's password: `file:PATH` or -")
	f.BoolVar(&s.noBrowser, "no-browser", false, "print the local address and open nothing")
	f.BoolVar(&s.asJSON, "json", false, "print JSON")
	return c
}

// takeover is one run of setup.
type takeover struct {
	address, code, words  string
	name, email, password string
	noBrowser, asJSON     bool

	person         bool // somebody sits there who can be asked
	find           func(context.Context, time.Duration) ([]mdns.Found, error)
	stdin          *bufio.Reader
	stdout, stderr io.Writer
}

// taken is what setup prints.
type taken struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	SPKI    string `json:"spki"`
	Words   string `json:"words"`
	Owner   string `json:"owner,omitempty"`
	URL     string `json:"url,omitempty"` // local set-up page, once
}

func (s *takeover) run(ctx context.Context) error {
	if err := s.check(); err != nil {
		return err
	}
	password := ""
	if s.password != "" {
		var err error
		if password, err = readSecret("password", s.password, s.stdin); err != nil {
			return err
		}
	}
	if s.address == "" {
		var err error
		if s.address, err = s.which(ctx); err != nil {
			return err
		}
	}
	b, err := openBox(ctx, s.address, nil)
	if err != nil {
		return err
	}
	name, ticket, err := s.prove(ctx, b)
	if err != nil {
		return err
	}
	spki := b.spki()
	boxes, err := readKnown()
	if err != nil {
		return err
	}
	t := taken{Name: name, Address: b.address, SPKI: hex.EncodeToString(spki[:]), Words: proof.Words(spki)}
	if err := boxes.put(knownBox{Name: name, Address: b.address, SPKI: t.SPKI, Since: time.Now().UTC()}); err != nil {
		return err
	}
	fmt.Fprintf(s.stderr, "Proved: this is the box with the code, and its key is kept (%s).\n", t.Words)
	if s.email == "" {
		return s.openPage(ctx, b, t, ticket)
	}
	if err := s.claim(ctx, b, ticket, password); err != nil {
		return err
	}
	t.Owner = s.email
	if s.asJSON {
		return printJSON(s.stdout, t)
	}
	_, err = fmt.Fprintf(s.stdout, "%s belongs to %s now. Sign in at https://%s/ and add a second factor.\n", printable(t.Name), s.email, b.address)
	return err
}

// which finds out with the person which box is meant. What answers on the
// network is an offer, nothing more: the code proves the box.
func (s *takeover) which(ctx context.Context) (string, error) {
	if !s.person {
		return s.ask("", "say the address of the box")
	}
	fmt.Fprintln(s.stderr, "Looking for boxes on the network")
	found, err := s.find(ctx, lookAround)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		fmt.Fprintf(s.stderr, "gatehouse: %v\n", err)
	}
	var offers []string
	for _, b := range found {
		i := slices.IndexFunc(b.Addresses, func(a netip.Addr) bool { return a.Zone() == "" }) // no URL takes one
		if b.State != string(control.StateUnclaimed) || i < 0 {
			continue
		}
		offers = append(offers, typed(b, b.Addresses[i]))
		fmt.Fprintf(s.stderr, "%3d  %s at %s, unclaimed\n", len(offers), b.Name, offers[len(offers)-1])
	}
	question := "Address of the box, as its console shows it: "
	switch len(offers) {
	case 0:
		fmt.Fprintln(s.stderr, "No box that waits for an owner answered.")
	case 1:
		question = "Enter for this one, or the address of another: "
	default:
		question = fmt.Sprintf("Which one, 1 to %d, or an address: ", len(offers))
	}
	answer, err := s.ask(question, "say the address of the box")
	if err != nil {
		return "", err
	}
	if answer == "" && len(offers) == 1 {
		return offers[0], nil
	}
	if n, err := strconv.Atoi(answer); err == nil && n >= 1 && n <= len(offers) {
		return offers[n-1], nil
	}
	return answer, nil
}

// check refuses what cannot work before anything is sent.
func (s *takeover) check() error {
	given := 0
	for _, v := range []string{s.name, s.email, s.password} {
		if v != "" {
			given++
		}
	}
	if given != 0 && given != 3 {
		return fail(exitUsage, "--name, --email and --password go together")
	}
	return errors.Join(checkSecretFlag("code", s.code), checkSecretFlag("password", s.password), oneStdin(s.code, s.password))
}

// ask puts a question to the person, if there is one.
func (s *takeover) ask(question, otherwise string) (string, error) {
	if !s.person {
		return "", fail(exitUsage, "%s: standard input is not a terminal, so it cannot be asked for", otherwise)
	}
	fmt.Fprint(s.stderr, question)
	l, err := s.stdin.ReadString('\n')
	if err != nil {
		return "", fail(exitUsage, "%s: standard input ended", otherwise)
	}
	return strings.TrimSpace(l), nil
}

// prove shows both ways that this end and the box know the code, and returns
// the box's name and a ticket for one claim.
func (s *takeover) prove(ctx context.Context, b *box) (name, ticket string, err error) {
	fmt.Fprintf(s.stderr, "Connecting to %s\n", b.address)
	hello, _, err := greet(ctx, b)
	if err != nil {
		return "", "", err
	}
	if s.words == "" && s.person {
		if s.words, err = s.ask("Proof words on the console (Enter leaves it to the code alone): ", ""); err != nil {
			return "", "", err
		}
	}
	if s.words != "" {
		if err := checkWords(s.words, b.spki()); err != nil {
			return "", "", err
		}
	}
	code, err := s.readCode()
	if err != nil {
		return "", "", err
	}
	key := proof.Derive(code, [proof.SaltSize]byte(hello.Salt))
	// The box may have closed the first connection while a person was typing,
	// or made a new code: the channel and the salt that count are those of now.
	now, binding, err := greet(ctx, b)
	if err != nil {
		return "", "", err
	}
	if !bytes.Equal(now.Salt, hello.Salt) {
		key = proof.Derive(code, [proof.SaltSize]byte(now.Salt))
	}
	mine := proof.ClientProof(key, binding)
	var answer struct {
		Proof  []byte `json:"proof"`
		Ticket string `json:"ticket"`
	}
	again, err := b.call(ctx, http.MethodPost, "/api/v1/setup/proof", map[string][]byte{"proof": mine[:]}, &answer)
	if err != nil {
		return "", "", notUnclaimed(b, err)
	}
	if !proof.VerifyServer(key, again, answer.Proof) {
		return "", "", fail(exitVerification, "the box at %s does not know the code: something stands between you and the box, or it is another one. Nothing was set up; press 1 at the console for a new code before you try again", b.address)
	}
	return hello.Name, answer.Ticket, nil
}

// greeting is what an unclaimed box says of itself.
type greeting struct {
	Name string `json:"name"`
	Salt []byte `json:"salt"`
}

func greet(ctx context.Context, b *box) (g greeting, binding []byte, err error) {
	if binding, err = b.call(ctx, http.MethodGet, "/api/v1/setup", nil, &g); err != nil {
		return g, nil, notUnclaimed(b, err)
	}
	if len(g.Salt) != proof.SaltSize {
		return g, nil, fail(exitVerification, "%s does not answer as a Gatehouse does: its salt has %d bytes", b.address, len(g.Salt))
	}
	return g, binding, nil
}

func (s *takeover) readCode() (proof.Code, error) {
	var text string
	var err error
	if s.code != "" {
		text, err = readSecret("code", s.code, s.stdin)
	} else {
		text, err = s.ask("Code on the console: ", "give the code with --code file:PATH or --code -")
	}
	if err != nil {
		return proof.Code{}, err
	}
	code, err := proof.ParseCode(text)
	if err != nil {
		return proof.Code{}, fail(exitUsage, "%w", err)
	}
	return code, nil
}

// notUnclaimed gives the answers of the set-up routes their exit codes.
func notUnclaimed(b *box, err error) error {
	var r *refusal
	if !errors.As(err, &r) {
		return err
	}
	switch r.status {
	case http.StatusNotFound, http.StatusGone:
		return fail(exitConflict, "%s is not waiting for an owner: it has one, or it is locked. Its console says which", b.address)
	case http.StatusConflict:
		return fail(exitConflict, "%w", r)
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests:
		return fail(exitDenied, "%w", r)
	}
	return r
}

func (s *takeover) claim(ctx context.Context, b *box, ticket, password string) error {
	var answer any
	_, err := b.call(ctx, http.MethodPost, "/api/v1/setup/claim",
		map[string]string{"ticket": ticket, "name": s.name, "email": s.email, "password": password}, &answer)
	return notUnclaimed(b, err)
}

func normalWords(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), " ")) }
