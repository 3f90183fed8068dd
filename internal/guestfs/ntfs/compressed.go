package ntfs

import "github.com/cocoonstack/epochfs/internal/guestfs/vfs"

// unit is a decompressed compression unit.
type unit struct {
	inode uint64
	first int64
	data  []byte
}

// maxUnit bounds a compression unit: Windows makes 64 KiB.
const maxUnit = 1 << 20

// readCompressed reads a file whose clusters are compressed in units.
func (f *FS) readCompressed(s *stream, p []byte, off int64, inode uint64) (int, error) {
	n, end := vfs.Clip(p, off, s.size)
	size := f.clusterSize << s.unitBits
	if size > maxUnit {
		return 0, damaged("compression unit of %d bytes", size)
	}
	for done := 0; done < n; {
		at := off + int64(done)
		data, err := f.unit(s, at/size<<s.unitBits, inode)
		if err != nil {
			return done, err
		}
		done += copy(p[done:n], data[at%size:])
	}
	written := max(0, min(int64(n), s.initialized-off))
	clear(p[written:n])
	return n, end
}

// unit returns the compression unit that begins at a cluster: as it is if
// all its clusters are there, zeros if none is, and decompressed else.
func (f *FS) unit(s *stream, first int64, inode uint64) ([]byte, error) {
	f.mu.Lock()
	if u := f.last; u != nil && u.inode == inode && u.first == first {
		f.mu.Unlock()
		return u.data, nil
	}
	f.mu.Unlock()
	clusters := int64(1) << s.unitBits
	present := int64(0)
	for c := first; c < first+clusters; {
		r := s.at(c)
		if r.hole {
			break
		}
		n := min(r.count, first+clusters-c)
		present, c = present+n, c+n
	}
	data := make([]byte, clusters*f.clusterSize)
	if present > 0 {
		raw := data[:present*f.clusterSize]
		if present < clusters {
			raw = make([]byte, present*f.clusterSize)
		}
		for done := 0; done < len(raw); {
			n, err := f.readPieces(s, raw[done:], first*f.clusterSize+int64(done))
			if err != nil {
				return nil, err
			}
			done += n
		}
		if present < clusters {
			if err := lznt1(data, raw); err != nil {
				return nil, err
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = &unit{inode, first, data}
	return data, nil
}

// lznt1 decompresses chunks of 4 KiB, each with a header of its own, into
// out; what they do not fill stays zero. A chunk is made of tags of 8 bits,
// each followed by 8 literals or references, of whose 16 bits the more are
// the distance the further the chunk has come: [MS-XCA] 2.5.
func lznt1(out, in []byte) error {
	const chunk = 4096
	for len(in) >= 2 && len(out) > 0 {
		header := int(le.Uint16(in))
		if header == 0 {
			return nil
		}
		length := header&0xfff + 1
		if in = in[2:]; length > len(in) {
			return damaged("compressed chunk of %d bytes", length)
		}
		part := out[:min(chunk, len(out))]
		if header&0x8000 == 0 {
			copy(part, in[:length])
		} else if err := lznt1Chunk(part, in[:length]); err != nil {
			return err
		}
		in, out = in[length:], out[len(part):]
	}
	return nil
}

func lznt1Chunk(out, in []byte) error {
	n := 0
	for len(in) > 0 {
		tags := in[0]
		in = in[1:]
		for bit := 0; bit < 8 && len(in) > 0; bit++ {
			if tags>>bit&1 == 0 {
				if n == len(out) {
					return damaged("compressed chunk that is too large")
				}
				out[n] = in[0]
				n, in = n+1, in[1:]
				continue
			}
			if len(in) < 2 || n == 0 {
				return damaged("compressed chunk that ends early")
			}
			reference := int(le.Uint16(in))
			in = in[2:]
			lengthBits := 12
			for k := n - 1; k >= 16; k >>= 1 {
				lengthBits--
			}
			distance, length := reference>>lengthBits+1, reference&(1<<lengthBits-1)+3
			if distance > n || length > len(out)-n {
				return damaged("compressed chunk with a reference out of it")
			}
			for range length { // may overlap
				out[n] = out[n-distance]
				n++
			}
		}
	}
	return nil
}
