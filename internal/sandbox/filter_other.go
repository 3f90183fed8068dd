//go:build !amd64 && !arm64

package sandbox

import "errors"

// installFilter fails: no filter was tried on this architecture.
func installFilter() error { return errors.ErrUnsupported }
