// Command gatehouse is the operator's tool: it builds and runs images, takes over a box, and checks what a box hands out.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// sourceVersion is the version that this source is on the way to.
const sourceVersion = "0.1.0"

// exitCode is what the process ends with; scripts rely on the numbers.
type exitCode int

const (
	exitOK           exitCode = 0
	exitFailure      exitCode = 1
	exitUsage        exitCode = 2
	exitDenied       exitCode = 3
	exitNotFound     exitCode = 4
	exitConflict     exitCode = 5
	exitUnreachable  exitCode = 6
	exitVerification exitCode = 7
	exitPartial      exitCode = 8
	exitInterrupted  exitCode = 130
)

// failure is an error that knows its exit code.
type failure struct {
	code exitCode
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// ended is the exit status of what ran at a target: it is passed on, and there is nothing to say.
type ended struct{ code exitCode }

func (e *ended) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// fail gives an error its exit code.
func fail(code exitCode, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // ssh ends its ProxyCommand by it; under nohup it means nothing
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	code := execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(int(code))
}

// execute runs one command line. What stops it before the command begins is
// a mistake in the line itself.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) exitCode {
	root := rootCommand()
	begun := false
	root.PersistentPreRun = func(*cobra.Command, []string) { begun = true }
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	var f *failure
	var e *ended
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &e):
		return e.code
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "gatehouse: interrupted")
		return exitInterrupted
	case errors.As(err, &f):
	case !begun || strings.HasPrefix(err.Error(), "required flag"):
		err = fmt.Errorf("%w\nSee: %s --help", err, cmd.CommandPath())
		f = &failure{exitUsage, err}
	default:
		f = &failure{exitFailure, err}
	}
	fmt.Fprintf(stderr, "gatehouse: %v\n", err)
	return f.code
}

const rootHelp = `Gatehouse is a small computer that lets people in to look after other computers.
This tool builds its image, runs it, takes over a new box, sets it up, and reaches the
machines behind it.

Results go to standard output, everything else to standard error. Secrets are
read from a file (file:PATH) or from standard input (-), never from the command line.`

const rootExample = `  gatehouse setup 192.168.1.40
  gatehouse login
  gatehouse connect nas
  gatehouse audit verify audit/`

const rootExit = `Exit codes: 0 done, 1 failed, 2 wrong usage, 3 denied, 4 not found, 5 conflict,
6 unreachable or timed out, 7 verification failed, 8 partly done, 130 interrupted.`

func rootCommand() *cobra.Command {
	root := group("gatehouse", "Build, run, take over and check a Gatehouse",
		discoverCommand(), setupCommand(), unlockCommand(), statusCommand(), loginCommand(), logoutCommand(),
		targetsCommand(), targetCommand(), connectCommand(), execCommand(), cpCommand(), openCommand(), sessionsCommand(), recordCommand(), sshConfigCommand(),
		exposureCommand(), allowlistCommand(), networkCommand(), clockCommand(), keysCommand(), updateCommand(), exportCommand(), importCommand(), eraseCommand(), statementCommand(), certificateCommand(), caCommand(), tokenCommand(),
		auditCommand(), imageCommand(), runCommand(), manCommand(), versionCommand())
	root.Long = rootHelp + "\n\n" + rootExit
	root.Example = rootExample
	root.SilenceUsage, root.SilenceErrors = true, true
	root.DisableAutoGenTag = true
	return root
}

// group makes a command that only holds others. It is runnable, since cobra
// would otherwise answer an unknown word with the help text and success.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("say what to do: " + names(cmd))
			}
			return fmt.Errorf("%q is not a command of %s: it has %s", args[0], cmd.CommandPath(), names(cmd))
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	c.AddCommand(subs...)
	return c
}

func names(cmd *cobra.Command) string {
	var out []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			out = append(out, sub.Name())
		}
	}
	return strings.Join(out, ", ")
}

// printJSON writes what a --json flag asked for.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func versionCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this tool",
		Example: "  gatehouse version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, commit, goVersion := version()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": v, "commit": commit, "go": goVersion})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "gatehouse %s\n", v)
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// version is the release and, where the build knew it, the commit.
func version() (v, commit, goVersion string) {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return sourceVersion, "", ""
	}
	changed := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				changed = ".changed"
			}
		}
	}
	if commit == "" {
		return sourceVersion, "", info.GoVersion
	}
	return sourceVersion + "+" + commit[:min(12, len(commit))] + changed, commit, info.GoVersion
}
