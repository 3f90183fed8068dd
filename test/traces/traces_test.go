package traces

import "testing"

// The memories of the family have the data, and the changes, that are
// spoken of where they are measured.
func TestFamily(t *testing.T) {
	t.Parallel()
	f, err := ReadFamily()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m1", "m2", "m3"} {
		s := f.Snapshots[name]
		m, err := s.Map(f.Page, 0)
		if err != nil {
			t.Fatal(err)
		}
		if m.Size() != 1<<30 || m.DataSize() < 290e6 || m.DataSize() > 300e6 {
			t.Errorf("%s: %d bytes of data in %d", name, m.DataSize(), m.Size())
		}
		if part, err := s.Map(f.Page, 64<<20); err != nil || part.Size() != 64<<20 || part.DataSize() > 64<<20 {
			t.Errorf("%s, the first 64 MiB: %v", name, err)
		}
	}
	pages := int64(0)
	for _, r := range f.Changed["m1-m2"] {
		pages += r[1]
	}
	if pages*f.Page < 35e6 || pages*f.Page > 45e6 {
		t.Errorf("%d pages changed", pages)
	}
}

// Every page that was touched is one of the memory's.
func TestTouches(t *testing.T) {
	t.Parallel()
	touched, err := ReadTouches()
	if err != nil {
		t.Fatal(err)
	}
	if len(touched.Touches) < 10000 {
		t.Errorf("%d touches", len(touched.Touches))
	}
	for _, x := range touched.Touches {
		if x[1] < 0 || x[1] >= touched.Size/touched.Page {
			t.Fatalf("page %d of a memory of %d bytes", x[1], touched.Size)
		}
	}
}
