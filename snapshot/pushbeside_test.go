package snapshot_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/internal/artifacttest"
	"github.com/cocoonstack/epochfs/snapshot"
)

// besideEnvelope tells of memory that is worth a second export.
const besideEnvelope = `{"version":1,"config":{"name":"vm","memory":134217728}}`

// besideFiles are a disk that is large, memory after it, and small files.
var besideFiles = sync.OnceValue(func() []artifacttest.File {
	return []artifacttest.File{
		{Name: "config.json", Data: []byte("{}")},
		{Name: "cow.raw", Data: pattern(64*mib + 5)},
		{Name: "memory-ranges", Data: pattern(17*mib + 1)},
		{Name: "state.json", Data: []byte("[]")},
	}
})

var besideExport = sync.OnceValue(func() []byte { return artifacttest.Tar(besideEnvelope, besideFiles()) })

// meeting is a registry that takes blobs two at a time: the first upload
// goes on when a second was begun. Each is asked for again as often as
// breaks says.
type meeting struct {
	*artifacttest.Store
	alone  bool // do not wait
	breaks map[int32]int64
	begun  atomic.Int32
	two    chan struct{}
}

func newMeeting() *meeting {
	return &meeting{Store: artifacttest.NewStore(), two: make(chan struct{})}
}

func (m *meeting) UploadBlob(ctx context.Context, name string, body io.Reader) (string, int64, error) {
	n := m.begun.Add(1)
	if n == 2 {
		close(m.two)
	}
	if !m.alone {
		select {
		case <-m.two:
		case <-ctx.Done():
			return "", 0, ctx.Err()
		case <-time.After(20 * time.Second):
			return "", 0, errors.New("nothing is sent beside it")
		}
	}
	if at, ok := m.breaks[n]; ok {
		if _, err := io.CopyN(io.Discard, body, at); err != nil {
			return "", 0, err
		}
		if _, err := body.(io.Seeker).Seek(0, io.SeekStart); err != nil {
			return "", 0, err
		}
	}
	return m.Store.UploadBlob(ctx, name, body)
}

func (m *meeting) push(t *testing.T, cocoon *exporting) error {
	t.Helper()
	_, err := (&snapshot.Pusher{Uploader: m, Cocoon: cocoon}).Push(t.Context(), snapshot.PushOptions{Name: "vm"})
	if cocoon.open != 0 {
		t.Errorf("%d exports left open", cocoon.open)
	}
	if puts := m.Calls("PutManifest"); err != nil && puts != 0 {
		t.Errorf("%d manifests in spite of %v", puts, err)
	}
	return err
}

// A disk and the memory after it are sent at a time, from two exports;
// either is begun anew from a third.
func TestPushBeside(t *testing.T) {
	for name, breaks := range map[string]map[int32]int64{
		"whole": nil, "both break": {1: 60 * mib, 2: 17 * mib},
	} {
		m := newMeeting()
		m.breaks = breaks
		cocoon := &exporting{tars: [][]byte{besideExport()}}
		if err := m.push(t, cocoon); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkStored(t, m.Store, besideEnvelope, besideFiles())
		if want := 2 + len(breaks); cocoon.starts != want {
			t.Errorf("%s: %d exports, not %d", name, cocoon.starts, want)
		}
	}
}

// A second export that cannot be had, or is not the same, keeps nothing
// from being pushed out of the first.
func TestPushBesideAlone(t *testing.T) {
	other := slices.Clone(besideFiles())
	other[1].Data = other[1].Data[1:]
	for name, second := range map[string][]byte{
		"none": nil, "another size": artifacttest.Tar(besideEnvelope, other),
	} {
		m := newMeeting()
		m.alone = true
		cocoon := &exporting{tars: [][]byte{besideExport(), second}}
		if err := m.push(t, cocoon); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		checkStored(t, m.Store, besideEnvelope, besideFiles())
		if cocoon.starts != 2 {
			t.Errorf("%s: %d exports", name, cocoon.starts)
		}
	}
}

// What either cocoon fails with is what the push fails with.
func TestPushBesideFails(t *testing.T) {
	words := errors.New("cocoon's own words")
	whole, cut := besideExport(), besideExport()[:65*mib]
	for name, tars := range map[string][][]byte{
		"first": {whole[:20*mib], whole}, "second in what it passes": {whole, whole[:20*mib]}, "second in memory": {whole, cut},
	} {
		m := newMeeting()
		m.alone = true
		cocoon := &exporting{tars: tars, fail: words}
		if err := m.push(t, cocoon); !errors.Is(err, words) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := newMeeting()
	m.breaks = map[int32]int64{1: mib}
	changed := artifacttest.Tar(besideEnvelope, besideFiles())
	changed[mib/2]++
	cocoon := &exporting{tars: [][]byte{whole, whole, changed}}
	if err := m.push(t, cocoon); err == nil {
		t.Error("a third export with other bytes is pushed")
	}
}

// Memory that is smaller than what would be read twice for it is not sent
// beside that.
func TestPushNotBeside(t *testing.T) {
	envelope := `{"version":1,"config":{"name":"vm","memory":18874368}}`
	m := newMeeting()
	m.alone = true
	cocoon := &exporting{tars: [][]byte{artifacttest.Tar(envelope, besideFiles())}}
	if err := m.push(t, cocoon); err != nil || cocoon.starts != 1 {
		t.Errorf("%d exports, %v", cocoon.starts, err)
	}
	checkStored(t, m.Store, envelope, besideFiles())
}
