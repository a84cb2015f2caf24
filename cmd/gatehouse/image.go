package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gatehouse/image"
)

func imageCommand() *cobra.Command {
	return group("image", "Build the box's image", imageBuildCommand(), imageClaimCodeCommand(), imageCustomizeCommand(), imageFlashCommand(), imageLockCommand(), imageKeysCommand())
}

func imageBuildCommand() *cobra.Command {
	b := image.Build{}
	c := &cobra.Command{
		Use:   "build",
		Short: "Build kernel, initramfs and disk image",
		Long: `Build the image of the box from Debian's kernel and this repository.

The first build asks the Debian archive for the newest packages and writes what
it used to packages.lock in the output folder; later builds use that lock. With
--lock a build is repeated from the cache, without network. Two builds of one
commit with one lock and one set of keys give the same bytes.

The loader and the system are signed, with the keys of --keys or with
development keys that are made in the output folder when there are none.`,
		Example: "  gatehouse image build\n  gatehouse image build --lock packages.lock --output build",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareBuild(cmd.Context(), &b, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return b.Run(cmd.Context())
		},
	}
	buildFlags(c, &b)
	c.Flags().StringVar(&b.Lock, "lock", "", "repeat the build of this lock `FILE` from the cache, without network")
	c.Flags().StringVar(&b.Keys, "keys", "", "`FOLDER` of the keys to sign with (gatehouse image keys new makes them)")
	c.Flags().StringVar(&b.Program, "program", "cmd/gatehoused", "`FOLDER` of the Go program that becomes /init")
	c.Flags().StringVar(&b.Version, "version", "", "version of the image (from git when empty)")
	return c
}

func imageLockCommand() *cobra.Command {
	b := image.Build{}
	c := &cobra.Command{
		Use:     "lock",
		Short:   "Fetch the newest packages and write packages.lock",
		Example: "  gatehouse image lock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareBuild(cmd.Context(), &b, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return b.Refresh(cmd.Context())
		},
	}
	buildFlags(c, &b)
	return c
}

func buildFlags(c *cobra.Command, b *image.Build) {
	c.Flags().StringVar(&b.Output, "output", "build", "`FOLDER` of the results and the package cache")
	c.Flags().StringVar(&b.Source, "source", ".", "`FOLDER` of the repository")
}

// prepareBuild fills in what follows from the repository.
func prepareBuild(ctx context.Context, b *image.Build, stderr io.Writer) error {
	b.Log = progress(stderr)
	// The box's program erases keys from its memory, which the compiler has to
	// be told of (docs/decisions/0039); whoever says another experiment means it.
	if _, said := os.LookupEnv("GOEXPERIMENT"); !said {
		if err := os.Setenv("GOEXPERIMENT", "runtimesecret"); err != nil {
			return err
		}
	}
	var err error
	if b.Source, err = filepath.Abs(b.Source); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.Source, "go.mod")); errors.Is(err, os.ErrNotExist) {
		return fail(exitUsage, "%s is not the Gatehouse repository: run this at its root or say --source", b.Source)
	}
	if b.Version == "" {
		commit, err := git(ctx, b.Source, "describe", "--always", "--dirty=.changed", "--abbrev=12", "--exclude=*")
		if err != nil {
			return err
		}
		b.Version = release + "+" + commit
	}
	// The commit's time, not the clock's: it is the floor of the box's clock
	// and one commit must give one image.
	b.Built, err = git(ctx, b.Source, "-c", "core.abbrev=12", "log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ")
	return err
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("asking git which commit this is (or say --version): git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// progress logs to a person: no time, no level of what is normal.
func progress(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || (a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo) {
			return slog.Attr{}
		}
		return a
	}}))
}
