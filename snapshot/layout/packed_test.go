package layout_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/packed"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
	"github.com/cocoonstack/epochfs/test/packedtest"
)

func packedFile(data []byte, m *sparse.Map) *layout.File {
	f := &layout.File{Name: "cow.raw", Map: m}
	var payload []byte
	for _, s := range m.Segments() {
		payload = append(payload, data[s.Offset:s.Offset+s.Length]...)
	}
	packedtest.Pack(rand.New(rand.NewPCG(1, uint64(len(data)))), f, payload, packed.MinGranule, func([]byte) string { return "" })
	return f
}

// Two packed files differ in the granules whose data differs or lies
// elsewhere, however their granules are packed.
func TestPackedDiffering(t *testing.T) {
	t.Parallel()
	const g = packed.MinGranule
	data := make([]byte, 20*g+100)
	for i := range data {
		data[i] = byte(i / 300)
	}
	changed := bytes.Clone(data)
	changed[5*g+7]++
	changed[len(changed)-1]++
	holed, err := sparse.New([]sparse.Segment{{Offset: 0, Length: 9 * g}, {Offset: 9*g + 4096, Length: int64(len(data)) - 9*g - 4096}}, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	dense := sparse.Dense(int64(len(data)))
	for name, c := range map[string]struct {
		a, b *layout.File
		want []sparse.Segment
	}{
		"equal":   {packedFile(data, dense), packedFile(data, dense), nil},
		"changed": {packedFile(data, dense), packedFile(changed, dense), []sparse.Segment{{Offset: 5 * g, Length: g}, {Offset: 20 * g, Length: 100}}},
		"a hole":  {packedFile(data, dense), packedFile(data, holed), []sparse.Segment{{Offset: 9 * g, Length: g}}},
	} {
		got, err := layout.Differing(t.Context(), c.a, c.b)
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
}
