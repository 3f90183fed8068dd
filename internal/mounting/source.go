package mounting

import (
	"context"
	"io"
)

// offline is a source of bytes that has none.
type offline struct{}

func (offline) OpenBlob(context.Context, string, int64, int64, int64) (io.ReadCloser, bool, error) {
	return nil, false, final{ErrOffline}
}

// final is an error that trying again does not mend.
type final struct{ error }

func (final) Temporary() bool { return false }
func (f final) Unwrap() error { return f.error }
