// Command epochfs mounts VM snapshots from an OCI registry, and moves them
// between registries and cocoon.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cocoonstack/epochfs/fs"
	"github.com/cocoonstack/epochfs/internal/inside/reader"
	"github.com/cocoonstack/epochfs/internal/keeper"
	"github.com/cocoonstack/epochfs/internal/logging"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

func main() {
	if keeper.Is() { // before anything that a keeper does not use is set up
		os.Exit(keeper.Main(keeperLog))
	}
	if fs.IsTry() {
		os.Exit(fs.TryMain())
	}
	if sandbox.Is() {
		os.Exit(reader.Main())
	}
	os.Exit(run(os.Args))
}

// keeperLog returns a keeper's log, which goes where the workers' lines go.
func keeperLog(json bool) *slog.Logger {
	l, err := logging.New(logging.Options{JSON: json, Level: slog.LevelWarn})
	if err != nil { // only opening a file can fail
		return slog.Default()
	}
	return l.Logger
}

// run is the whole program except for the exit.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what ignores the first
	root, finish := newRootCmd()
	defer finish()
	switch name := filepath.Base(args[0]); {
	case strings.HasPrefix(name, helperPrefix):
		helper, err := helperArgs(args[1:])
		if err != nil {
			return report(err)
		}
		args = append(args[:1:1], helper...)
	case name == automapName:
		args = append(args[:1:1], automapArgs(args[1:])...)
	}
	root.SetArgs(args[1:])
	if err := root.ExecuteContext(ctx); err != nil {
		return report(err)
	}
	return exitOK
}

// report prints the one line of an error and returns its exit code. An error
// without text was printed by another process.
func report(err error) int {
	code := exitCode(err)
	if line := message(err); line != "" {
		if code == exitUsage {
			line += " (see epochfs help)"
		}
		fmt.Fprintln(os.Stderr, "epochfs: "+line)
	}
	return code
}
