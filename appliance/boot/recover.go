package boot

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"gatehouse/appliance/config"
	"gatehouse/appliance/vault"
)

// Recover is `gatehoused recover`: it opens the data of a hosted Gatehouse by
// its recovery key and seals them anew, so that the next serve opens them by
// itself or by the passphrase given here. The result is the exit code.
func Recover(args []string) int {
	fail := func(code int, err error) int {
		fmt.Fprintln(os.Stderr, "gatehoused recover:", err)
		return code
	}
	sources, err := hostedFlags("recover", `gatehoused recover opens the data by the recovery key and seals them anew for this machine as it is now.

  gatehoused recover --config /etc/gatehouse/gatehouse.toml

It reads the recovery key from standard input, one line, and is refused while gatehoused serve
runs with the same state folder. Where a passphrase opened the data, or shall open them from now
on, give the new one in GATEHOUSE_KEY, here and to serve.

`, args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var cfg config.Config
	if err == nil {
		cfg, err = config.Load(sources)
	}
	if err != nil {
		return fail(2, err)
	}
	if err := shed(cfg.KeyVariable); err != nil {
		return fail(1, err)
	}
	if err := recoverHosted(context.Background(), cfg, os.Stdin, os.Stdout); err != nil {
		return fail(1, err)
	}
	return 0
}

// maxTyped is more than a recovery key has, with all its spaces.
const maxTyped = 200

func recoverHosted(ctx context.Context, cfg config.Config, in io.Reader, out io.Writer) error {
	if _, err := os.Stat(filepath.Join(cfg.State, "meta")); err != nil {
		return fmt.Errorf("there is nothing to recover in the state folder: %w", err)
	}
	unlock, err := lockState(cfg.State)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := hostedConfig(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer clear(c.Passphrase)
	fmt.Fprint(out, "The recovery key, eight groups of seven characters: ")
	typed, err := bufio.NewReader(io.LimitReader(in, maxTyped)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the recovery key: %w", err)
	}
	fmt.Fprintln(out)
	v, err := vault.Recover(ctx, c, typed)
	if err != nil {
		return err
	}
	defer v.Wipe()
	if len(c.Passphrase) > 0 {
		if err := v.SetPassphrase(ctx, c.Passphrase); err != nil {
			return err
		}
		fmt.Fprintf(out, "The data open again, by the passphrase in %s from now on.\n", cfg.KeyVariable)
		return nil
	}
	if v.Note() != "" {
		return errors.New(v.Note())
	}
	fmt.Fprintln(out, "The data open again, by what this machine has.")
	return nil
}
