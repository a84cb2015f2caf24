// Command gatehoused is every program on the box: the first word says which.
//
//	gatehoused init      PID 1 of our own image (also by being PID 1)
//	gatehoused serve     the same, hosted: on a NAS system, server or container
//	gatehoused recover   opens the data of a hosted one by its recovery key
//	gatehoused uninstall takes out of the kernel what serve leaves there
//	gatehoused network|gateway|console|agent|filter
//	                     a role, started by init and serve and by nobody else
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"gatehouse/appliance/agent"
	"gatehouse/appliance/boot"
	"gatehouse/appliance/console"
	"gatehouse/appliance/control"
	"gatehouse/appliance/filter"
	"gatehouse/appliance/gateway"
	"gatehouse/appliance/network"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/task"
)

// Set at build time.
var (
	version = "0.1.0-dev"
	built   = "2026-11-01T00:00:00Z" // the clock's floor
	final   = ""                     // "yes" in a release
)

const usage = `gatehoused is the program of a Gatehouse box.

  gatehoused serve [--config FILE] [--state DIR] …      run hosted, see gatehoused serve --help
  gatehoused recover [--config FILE] [--state DIR]      open the data by the recovery key, and seal them anew
  gatehoused uninstall [--config FILE] [--state DIR]    remove what serve leaves in the kernel
  gatehoused version

init, network, gateway, console, agent and filter are started by the box itself.
`

func main() { os.Exit(run(os.Args)) }

func run(args []string) int {
	word := filepath.Base(args[0])
	rest := args[1:]
	if word == "gatehoused" || word == "exe" {
		if len(rest) == 0 {
			fmt.Fprint(os.Stderr, usage)
			return 2
		}
		word, rest = rest[0], rest[1:]
	}
	if os.Getpid() == 1 && word != "serve" && word != "recover" && word != "uninstall" {
		word = "init"
	}
	release := boot.Release{Version: version, Built: built, Final: final == "yes"}
	switch word {
	case "init":
		return boot.Init(release)
	case "serve":
		return boot.Serve(release, rest)
	case "recover":
		return boot.Recover(rest)
	case "uninstall":
		return boot.Uninstall(rest)
	case "version", "--version":
		fmt.Println("gatehoused", version)
		return 0
	case "help", "--help", "-h":
		fmt.Print(usage)
		return 0
	}
	if control.Role(word) == control.Filter && len(rest) == 1 {
		return once(rest[0])
	}
	if body, ok := roles[control.Role(word)]; ok {
		return role(control.Role(word), body)
	}
	fmt.Fprintf(os.Stderr, "gatehoused: %q is not a program of this box\n\n%s", word, usage)
	return 2
}

// body is what a role does, once it is confined and connected.
type body func(context.Context, control.Environment, *control.Client, *slog.Logger) error

var roles = map[control.Role]body{
	control.Network: network.Run,
	control.Gateway: gateway.Run,
	control.Console: console.Run,
	control.Agent:   agent.Run,
}

// once runs the role that ends by itself.
func once(order string) int {
	sentence, err := supervise.Confine(control.Filter)
	if err == nil {
		err = filter.Run(order, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatehoused filter:", err, sentence)
		return 125
	}
	return 0
}

// role runs one role to its end. Nothing of it runs before it is confined.
func role(name control.Role, body body) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: plain}))
	sentence, err := supervise.Confine(name)
	if err != nil {
		log.Error("not confined, so not started", "err", err)
		return 125
	}
	log.Info(sentence)
	env, err := control.Inherit()
	if err != nil {
		log.Error("not started", "err", err)
		return 125
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	client, err := control.Dial(env.Control)
	if err != nil {
		log.Error("not started", "err", err)
		return 1
	}
	defer client.Close()
	err = task.Run(ctx, client.Heartbeat(), task.Func(string(name), func(ctx context.Context) error {
		return body(ctx, env, client, log)
	}))
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Error("ended", "err", err)
		return 1
	}
	if ctx.Err() == nil {
		log.Error("ended without being asked to")
		return 1
	}
	return 0
}

// plain leaves the time out: the supervisor stamps each line it takes.
func plain(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}
