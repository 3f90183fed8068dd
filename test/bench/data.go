package main

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

const pageSize = 4096

// dataset is a sparse file whose content follows from its seed, page by
// page, so that it can be made again wherever it has to be compared.
type dataset struct {
	name string // title in the artifact
	m    *sparse.Map
	seed uint64 // files with the same seed have the same payload
	data []byte // the payload, where it is not made from the seed
}

// newDataset spreads data bytes over size bytes in runs, whose lengths
// differ as a guest's do: many of a few pages, a few of many MiB. All are
// whole pages.
func newDataset(name string, size, data int64, runs int, seed uint64) *dataset {
	rng := rand.New(rand.NewPCG(seed, 1))
	lengths := split(rng, data/pageSize, runs)
	gaps := split(rng, (size-data)/pageSize, runs)
	segs := make([]sparse.Segment, 0, runs)
	at := int64(0)
	for i := range lengths {
		at += gaps[i] * pageSize
		n := lengths[i] * pageSize
		segs = append(segs, sparse.Segment{Offset: at, Length: n})
		at += n
	}
	m, err := sparse.New(segs, size)
	if err != nil {
		panic(err) // only a mistake in the lines above
	}
	return &dataset{name: name, m: m, seed: seed}
}

// split cuts pages into n shares of at least one page, with sizes spread
// over four orders of magnitude.
func split(rng *rand.Rand, pages int64, n int) []int64 {
	weights := make([]float64, n)
	var sum float64
	for i := range weights {
		weights[i] = math.Exp(rng.Float64() * math.Log(1e4))
		sum += weights[i]
	}
	shares := make([]int64, n)
	left := pages - int64(n)
	for i, w := range weights {
		extra := int64(w / sum * float64(pages-int64(n)))
		shares[i] = 1 + extra
		left -= extra
	}
	shares[n-1] += left
	return shares
}

// fill writes the payload from off on into p. Both are whole pages.
func (d *dataset) fill(p []byte, off int64) {
	if d.data != nil {
		copy(p, d.data[off:])
		return
	}
	for i := int64(0); i < int64(len(p)); i += pageSize {
		fillPage(p[i:i+pageSize], mix(d.seed<<40+uint64((off+i)/pageSize)))
	}
}

// mix is one step of splitmix64: neighbouring numbers become unlike ones.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// fillPage makes a page as a guest's memory has them: of a hundred, nine
// cannot be compressed, eighteen are nearly empty, the rest are records,
// pointers, and text some of which comes again. Debian 12 with PostgreSQL
// and Python, its page cache full, is 4.25 times smaller in zstd 3 and 4.1
// times in zstd 1; these pages 4.15 and 3.9 times, and a little slower.
func fillPage(p []byte, seed uint64) {
	switch kind := seed % 100; {
	case kind < 9:
		for i := 0; i < pageSize; i += 8 {
			seed = mix(seed)
			binary.LittleEndian.PutUint64(p[i:], seed)
		}
	case kind < 27:
		clear(p)
		binary.LittleEndian.PutUint64(p[seed%500*8:], seed)
	case kind < 66:
		at := seed >> 20 % (proseSize - 256)
		for i := 0; i < pageSize; i += 256 {
			seed = mix(seed)
			copy(p[i:i+256], prose[at:])
			binary.LittleEndian.PutUint64(p[i+int(seed>>32%32*8):], seed)
		}
	case kind < 74:
		for i := 0; i < pageSize; i += 16 {
			seed = mix(seed)
			binary.LittleEndian.PutUint64(p[i:], 0xffff888000000000|seed&0x1fffff8)
			binary.LittleEndian.PutUint64(p[i+8:], seed>>40&0xff)
		}
	default:
		for i := 0; i < pageSize; i += 1024 {
			seed = mix(seed)
			at := seed >> 8 % (proseSize - 1024)
			if seed%3 != 0 {
				at = at % 4096 * 256
			}
			copy(p[i:i+1024], prose[at:])
		}
	}
}

// prose is text of words that are as unequally frequent as a language's.
var prose = makeProse()

const proseSize = 16 << 20

func makeProse() []byte {
	rng := rand.New(rand.NewPCG(7, 7))
	words := make([]string, 4096)
	for i := range words {
		w := make([]byte, 2+rng.IntN(9))
		for j := range w {
			w[j] = byte('a' + rng.IntN(26))
		}
		words[i] = string(w) + " "
	}
	text := make([]byte, 0, proseSize+16)
	for len(text) < proseSize {
		f := rng.Float64()
		text = append(text, words[int(f*f*f*float64(len(words)))]...)
	}
	return text[:proseSize]
}
