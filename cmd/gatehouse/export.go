package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/control"
)

// moveWait is how long a box may take over the file of a configuration.
const moveWait = 5 * time.Minute

func exportCommand() *cobra.Command {
	var f changeFlags
	var keys []string
	var phrase string
	c := &cobra.Command{
		Use:   "export FILE",
		Short: "Write the configuration of a box into an encrypted file",
		Long: `Write the configuration of a box into a file that only a passphrase or a key opens: people
with what they sign in by, place, targets with their credentials, certificates with their
keys, allowlists, network, and settings of updates. It is an age file around a tar archive.

Not in it are the keys of the box, tokens of programs, recordings and the audit log. Make a
key elsewhere with age-keygen, or give a passphrase. It wants a fresh sign-in: within ten
minutes after gatehouse login. An existing FILE is not overwritten.`,
		Example: "  gatehouse export --passphrase file:phrase office.age\n  gatehouse export --to age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p office.age",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkSecretFlag("passphrase", phrase); err != nil {
				return err
			}
			if err := oneStdin(phrase, f.who.password, f.who.code); err != nil {
				return err
			}
			question := map[string]any{"keys": keys}
			if (phrase == "") == (len(keys) == 0) {
				return fail(exitUsage, "say who may open it: --passphrase, or --to with a key that begins with age1")
			}
			if phrase != "" {
				text, err := readSecret("passphrase", phrase, cmd.InOrStdin())
				if err != nil {
					return err
				}
				question = map[string]any{"passphrase": text}
			}
			return f.signedIn(cmd, "/api/v1/export", func(ctx context.Context, r *change) error { return r.export(ctx, args[0], question) })
		},
	}
	f.register(c)
	c.Flags().StringArrayVar(&keys, "to", nil, "who may open it, a `KEY` that begins with age1; may be given several times")
	c.Flags().StringVar(&phrase, "passphrase", "", "read the passphrase that opens it from file:`PATH` or -")
	return c
}

// export writes the file beside its name first: half of one is none.
func (r *change) export(ctx context.Context, path string, question any) error {
	ctx, cancel := context.WithTimeout(ctx, moveWait)
	defer cancel()
	b, err := json.Marshal(question)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(exitConflict, "the export is written into a new file: %w", err)
	}
	n, err := r.into(ctx, out, bytes.NewReader(b))
	if err = errors.Join(err, out.Close()); err != nil {
		os.Remove(path)
		return err
	}
	fmt.Fprintf(r.err, "Written: %s, %d bytes. Keep apart from it what opens it.\n", path, n)
	return nil
}

func (r *change) into(ctx context.Context, out *os.File, question io.Reader) (int64, error) {
	resp, err := r.ask(ctx, r.api, "application/json", question)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(out, resp.Body)
	if err == nil && n != resp.ContentLength {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return n, fail(exitUnreachable, "the export was cut off: %w", err)
	}
	return n, out.Sync()
}

// ask posts a body and answers with the response of a success.
func (r *change) ask(ctx context.Context, path, kind string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", "https://"+r.address+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", kind)
	patient := *r.client
	patient.Timeout = 0
	resp, err := patient.Do(req)
	if errors.Is(err, errOtherKey) {
		return nil, fail(exitVerification, "%s shows another certificate than before: something may stand between you and the box. Compare with its console", r.address)
	}
	if err != nil {
		return nil, fail(exitUnreachable, "reaching the box at %s: %w", r.address, err)
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		text, err := r.text(resp)
		if err != nil {
			return nil, err
		}
		return nil, &refusal{resp.StatusCode, reason(text)}
	}
	return resp, nil
}

// found is what the box says of a file.
type found struct {
	ID           string    `json:"id"`
	Box          string    `json:"box"`
	Version      string    `json:"version"`
	Made         time.Time `json:"made"`
	Parts        []string  `json:"parts"`
	People       int       `json:"people"`
	Owner        string    `json:"owner"`
	Place        string    `json:"place"`
	Targets      int       `json:"targets"`
	Certificates string    `json:"certificates"`
	Lists        []string  `json:"lists"`
	ListsOn      bool      `json:"lists_on"`
	Links        int       `json:"links"`
	Mirror       string    `json:"mirror"`
}

// importTaken is what came of an import.
type importTaken struct {
	Done    []string           `json:"done"`
	Notes   []string           `json:"notes,omitempty"`
	Lists   *control.Candidate `json:"lists,omitempty"`
	Network *control.Candidate `json:"network,omitempty"`
	SignIn  bool               `json:"sign_in,omitempty"`
}

