// Package doctor finds out whether a mount would work on this machine, what
// it would lack, and what to do about it. It tries the operations and leaves
// nothing behind.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cocoonstack/epochfs/internal/mounting"
)

// Level is the severity of a finding.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Note    Level = "note"    // a mount works, with limitations
	Problem Level = "problem" // a mount does not work
)

// Check is one finding.
type Check struct {
	Name  string
	Level Level
	Found string // one sentence, which may contain text from elsewhere
	Do    string // what to do about it, preferably a command; or ""
	Err   error  // of a problem: its kind of failure
}

// Options select what to check.
type Options struct {
	Config    mounting.Config
	Reference string // "" for no registry
	Cocoon    string // value of the environment variable that names its binary
}

// Run runs all checks and returns the most important ones first. It returns
// an error for an invalid reference.
func Run(ctx context.Context, opts Options) ([]Check, error) {
	if opts.Reference != "" {
		if _, err := opts.Config.Reference(opts.Reference); err != nil {
			return nil, err
		}
	}
	var all []Check
	cacheChecks, probe := checkCache(&opts.Config)
	if probe != nil {
		defer probe.Close()
	}
	all = append(all, checkFUSE(probe)...)
	all = append(all, checkHelpers()...)
	if opts.Reference != "" {
		all = append(all, checkRegistry(ctx, &opts.Config, opts.Reference)...)
	}
	all = append(all, cacheChecks...)
	return append(all, checkSandbox(ctx), checkCocoon(ctx, opts.Cocoon)), nil
}

// Err returns what keeps a mount from working, or nil. It has the first
// problem's kind.
func Err(all []Check) error {
	var names []string
	var first error
	for _, c := range all {
		if c.Level != Problem {
			continue
		}
		names = append(names, c.Name)
		if first == nil {
			first = c.Err
		}
	}
	if first == nil {
		return nil
	}
	if len(names) > 1 {
		return fmt.Errorf("a mount would not work (%d problems, the first is %s): %w", len(names), names[0], first)
	}
	return fmt.Errorf("a mount would not work (%s): %w", names[0], first)
}

func ok(name, format string, args ...any) Check {
	return Check{Name: name, Level: OK, Found: fmt.Sprintf(format, args...)}
}

func note(name, do, format string, args ...any) Check {
	return Check{Name: name, Level: Note, Found: fmt.Sprintf(format, args...), Do: do}
}

// problem returns a Problem with the error that a mount would fail with.
func problem(name, do string, err error) Check {
	return Check{Name: name, Level: Problem, Found: err.Error(), Do: do, Err: err}
}

// isRoot reports whether the user has root's user ID.
func isRoot() bool { return os.Geteuid() == 0 }

// withKind adds a kind to an error without changing its text.
type withKind struct {
	error
	kind error
}

func (e *withKind) Is(target error) bool { return errors.Is(e.kind, target) }
func (e *withKind) Unwrap() error        { return e.error }
