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
	"gatehouse/image/target"
)

func imageCommand() *cobra.Command {
	return group("image", "Build the box's image", imageBuildCommand(), imageClaimCodeCommand(), imageCustomizeCommand(), imageFlashCommand(), imageLockCommand(), imageKeysCommand(), imageSignCommand(), imageVerifyCommand())
}

func imageBuildCommand() *cobra.Command {
	b := image.Build{}
	var asRelease bool
	var arches, locks []string
	var minimum string
	c := &cobra.Command{
		Use:   "build",
		Short: "Build kernel, initramfs and disk image, or a release",
		Long: `Build the image of the box from Debian's kernel and this repository.

The first build asks the Debian archive for the newest packages and writes what
it used to packages.lock in the output folder; later builds use that lock. With
--lock a build is repeated from the cache, without network. Two builds of one
commit with one lock and one set of keys give the same bytes.

The loader and the system are signed, with the keys of --keys or with
development keys that are made in the output folder when there are none.

--arch says for which machines: amd64, arm64 (boards with UEFI) or arm64-cloud
(virtual machines, with a kernel that knows their TPM). What is not for amd64 has
its target in the names of its files.

With --release it is built of a commit, with keys of your own, and handed out in
the folder release of the output folder: the signed manifest, the system and the
update, the disk images, what they are made of (SPDX), and sums. Manifest keys
that lie elsewhere sign afterwards: gatehouse image sign. A release may have
images for several processors: --arch amd64,arm64, with as many locks, if any.`,
		Example: "  gatehouse image build\n  gatehouse image build --lock packages.lock --output build\n" +
			"  gatehouse image build --arch arm64\n" +
			"  gatehouse image build --release --keys keys --version 1.5.0 --minimum 1.2.0 --arch amd64,arm64",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			targets, err := parseTargets(arches)
			if err != nil {
				return err
			}
			if asRelease {
				return buildRelease(cmd, b, minimum, targets, locks)
			}
			if len(targets) > 1 || len(locks) > 1 {
				return fail(exitUsage, "--arch %s: one image is built at a time; several in a release (--release)", strings.Join(arches, ","))
			}
			b.Target = targets[0]
			if len(locks) == 1 {
				b.Lock = locks[0]
			}
			if minimum != "" {
				return fail(exitUsage, "--minimum says whom a release may update: it goes with --release")
			}
			if err := prepareBuild(cmd.Context(), &b, cmd.ErrOrStderr()); err != nil {
				return err
			}
			if err := b.Run(cmd.Context()); err != nil {
				return err
			}
			if b.Keys == "" {
				b.Log.Info("this is a development build: whoever has its keys updates it; --release --keys FOLDER makes a release")
			}
			return nil
		},
	}
	buildFlags(c, &b)
	c.Flags().BoolVar(&asRelease, "release", false, "make a release in OUTPUT/release")
	c.Flags().Uint64Var(&b.Epoch, "epoch", 0, "`NUMBER` of the epoch: a higher one shuts out all systems before (that of this source when 0)")
	c.Flags().StringVar(&minimum, "minimum", "", "the oldest `VERSION` that the release may update")
	c.Flags().StringSliceVar(&arches, "arch", []string{target.AMD64.Name}, "for which `TARGET`: "+target.Names())
	c.Flags().StringSliceVar(&locks, "lock", nil, "repeat the build of this lock `FILE` from the cache, without network; in a release one for each --arch")
	c.Flags().StringVar(&b.Keys, "keys", "", "`FOLDER` of the keys to sign with (gatehouse image keys new makes them)")
	c.Flags().StringVar(&b.Program, "program", "cmd/gatehoused", "`FOLDER` of the Go program that becomes /init")
	c.Flags().StringVar(&b.Version, "version", "", "version of the image, three numbers for a release (from git when empty)")
	return c
}

func imageLockCommand() *cobra.Command {
	b := image.Build{}
	var arch string
	c := &cobra.Command{
		Use:     "lock",
		Short:   "Fetch the newest packages and write packages.lock",
		Example: "  gatehouse image lock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := parseTarget(arch)
			if err != nil {
				return err
			}
			b.Target = t
			if err := prepareBuild(cmd.Context(), &b, cmd.ErrOrStderr()); err != nil {
				return err
			}
			return b.Refresh(cmd.Context())
		},
	}
	buildFlags(c, &b)
	c.Flags().StringVar(&arch, "arch", target.AMD64.Name, "for which `TARGET`: "+target.Names())
	return c
}

// parseTarget reads --arch.
func parseTarget(name string) (target.Target, error) {
	t, err := target.Parse(name)
	if err != nil {
		return t, fail(exitUsage, "--arch: %w", err)
	}
	return t, nil
}

func parseTargets(names []string) ([]target.Target, error) {
	var out []target.Target
	for _, name := range names {
		t, err := parseTarget(name)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	if len(out) == 0 {
		return nil, fail(exitUsage, "--arch names nothing: it is one or more of %s", target.Names())
	}
	return out, nil
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
		b.Version = sourceVersion + "+" + commit
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
