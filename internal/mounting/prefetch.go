package mounting

import "fmt"

// Prefetch says what is fetched before anybody reads it.
type Prefetch string

// The values of Prefetch.
const (
	PrefetchNone  Prefetch = "none"
	PrefetchSmall Prefetch = "small" // files under 1 MiB
	PrefetchAll   Prefetch = "all"
)

// smallFile bounds the files of PrefetchSmall, in stored bytes.
const smallFile = 1 << 20

// Set makes Prefetch a flag's value.
func (p *Prefetch) Set(s string) error {
	switch v := Prefetch(s); v {
	case PrefetchNone, PrefetchSmall, PrefetchAll:
		*p = v
		return nil
	}
	return fmt.Errorf("it is none, small or all")
}

// String returns the value as it is given on the command line.
func (p *Prefetch) String() string { return string(*p) }

// Type names the kind of value in help texts.
func (p *Prefetch) Type() string { return "none|small|all" }

// Prefetch begins to fetch. It returns at once; readers go first.
func (o *Opened) Prefetch(which Prefetch) error {
	for _, f := range o.Artifact.Files {
		if which == PrefetchNone || which == PrefetchSmall && f.StoredSize() >= smallFile {
			continue
		}
		open, err := o.File(f)
		if err != nil {
			return err
		}
		open.Prefetch()
	}
	return nil
}
