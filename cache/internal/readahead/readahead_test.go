package readahead

import "testing"

func TestTracker(t *testing.T) {
	const size = 1 << 30
	k := Tracker{}
	var fetched int64
	for i := range int64(500) { // random reads, a page each
		off := (i*7_919 + 13) * 104_729 % size / 4096 * 4096
		r := k.Saw(dense(off, 4096, true), size, 0)
		fetched += r.To - r.From + int64(r.Count)*r.N
	}
	if fetched > 32<<20 {
		t.Errorf("random reads: %d bytes were to be fetched ahead", fetched)
	}
	k = Tracker{}
	var upTo int64
	for off := int64(0); off < 256<<20; off += 128 << 10 {
		if r := k.Saw(dense(off, 128<<10, true), size, 0); r.From < r.To {
			if r.From < upTo {
				t.Fatalf("[%d,%d) after %d", r.From, r.To, upTo)
			}
			upTo = r.To
		}
		if off > 2*steady && upTo < off+steady {
			t.Fatalf("at %d only fetched ahead up to %d", off, upTo)
		}
	}
	if upTo < 256<<20+aheadMost/2 {
		t.Errorf("sequential: fetched ahead up to %d", upTo)
	}
	k = Tracker{}
	for off := int64(0); off < 256<<20; off += 128 << 10 {
		if r := k.Saw(dense(off, 128<<10, false), size, 0); r != (Reach{}) {
			t.Fatalf("fetches %+v for a reader of what is here", r)
		}
	}
}

// TestTrackerFromTheStart reads 2 MiB from a file's start, and from its
// middle: who begins where the file begins will probably read all of it,
// and has 4 MiB ahead of it after the first; who reads a bit of the middle
// does not pay for more than the third part of it again.
func TestTrackerFromTheStart(t *testing.T) {
	const size, n = 1 << 30, 128 << 10
	for _, first := range []int64{0, size / 2} {
		k := Tracker{}
		upTo := first
		for off := first; off < first+2<<20; off += n {
			upTo = max(upTo, k.Saw(Access{Off: off, N: n, From: off, To: off + n, Missing: true}, size, 0).To)
		}
		ahead := upTo - (first + 2<<20)
		if first == 0 && ahead < 4<<20 || first > 0 && ahead > 1<<20 {
			t.Errorf("read from %d on: %d bytes were fetched ahead", first, ahead)
		}
	}
}

// TestTrackerAcrossHoles has a sequential reader whose reads the kernel
// swaps, in a file that is mostly holes: a few data in every megabyte. It
// must stay the one reader it is.
func TestTrackerAcrossHoles(t *testing.T) {
	const mib, data = 1 << 20, 20 << 10
	k := Tracker{}
	var upTo int64
	for i := int64(0); i < 4096; i++ {
		at := i ^ 1 // every two are swapped
		r := k.Saw(Access{Off: at * mib, N: mib, From: at * data, To: (at + 1) * data, Missing: true}, 4096*data, 0)
		upTo = max(upTo, r.To)
		if read := i * data; read > 2*steady && upTo < min(read+steady, 4000*data) {
			t.Fatalf("after %d bytes only fetched ahead up to %d", read, upTo)
		}
	}
}

// TestTrackerSteps reads at equal distances, forwards and backwards.
func TestTrackerSteps(t *testing.T) {
	const size, n = 1 << 30, 64 << 10
	for _, step := range []int64{8 << 20, -8 << 20, -n} {
		k := Tracker{}
		want := map[int64]bool{}
		first := int64(size) / 2
		late := 0
		for i := range int64(40) {
			off := first + i*step
			if i > strideSteps && !want[off] {
				late++
			}
			r := k.Saw(dense(off, n, !want[off]), size, 0)
			if r.From < r.To {
				t.Fatalf("step %d: fetches %+v", step, r)
			}
			for j := range int64(r.Count) {
				if at := r.Off + j*r.Step; want[at] {
					t.Fatalf("step %d: %d is fetched twice", step, at)
				} else {
					want[at] = true
				}
			}
		}
		if late > 1 {
			t.Errorf("step %d: %d of 40 reads were not foreseen", step, late)
		}
		if len(want) > 40+strideAhead {
			t.Errorf("step %d: %d steps were fetched ahead", step, len(want))
		}
	}
}

// TestTrackerWithoutRoom reads on from the start where what is fetched is
// held in memory: no more is fetched ahead than that holds, and not less
// often.
func TestTrackerWithoutRoom(t *testing.T) {
	const most, size, step = 8 << 20, 1 << 30, 1 << 20
	var k Tracker
	ahead := int64(0)
	for off := int64(0); off < size/2; off += step {
		r := k.Saw(Access{Off: off, N: step, From: off, To: off + step, Missing: true, Most: most}, size, 0)
		if r.From < r.To {
			if r.To > off+step+most {
				t.Fatalf("at %d it is fetched up to %d", off, r.To)
			}
			ahead = r.To
		}
		if off > 64<<20 && ahead < off+most/2 {
			t.Fatalf("at %d it is fetched up to %d only", off, ahead)
		}
	}
}

// dense is a read of a file without holes.
func dense(off, n int64, missing bool) Access {
	return Access{Off: off, N: n, From: off, To: off + n, Missing: missing}
}