func importCommand() *cobra.Command {
	var f changeFlags
	var phrase, identity string
	var only []string
	var yes, force bool
	c := &cobra.Command{
		Use:   "import FILE",
		Short: "Put the configuration of a file in the place of that of a box",
		Long: `Put the configuration of a file that gatehouse export wrote in the place of that of a box.
What is in the file is shown first. Each part that is taken replaces what is there: people,
place, targets, certificates, updates, lists; network only if named with --only.

The keys of the box stay its own. Everybody signs in anew afterwards, with the password and
the second factor of the file. Allowlists and network go back after a minute unless they
are kept, which this command does over a new connection.`,
		Example: "  gatehouse import --passphrase file:phrase office.age\n  gatehouse import --identity file:key.txt --only people,targets --yes office.age",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (phrase == "") == (identity == "") {
				return fail(exitUsage, "say what opens the file: --passphrase, or --identity")
			}
			if err := errors.Join(checkSecretFlag("passphrase", phrase), checkSecretFlag("identity", identity)); err != nil {
				return err
			}
			if err := oneStdin(phrase, identity, f.who.password, f.who.code); err != nil {
				return err
			}
			secret, err := openingSecret(phrase, identity, cmd.InOrStdin())
			if err != nil {
				return err
			}
			file, err := os.Open(args[0])
			if err != nil {
				return fail(exitNotFound, "opening the export: %w", err)
			}
			defer file.Close()
			return f.signedIn(cmd, "/api/v1/import", func(ctx context.Context, r *change) error {
				return r.importFile(ctx, file, secret, only, yes, force)
			})
		},
	}
	f.register(c)
	c.Flags().StringVar(&phrase, "passphrase", "", "read the passphrase that opens the file from file:`PATH` or -")
	c.Flags().StringVar(&identity, "identity", "", "read the secret key that opens the file, as age-keygen writes it, from file:`PATH`")
	c.Flags().StringSliceVar(&only, "only", nil, "take these `PARTS` alone: people, place, targets, certificates, updates, lists, network")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&force, "force", false, "also allowlists that cut off the own address: they go back after a minute unless kept from elsewhere")
	return c
}

// openingSecret is the name of the form's field, and its text.
func openingSecret(phrase, identity string, in io.Reader) (secret [2]string, err error) {
	if phrase != "" {
		text, err := readSecret("passphrase", phrase, in)
		return [2]string{"passphrase", text}, err
	}
	path, ok := strings.CutPrefix(identity, "file:")
	if !ok {
		return secret, fail(exitUsage, "--identity takes file:PATH: a file of keys has more than one line")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return secret, fail(exitNotFound, "reading --identity: %w", err)
	}
	if len(b) > maxSecret {
		return secret, fail(exitUsage, "--identity: more than %d bytes", maxSecret)
	}
	return [2]string{"identity", string(b)}, nil
}

func (r *change) importFile(ctx context.Context, file *os.File, secret [2]string, only []string, yes, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*moveWait)
	defer cancel()
	f, err := r.look(ctx, file, secret)
	if err != nil {
		return err
	}
	f.print(r.err)
	if err := r.agreed(yes, "What is taken replaces what is on the box, and everybody signs in anew."); err != nil {
		return fail(exitConflict, "nothing was changed")
	}
	var t importTaken
	if _, err := r.call(ctx, "POST", r.api+"/take", map[string]any{"id": f.ID, "only": only, "force": force}, &t); err != nil {
		return err
	}
	if err := r.keepTaken(ctx, t); err != nil {
		return err
	}
	if r.asJSON {
		return printJSON(r.out, t)
	}
	fmt.Fprintf(r.out, "Taken: %s.\n", printable(strings.Join(t.Done, ", ")))
	for _, n := range t.Notes {
		fmt.Fprintln(r.out, printable(n))
	}
	if t.SignIn {
		fmt.Fprintln(r.err, "Other people are those of the box now: sign in as one of them with gatehouse login.")
	}
	return nil
}

// keepTaken keeps what waits, over new connections.
func (r *change) keepTaken(ctx context.Context, t importTaken) error {
	for api, c := range map[string]*control.Candidate{"/api/v1/allowlists": t.Lists, "/api/v1/network": t.Network} {
		if c == nil {
			continue
		}
		k := *r
		k.api, k.keep = api, true
		if err := k.offer(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// look sends the file, which is opened and read there, and not taken yet.
func (r *change) look(ctx context.Context, file *os.File, secret [2]string) (f found, err error) {
	read, write := io.Pipe()
	form := multipart.NewWriter(write)
	go func() { // ends with the request, which closes the pipe
		err := form.WriteField(secret[0], secret[1])
		if err == nil {
			var part io.Writer
			if part, err = form.CreateFormFile("file", "export.age"); err == nil {
				_, err = io.Copy(part, file)
			}
		}
		write.CloseWithError(errors.Join(err, form.Close()))
	}()
	defer read.Close()
	resp, err := r.ask(ctx, r.api, form.FormDataContentType(), read)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	text, err := r.text(resp)
	if err != nil {
		return f, err
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return f, fmt.Errorf("%s does not answer as a Gatehouse does: %w", r.address, err)
	}
	return f, nil
}

func (f found) print(out io.Writer) {
	fmt.Fprintf(out, "The configuration of %s, version %s, made %s.\n", printable(f.Box), printable(f.Version), f.Made.UTC().Format("2006-01-02 15:04Z"))
	for _, p := range f.Parts {
		text := map[string]string{
			"people": fmt.Sprintf("%d, owned by %s", f.People, f.Owner), "place": f.Place, "targets": fmt.Sprint(f.Targets), "certificates": f.Certificates,
			"lists": strings.Join(f.Lists, ", "), "network": fmt.Sprintf("%d links; taken only with --only", f.Links), "updates": "mirror " + f.Mirror,
		}[p]
		fmt.Fprintf(out, "  %-13s %s\n", printable(p), printable(text))
	}
}
