package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
)

// open opens a reference and prints the notes about it.
func (g *globals) open(ctx context.Context, reference string, timeout time.Duration) (*mounting.Opened, error) {
	return g.openWith(ctx, reference, timeout, func(*mounting.Config) {})
}

// openWith is open with additional settings of one command.
func (g *globals) openWith(ctx context.Context, reference string, timeout time.Duration, more func(*mounting.Config)) (*mounting.Opened, error) {
	cfg, err := g.config(timeout)
	if err != nil {
		return nil, err
	}
	more(&cfg)
	w := g.start(&meter{label: "asking for " + reference})
	o, err := mounting.Open(ctx, reference, cfg)
	w.finish()
	if err != nil {
		return nil, explainKind(err)
	}
	for _, note := range o.Notes {
		g.note("%s", note)
	}
	return o, nil
}

// explainKind adds what a reference could be to an error about what it is.
func explainKind(err error) error {
	if !errors.Is(err, snapshot.ErrKind) {
		return err
	}
	return fmt.Errorf("%w; epochfs mounts VM snapshots and cloud images, not container images", err)
}

// note prints a message that is neither result nor error.
func (g *globals) note(format string, args ...any) {
	if !g.quiet {
		fmt.Fprintln(os.Stderr, "epochfs: "+printable(fmt.Sprintf(format, args...)))
	}
}

// shown is a file as a mount shows it: the envelope, or one of the
// artifact's.
type shown struct {
	name string
	mode uint32
	size int64
	data int64
	file *layout.File // nil for the envelope
	text []byte       // of the envelope
}

// list returns the files of a mount in its order, or the file with the given
// name.
func list(o *mounting.Opened, name string) ([]shown, error) {
	var all []shown
	if text := o.Artifact.Envelope; text != nil {
		n := int64(len(text))
		all = append(all, shown{name: snapshot.EnvelopeName, mode: 0o444, size: n, data: n, text: text})
	}
	for _, f := range o.Artifact.Files {
		all = append(all, shown{name: f.Name, mode: f.Mode & 0o555, size: f.Size(), data: f.PayloadSize(), file: f})
	}
	if name == "" {
		return all, nil
	}
	var names []string
	for _, f := range all {
		if f.name == name {
			return []shown{f}, nil
		}
		names = append(names, f.name)
	}
	if more := len(names) - mostNames; more > 0 {
		names = append(names[:mostNames], fmt.Sprintf("and %d more", more))
	}
	return nil, fmt.Errorf("%s has no file %q: %w; it has %s", o.Reference, name, errNotFound, strings.Join(names, ", "))
}

// mostNames bounds the files that an error names.
const mostNames = 10

// modeText returns a file's mode as ls prints it.
func modeText(mode uint32) string {
	var b strings.Builder
	b.WriteByte('-')
	for i, letter := range "rwxrwxrwx" {
		if mode&(1<<(8-i)) == 0 {
			letter = '-'
		}
		b.WriteRune(letter)
	}
	return b.String()
}
