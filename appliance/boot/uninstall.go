package boot

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"

	"gatehouse/appliance/config"
	"gatehouse/netfilter"
	"gatehouse/netfilter/nft"
)

// Uninstall is `gatehoused uninstall`: it takes out of the kernel what `serve`
// leaves there when it ends, so that a restart is never an open moment. Nothing
// else on the host was ever changed, and the state folder is the owner's to
// remove. The result is the exit code.
func Uninstall(args []string) int {
	sources, err := hostedFlags("uninstall", `gatehoused uninstall removes the rules that gatehoused serve leaves in the kernel when it ends.

  gatehoused uninstall --config /etc/gatehouse/gatehouse.toml

It removes the table inet `+netfilter.Table+` of this network namespace and nothing else, and is refused while
gatehoused serve runs with the same state folder. The state folder stays: it is named, to be
removed by hand.

`, args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var cfg config.Config
	if err == nil {
		cfg, err = config.Load(sources)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused uninstall:", err)
		return 2
	}
	if err := uninstall(cfg.State, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused uninstall:", err)
		return 1
	}
	return 0
}

func uninstall(state string, out io.Writer) error {
	// Held until the end: a program that is started meanwhile would find its
	// rules gone without knowing.
	unlock, err := lockState(state)
	there := !errors.Is(err, fs.ErrNotExist)
	if err != nil && there {
		return err
	}
	if there {
		defer unlock()
	}
	_, err = nft.Counters()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		fmt.Fprintf(out, "There is no table inet %s: nothing of Gatehouse is in the kernel.\n", netfilter.Table)
	case err != nil:
		return fmt.Errorf("looking for the rules, which only root may (CAP_NET_ADMIN): %w", err)
	default:
		if err := nft.Remove(); err != nil {
			return err
		}
		fmt.Fprintf(out, "Removed the table inet %s: nothing of Gatehouse is in the kernel any more.\n", netfilter.Table)
	}
	if there {
		fmt.Fprintf(out, "The state folder %s stays, with keys, database and audit log: remove it to forget all of it.\n", state)
	}
	return nil
}
