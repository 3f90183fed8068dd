package ext4

import "math/bits"

// Versions of the hash of names, in the root of a directory's index. Three
// more are the same with unsigned characters.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTea
	hashUnsigned // how far the unsigned ones are away
)

// hashEnd is the hash that no name may have, since it ends a walk.
const hashEnd = 0xfffffffe

// hash returns the hash of a name, and false for a version that is not known.
func (f *FS) hash(name string, version uint8) (uint32, bool) {
	unsigned := f.unsignedHash
	if version >= hashUnsigned {
		unsigned = true
		version -= hashUnsigned
	}
	var h uint32
	switch version {
	case hashLegacy:
		h = legacyHash(name, unsigned)
	case hashHalfMD4:
		state := f.hashSeed
		for rest := name; rest != ""; rest = rest[min(32, len(rest)):] {
			var in [8]uint32
			pack(in[:], rest, unsigned)
			halfMD4(&state, &in)
		}
		h = state[1]
	case hashTea:
		state := f.hashSeed
		for rest := name; rest != ""; rest = rest[min(16, len(rest)):] {
			var in [4]uint32
			pack(in[:], rest, unsigned)
			tea(&state, &in)
		}
		h = state[0]
	default:
		return 0, false
	}
	h &^= 1
	if h == hashEnd {
		h -= 2
	}
	return h, true
}

// character is a byte as C's char, which is signed on some machines.
func character(c byte, unsigned bool) uint32 {
	if unsigned {
		return uint32(c)
	}
	return uint32(int32(int8(c)))
}

func legacyHash(name string, unsigned bool) uint32 {
	h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for k := range len(name) {
		h := h1 + (h0 ^ character(name[k], unsigned)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		h0, h1 = h, h0
	}
	return h0 << 1
}

// pack fills words with the characters of a name, the first one in the
// highest byte, and pads with the name's length.
func pack(words []uint32, name string, unsigned bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	name = name[:min(len(name), 4*len(words))]
	for k := range words {
		word := pad
		for c := 4 * k; c < min(len(name), 4*k+4); c++ {
			word = word<<8 + character(name[c], unsigned)
		}
		words[k] = word
	}
}

// halfMD4 is MD4's transformation with half of its steps: fs/ext4/hash.c
// names the order of words and shifts.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		shift [4]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range rounds {
		for step, word := range r.order {
			a = bits.RotateLeft32(a+r.mix(b, c, d)+in[word]+r.add, r.shift[step%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}

// tea is 16 rounds of the Tiny Encryption Algorithm, with the name as key.
func tea(state *[4]uint32, key *[4]uint32) {
	x, y, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9e3779b9
		x += (y<<4 + key[0]) ^ (y + sum) ^ (y>>5 + key[1])
		y += (x<<4 + key[2]) ^ (x + sum) ^ (x>>5 + key[3])
	}
	state[0] += x
	state[1] += y
}
