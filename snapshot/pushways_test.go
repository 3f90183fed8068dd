package snapshot_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"

	ociregistry "github.com/cocoonstack/epochfs/registry"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
	"github.com/cocoonstack/epochfs/test/tier"
)

// particulars are registries that do not take what others take.
func particulars() map[string]func() *registrytest.Particular {
	stuck := func(before, n int64) string { return fmt.Sprintf("0-%d", max(before, n)-1) }
	return map[string]func() *registrytest.Particular{
		"plain":          func() *registrytest.Particular { return &registrytest.Particular{} },
		"416 over 4 MiB": func() *registrytest.Particular { return &registrytest.Particular{MaxPatch: 4 * mib} },
		"201, same Range": func() *registrytest.Particular {
			return &registrytest.Particular{Taken: 201, Range: stuck, NoStatus: true}
		},
		"PUT only":       func() *registrytest.Particular { return &registrytest.Particular{NoPatch: http.StatusMethodNotAllowed} },
		"one PATCH":      func() *registrytest.Particular { return &registrytest.Particular{NoSecond: 400, NoWhole: 404} },
		"no pieces":      func() *registrytest.Particular { return &registrytest.Particular{NoRanged: 415, NoWhole: 404} },
		"413 over 6 MiB": func() *registrytest.Particular { return &registrytest.Particular{MaxBody: 6 * mib} },
	}
}

// Whatever a registry takes, what is pushed there is what the export had,
// from every kind of input; finding out costs one piece. What can be read
// once only, and must be known before it is sent, is the one exception.
func TestPushToParticularRegistries(t *testing.T) {
	t.Parallel()
	data := make([]byte, 17*mib+9)
	artifacttest.Fill(data, 1<<40)
	files := []artifacttest.File{
		{Name: "cow.raw", Data: data[:mib]}, {Name: "memory-ranges", Data: data[mib:]}, {Name: "state.json", Data: []byte("{}")},
	}
	export := artifacttest.Tar(artifacttest.Envelope, files)
	for kind, start := range particulars() {
		for source, opts := range map[string]snapshot.PushOptions{
			"cocoon":     {},
			"cocoon, v2": {Chunk: 4 * mib},
			"file":       {Input: bytes.NewReader(export)},
			"stdin":      {Input: io.MultiReader(bytes.NewReader(export))},
			"spool":      {Input: io.MultiReader(bytes.NewReader(export)), Spool: true, SpoolDir: t.TempDir()},
		} {
			again := source == "cocoon" || source == "spool" // both read the source again, as a file does
			if again && kind != "PUT only" && kind != "201, same Range" {
				continue
			}
			if file, ok := opts.Input.(*bytes.Reader); ok {
				opts.Input = io.NewSectionReader(file, 0, file.Size()) // its own
			}
			t.Run(kind+", "+source, func(t *testing.T) {
				if source != "stdin" {
					tier.Long(t, "sends 17 MB to each of many registries")
				}
				t.Parallel()
				reg := start()
				f := registrytest.NewFront(t, reg)
				r := clientOf(t, f)
				opts.Name = "vm"
				_, err := (&snapshot.Pusher{Uploader: r, Cocoon: &exporting{tars: [][]byte{export}}}).Push(t.Context(), opts)
				if reg.Wasted() > 16*mib+64<<10 {
					t.Errorf("%d bytes for nothing", reg.Wasted())
				}
				if kind == "PUT only" && source == "stdin" {
					var e *ociregistry.Error
					if !errors.As(err, &e) || e.Status != http.StatusMethodNotAllowed || e.Message != "no PATCH here" {
						t.Error(err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				art, err := snapshot.Load(t.Context(), r, "vm", "latest", snapshot.LoadOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for i, file := range art.Files {
					if !holds(t, snapshot.DownloaderPayloads(r, "vm"), file, files[i].Data) {
						t.Errorf("%s has other bytes", file.Name)
					}
				}
			})
		}
	}
}
