//go:build !amd64 && !arm64

package sandbox

import "errors"

// installFilter fails: nobody has tried a filter on this architecture.
func installFilter() error { return errors.ErrUnsupported }
