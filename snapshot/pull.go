package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cocoonstack/epochfs/cocoon"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

// Puller imports snapshots from a registry into cocoon.
type Puller struct {
	Downloader Downloader
	Cocoon     CocoonRunner
}

// PullOptions configure Pull.
type PullOptions struct {
	Name        string       // repository
	Tag         string       // tag or digest; "" for latest
	LocalName   string       // name in cocoon; "" for Name
	Description string       // "" to keep the snapshot's
	Progress    func(string) // receives a line for each file; may be nil
}

// Pull streams a snapshot into `cocoon snapshot import`. It starts cocoon
// only after manifest and config were validated. If the stream breaks,
// cocoon gets a tar that it must refuse, and removes what it made.
func (p *Puller) Pull(ctx context.Context, opts PullOptions) error {
	if opts.Name == "" {
		return errors.New("snapshot pull: name is required")
	}
	if opts.Tag == "" {
		opts.Tag = defaultTag
	}
	if opts.LocalName == "" {
		opts.LocalName = opts.Name
	}
	a, err := Load(ctx, p.Downloader, opts.Name, opts.Tag, LoadOptions{})
	if err != nil {
		return err
	}
	if a.Kind != manifest.KindSnapshot {
		return &kindError{a.Kind}
	}
	if a.Platform != "" && opts.Progress != nil {
		opts.Progress(fmt.Sprintf("  index: taking %s (%s)", a.Platform, a.Digest))
	}
	return a.Import(ctx, p.Cocoon, DownloaderPayloads(p.Downloader, opts.Name), TarOptions{
		LocalName: opts.LocalName, Description: opts.Description, Progress: opts.Progress,
	})
}

// Import writes the tar into `cocoon snapshot import`, with the name and
// description in opts. It returns when cocoon has ended. If both the stream
// and cocoon failed, it returns the error that came first: cocoon's if
// cocoon stopped reading.
func (a *Artifact) Import(ctx context.Context, runner CocoonRunner, src Payloads, opts TarOptions) error {
	stdin, wait, err := runner.Import(ctx, ImportOptions{Name: opts.LocalName, Description: opts.Description})
	if err != nil {
		return fmt.Errorf("start cocoon snapshot import: %w", err)
	}
	listening, stop := whileListening(ctx, stdin)
	defer stop()
	streamErr := a.WriteTar(listening, stdin, src, opts)
	if errors.Is(context.Cause(listening), errGone) && streamErr != nil {
		streamErr = &outputError{streamErr} // whatever was being waited for
	}
	return finish(stdin, wait, streamErr)
}

var errGone = errors.New("cocoon is gone")

// whileListening returns a context that ends with errGone when cocoon ends
// before the tar does, so that a read from the registry does not go on in
// vain. It works only with this package's runner; with others, the next
// write fails.
func whileListening(ctx context.Context, stdin io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	l, ok := stdin.(cocoon.Listener)
	if !ok {
		return ctx, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-l.Gone():
			cancel(errGone)
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// earlyEnd is the error of a cocoon that exited with 0 but did not read the
// whole tar. It replaces the error of writing to cocoon, and of the read
// that was interrupted.
type earlyEnd struct{}

func (*earlyEnd) Error() string {
	return "cocoon snapshot import ended before it had read the whole snapshot"
}

// Unwrap makes it a failure of cocoon's.
func (*earlyEnd) Unwrap() error {
	return &cocoon.Error{Command: "cocoon snapshot import", Err: io.ErrClosedPipe}
}

// finish ends an import and returns the error that came first.
func finish(stdin io.Closer, wait func() error, streamErr error) error {
	closeErr := stdin.Close()
	waitErr := wait()
	switch {
	case isOutput(streamErr) && waitErr != nil:
		return fmt.Errorf("cocoon snapshot import: %w", waitErr)
	case isOutput(streamErr):
		return &earlyEnd{}
	case streamErr != nil:
		return fmt.Errorf("stream snapshot: %w", streamErr)
	case waitErr != nil:
		return fmt.Errorf("cocoon snapshot import: %w", waitErr)
	case closeErr != nil && !errors.Is(closeErr, os.ErrClosed): // a cocoon that has ended closes it too
		return fmt.Errorf("close cocoon stdin: %w", closeErr)
	}
	return nil
}
