package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/cert/order"
	"gatehouse/appliance/cert/pair"
)

// certificateFlags are those of every verb.
type certificateFlags struct {
	address            string
	who                signIn
	asJSON             bool
	newCA              bool
	wait               bool
	sure               bool
	acme               keeper.ACMESettings
	roots              string
	chainFile, keyFile string
}

// certificateRun is one verb at work, signed in.
type certificateRun struct {
	certificateFlags
	*box
	in  io.Reader
	out io.Writer
	err io.Writer
}

const certificateHelp = `Show and choose the certificate that browsers see at a box.

The box always has a certificate that it signed itself; tools pin that one, and
see it whatever browsers see. Besides it there can be one of the box's own CA, of
an ACME server such as Let's Encrypt, or one that is brought.`

func certificateCommand() *cobra.Command {
	var f certificateFlags
	verb := func(use, short, example string, args cobra.PositionalArgs, run func(*certificateRun, context.Context, []string) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Example: example, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, func(ctx context.Context, r *certificateRun) error { return run(r, ctx, args) })
		}}
	}
	const who = " --email ann@example.com --password file:password --code -"
	self := verb("self", "Use the one that the box signed itself", "  gatehouse certificate use self"+who, cobra.NoArgs, (*certificateRun).useSelf)
	ca := verb("ca", "Use the box's own CA, and make it first if there is none", "  gatehouse certificate use ca"+who, cobra.NoArgs, (*certificateRun).useCA)
	ca.Flags().BoolVar(&f.newCA, "new", false, "make a new root; the old one has to be removed from every device")
	acme := verb("acme NAME…", "Use an ACME server, for names that lead to the box", "  gatehouse certificate use acme gate.example.net --agree --wait"+who+
		"\n  gatehouse certificate use acme gate.lan.example --directory https://ca.lan.example/acme/directory --roots ca.pem --agree"+who, cobra.MinimumNArgs(1), (*certificateRun).useACME)
	acme.Flags().StringVar(&f.acme.Directory, "directory", order.LetsEncrypt, "the `URL` of the server's directory")
	acme.Flags().StringVar(&f.acme.Challenge, "challenge", order.HTTP01, "http-01 (port 80) or tls-alpn-01 (port 443)")
	acme.Flags().StringVar(&f.acme.Email, "contact", "", "an e-mail `ADDRESS` for the server's warnings")
	acme.Flags().StringVar(&f.roots, "roots", "", "a `FILE` of PEM certificates that vouch for the server, in place of the public ones")
	acme.Flags().BoolVar(&f.acme.Agreed, "agree", false, "accept the server's terms")
	brought := verb("brought", "Use the one that was brought before", "  gatehouse certificate use brought"+who, cobra.NoArgs, (*certificateRun).useBrought)
	use := group("use", "Choose where the certificate comes from", self, ca, acme, brought)
	show := verb("show", "Show what is used, until when, and what went wrong", "  gatehouse certificate show --json"+who, cobra.NoArgs, (*certificateRun).show)
	imp := verb("import", "Bring a certificate with its key", "  gatehouse certificate import --chain fullchain.pem --key privkey.pem"+who, cobra.NoArgs, (*certificateRun).bring)
	imp.Flags().StringVar(&f.chainFile, "chain", "", "a `FILE` in PEM: the box's certificate first, then those that signed it")
	imp.Flags().StringVar(&f.keyFile, "key", "", "a `FILE` with the key in PEM")
	renew := verb("renew", "Get a new certificate from the source now", "  gatehouse certificate renew --wait"+who, cobra.NoArgs, (*certificateRun).renew)
	for _, c := range []*cobra.Command{ca, acme, renew} {
		c.Flags().BoolVar(&f.wait, "wait", false, "wait until it is there, at most four minutes")
	}
	revoke := verb("revoke", "Revoke the certificate of the ACME server", "  gatehouse certificate revoke --yes"+who, cobra.NoArgs, (*certificateRun).revoke)
	revoke.Flags().BoolVar(&f.sure, "yes", false, "mean it: it cannot be used again")
	c := group("certificate", "Say which certificate browsers see", show, use, imp, renew, revoke)
	c.Long = certificateHelp
	p := c.PersistentFlags()
	p.StringVar(&f.address, "box", "", "the `ADDRESS` of the box; the only known one if not given")
	p.StringVar(&f.who.email, "email", "", "sign in as `ADDRESS` for this one go; else the session of gatehouse login is used")
	p.StringVar(&f.who.password, "password", "", "read the password from file:`PATH` or -")
	p.StringVar(&f.who.code, "code", "", "read the code of the second factor, or a recovery code, from file:`PATH` or -")
	p.BoolVar(&f.asJSON, "json", false, "print JSON")
	return c
}

