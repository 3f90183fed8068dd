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

// PullOptions configures Pull.
type PullOptions struct {
	Name        string       // repository
	Tag         string       // or digest; empty: latest
	LocalName   string       // name in cocoon; empty: Name
	Description string       // empty: as the snapshot has it
	Progress    func(string) // a line for each file; may be nil
}

// Pull streams a snapshot into `cocoon snapshot import`. Cocoon is not
// started before manifest and config were found right. When the stream
// breaks, cocoon gets a tar that it must refuse, and removes what it
// made.
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

// Import writes the tar into `cocoon snapshot import`, under the name
// and with the description that opts gives. It returns when cocoon has
// ended. Where both the stream and cocoon failed, it returns the error
// that came first: cocoon's where cocoon stopped reading.
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

// whileListening ends ctx with errGone when cocoon ends before the tar
// does, so that nobody waits for bytes that nobody wants. Runners of
// others are not listened to: their writers say so themselves.
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

// earlyEnd is a cocoon that ended well, as it says, and yet did not take
// the whole tar. How writing to it failed, or what was being waited for
// then, tells nothing of that.
type earlyEnd struct{}

func (*earlyEnd) Error() string {
	return "cocoon snapshot import ended before it had read the whole snapshot"
}

// Unwrap makes it a failure of cocoon's.
func (*earlyEnd) Unwrap() error {
	return &cocoon.Error{Command: "cocoon snapshot import", Err: io.ErrClosedPipe}
}

// finish ends an import and says what went wrong first.
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
