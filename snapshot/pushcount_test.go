package snapshot_test

import (
	"bytes"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// What a push says that it sent is what the registry got, and with what was
// there already it is what progress is told of; also where another
// repository has it. Few requests are made for it.
func TestPushTellsWhatWasSent(t *testing.T) {
	const chunks = 12
	f := registrytest.Before(t, registrytest.Debian(t, registrytest.DebianOptions{}).URL)
	data := make([]byte, chunks*mib)
	artifacttest.Fill(data, 77)
	changed := bytes.Clone(data)
	changed[5*mib]++
	changed[9*mib]++
	for _, c := range []struct {
		name, from  string
		data        []byte
		sent        int64 // bytes of chunks
		heads, puts int   // of chunks
	}{
		// One after another, the first four are asked for.
		{"base", "", data, chunks * mib, 4, chunks},
		{"base", "", changed, 2 * mib, chunks, 2},
		{"other", "base", changed, 0, chunks, 0},
		{"other", "base", data, 0, chunks, 0},
		{"third", "nowhere", data, chunks * mib, chunks, chunks},
	} {
		var told atomic.Int64
		f.Reset()
		tar := artifacttest.Tar(artifacttest.Envelope, []artifacttest.File{{Name: "memory-ranges", Data: c.data}})
		res, err := (&snapshot.Pusher{Uploader: clientOf(t, f)}).Push(t.Context(), snapshot.PushOptions{
			Name: c.name, MountFrom: c.from, Input: bytes.NewReader(tar), Chunk: mib, Concurrency: 1,
			OnBytes: func(n int64) { told.Add(n) },
		})
		if err != nil {
			t.Fatal(err)
		}
		small := res.TotalSize - chunks*mib // the config
		if res.SentBytes < c.sent || res.SentBytes > c.sent+small || res.SentBytes+res.ThereBytes != res.TotalSize || told.Load() != res.TotalSize {
			t.Errorf("%s from %q: %+v, progress was told of %d bytes", c.name, c.from, res, told.Load())
		}
		var heads, puts int
		for _, q := range f.Requests() {
			switch {
			case q.Method == http.MethodHead && q.IsBlob():
				heads++
			case q.Method == http.MethodPut && !q.IsManifest():
				puts++
			}
		}
		// One more for the config.
		if heads < c.heads || heads > c.heads+1 || puts < c.puts || puts > c.puts+1 {
			t.Errorf("%s from %q: %d questions, %d uploads", c.name, c.from, heads, puts)
		}
		if got := f.Counts().Received - int64(len(res.ManifestBytes)); got != res.SentBytes {
			t.Errorf("%s from %q: the registry got %d bytes, told were %d", c.name, c.from, got, res.SentBytes)
		}
	}
}