func (f *certificateFlags) run(cmd *cobra.Command, do func(context.Context, *certificateRun) error) error {
	if err := signedInSomewhere(f.who); err != nil {
		return err
	}
	var args []string
	if f.address != "" {
		args = []string{f.address}
	}
	b, _, err := askStatus(cmd.Context(), args, "")
	if err != nil {
		return err
	}
	r := &certificateRun{certificateFlags: *f, box: b, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
	return b.as(cmd.Context(), f.who, r.in, func(ctx context.Context) error { return do(ctx, r) })
}

func (r *certificateRun) view(ctx context.Context) (keeper.View, error) {
	var v keeper.View
	_, err := r.call(ctx, "GET", "/api/v1/certificates", nil, &v)
	return v, err
}

func (r *certificateRun) show(ctx context.Context, _ []string) error {
	v, err := r.view(ctx)
	if err != nil {
		return err
	}
	return r.print(v)
}

func (r *certificateRun) print(v keeper.View) error {
	if r.asJSON {
		return printJSON(r.out, v)
	}
	line := func(name, format string, a ...any) {
		fmt.Fprintf(r.out, "%-10s%s\n", name, printable(fmt.Sprintf(format, a...)))
	}
	line("Source", "%s", v.Source)
	if c := v.Certificate; c != nil {
		use := map[bool]string{true: "in use", false: "not in use"}[v.Serving]
		line("For", "%s (%s)", strings.Join(c.Names, ", "), use)
		line("Until", "%s, from %s", c.Until.Format(time.RFC3339), c.Issuer)
		line("SHA-256", "%s", c.SHA256)
	}
	if !v.Renewal.IsZero() {
		line("Renewal", "from %s", v.Renewal.Format(time.RFC3339))
	}
	if v.Root != nil {
		line("Own CA", "%s, SHA-256 %s", v.Root.Name, v.Root.SHA256)
	}
	if v.Busy {
		line("Now", "a certificate is being got")
	}
	if v.Trouble.Text != "" {
		line("Last try", "%s: %s", v.Trouble.At.Format(time.RFC3339), v.Trouble.Text)
		line("Next try", "%s", v.Trouble.Next.Format(time.RFC3339))
	}
	if v.Problem != "" {
		line("Note", "%s", v.Problem)
	}
	return nil
}

// change asks for something and shows what came of it.
func (r *certificateRun) change(ctx context.Context, verb string, question any) error {
	var v keeper.View
	if _, err := r.call(ctx, "POST", "/api/v1/certificates/"+verb, question, &v); err != nil {
		return conflict(err)
	}
	if r.wait {
		return r.await(ctx, v.Trouble.Failures)
	}
	return r.print(v)
}

// conflict is the exit code of a refusal that is not about who asks.
func conflict(err error) error {
	if r, ok := err.(*refusal); ok && r.status != 401 {
		return fail(exitConflict, "nothing was changed: %w", err)
	}
	return err
}

// await looks every second until the source gave what it was asked for.
func (r *certificateRun) await(ctx context.Context, failures int) error {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	fmt.Fprintln(r.err, "Waiting for the certificate …")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fail(exitUnreachable, "no certificate within four minutes: see gatehouse certificate show")
		case <-tick.C:
		}
		v, err := r.view(ctx)
		switch {
		case err != nil:
			return err
		case v.Busy:
		case v.Trouble.Failures > failures:
			return fail(exitFailure, "no certificate: %s", printable(v.Trouble.Text))
		case v.Certificate != nil && v.Serving:
			return r.print(v)
		case v.Problem != "":
			return fail(exitConflict, "no certificate: %s", printable(v.Problem))
		}
	}
}

func (r *certificateRun) useSelf(ctx context.Context, _ []string) error {
	return r.change(ctx, "use", keeper.Choice{Source: keeper.Self})
}

func (r *certificateRun) useCA(ctx context.Context, _ []string) error {
	return r.change(ctx, "use", keeper.Choice{Source: keeper.CA, NewCA: r.newCA})
}

func (r *certificateRun) useBrought(ctx context.Context, _ []string) error {
	return r.change(ctx, "use", keeper.Choice{Source: keeper.Brought})
}

func (r *certificateRun) useACME(ctx context.Context, names []string) error {
	r.acme.Names = slices.Clone(names)
	if r.roots != "" {
		b, err := readPEM("roots", r.roots, pair.MaxChainBytes)
		if err != nil {
			return err
		}
		r.acme.Roots = string(b)
	}
	return r.change(ctx, "use", keeper.Choice{Source: keeper.ACME, ACME: r.acme})
}

func (r *certificateRun) bring(ctx context.Context, _ []string) error {
	if r.chainFile == "" || r.keyFile == "" {
		return fail(exitUsage, "give --chain FILE and --key FILE")
	}
	chain, err := readPEM("chain", r.chainFile, pair.MaxChainBytes)
	if err != nil {
		return err
	}
	key, err := readPEM("key", r.keyFile, pair.MaxKeyBytes)
	if err != nil {
		return err
	}
	return r.change(ctx, "import", map[string]string{"chain": string(chain), "key": string(key)})
}

func (r *certificateRun) renew(ctx context.Context, _ []string) error {
	return r.change(ctx, "renew", struct{}{})
}

func (r *certificateRun) revoke(ctx context.Context, _ []string) error {
	if !r.sure {
		return fail(exitUsage, "a revoked certificate cannot be used again: say --yes if you mean it")
	}
	return r.change(ctx, "revoke", struct{}{})
}

func readPEM(name, path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fail(exitNotFound, "reading --%s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading --%s: %w", name, err)
	}
	if int64(len(b)) > most {
		return nil, fail(exitUsage, "--%s: %s has more than %d bytes", name, path, most)
	}
	return b, nil
}
