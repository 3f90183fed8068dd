//go:build !race

package sandbox

import (
	"errors"
	"strings"
	"testing"
)

// TestMemory has a child take all the memory that it gets. Under the race
// detector there is no limit.
func TestMemory(t *testing.T) {
	t.Parallel()
	for _, opts := range []Options{{}, {NoFilter: true}} {
		c := begin(t, opts)
		_, err := do(c, "memory")
		if !errors.Is(err, ErrMisbehaved) || !strings.Contains(err.Error(), "MiB of memory") {
			t.Errorf("%v: %s", err, c.Said())
		}
	}
}
