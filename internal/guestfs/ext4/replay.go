package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// MaxReplayed bounds the blocks of a journal that are replayed, and those that
// it revokes: 1 GiB with blocks of 4 KiB, the largest journal that mke2fs makes
// unasked.
const MaxReplayed = 1 << 18

// unreplayable is the reason why a journal is not replayed, or not to its
// end: the file system can be read, but shows an older state.
type unreplayable string

func (u unreplayable) Error() string { return string(u) }

// replayed are the blocks that a replay would write, sorted by their home,
// and where in the image each lies.
type replayed struct {
	home []uint64
	// at is the block in the log, times two, and one more if it is escaped.
	at []uint64
}

// find returns the block from which a block is to be read.
func (r *replayed) find(number uint64) (at uint64, escaped bool) {
	k, ok := slices.BinarySearch(r.home, number)
	if !ok {
		return number, false
	}
	return r.at[k] >> 1, r.at[k]&1 != 0
}

// from returns the first replayed block that is not before number.
func (r *replayed) from(number uint64) (uint64, bool) {
	k, _ := slices.BinarySearch(r.home, number)
	if k == len(r.home) {
		return 0, false
	}
	return r.home[k], true
}

// next returns the first replayed block after number.
func (r *replayed) next(number uint64) (uint64, bool) { return r.from(number + 1) }

// unescape restores the number at a block's beginning that would have made it
// look like one of the journal's own.
func unescape(b []byte) []byte {
	b = bytes.Clone(b)
	be.PutUint32(b, journalMagic)
	return b
}

// write is a logged block: its home, and its block in the image.
type write struct {
	home, at uint64
	sequence uint32
	escaped  bool
}

// replay finds the blocks of all transactions that were committed, and
// returns the state to be shown. An error is one of the image.
func (f *FS) replay() (state string, err error) {
	l, err := f.openLog()
	var r recovery
	if err == nil && l.start != 0 {
		r = recovery{log: l, revoked: map[uint64]uint32{}}
		err = r.scan()
	}
	var reason unreplayable
	switch {
	case errors.As(err, &reason):
	case errors.Is(err, vfs.ErrDamaged):
		reason = "it is damaged"
	case err != nil:
		return "", fmt.Errorf("ext4 journal: %w", err)
	}
	f.journal = r.overlay()
	if reason == "" {
		return fmt.Sprintf("recovered in memory (%d transactions)", r.transactions), nil
	}
	after := ""
	if r.transactions > 0 {
		after = fmt.Sprintf(" after %d transactions", r.transactions)
	}
	return fmt.Sprintf("journal not replayed%s, %s: may be older than the snapshot", after, reason), nil
}

// recovery is a walk through the log.
type recovery struct {
	log          *journalLog
	writes       []write
	revoked      map[uint64]uint32 // the last transaction that revoked a block
	transactions int
	lastCommit   uint64 // time of the last commit, in seconds
}

// transaction is one transaction of the log, as read so far.
type transaction struct {
	writes  []write
	revoked []uint64
	crc     uint32 // over descriptors and data, as the first version had it
	// doubtful is set by a block whose checksum is wrong: the transaction is
	// an old one, was not written to its end, or is damaged.
	doubtful  bool
	wrongData bool
}

// errEnd means the end of the log: the rest is not part of it.
var errEnd = errors.New("end of the log")

// scan reads transactions until one was not committed.
func (r *recovery) scan() error {
	l := r.log
	at, left := l.start, l.end-l.first
	for sequence := l.sequence; ; sequence++ {
		t, next, err := r.transaction(at, &left, sequence)
		if err == errEnd {
			fast, err := l.fastCommits(sequence)
			if fast {
				return unreplayable("fast commits follow")
			}
			return err
		}
		if err != nil {
			return err
		}
		if len(r.writes)+len(t.writes) > MaxReplayed || len(r.revoked)+len(t.revoked) > MaxReplayed {
			return unreplayable(fmt.Sprintf("it has more than %d blocks", MaxReplayed))
		}
		r.writes = append(r.writes, t.writes...)
		for _, block := range t.revoked {
			r.revoked[block] = sequence
		}
		r.transactions++
		at = next
	}
}

// transaction reads one transaction. left is how many blocks of the ring have
// not been read.
func (r *recovery) transaction(at int64, left *int64, sequence uint32) (*transaction, int64, error) {
	l := r.log
	t := &transaction{crc: ^uint32(0)}
	for ; *left > 0; *left-- {
		b, err := l.block(at)
		if err != nil {
			return nil, 0, err
		}
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != sequence {
			return nil, 0, errEnd
		}
		at = l.after(at)
		switch be.Uint32(b[4:]) {
		case blockDescriptor:
			t.doubtful = t.doubtful || !l.tailOK(b)
			if at, err = r.logged(t, b, at, left, sequence); err != nil {
				return nil, 0, err
			}
		case blockRevoke:
			if !l.tailOK(b) {
				t.doubtful = true
				continue
			}
			err := l.revoked(b, func(block uint64) error {
				if len(t.revoked) == MaxReplayed {
					return unreplayable(fmt.Sprintf("it revokes more than %d blocks", MaxReplayed))
				}
				t.revoked = append(t.revoked, block)
				return nil
			})
			if err != nil {
				return nil, 0, err
			}
		case blockCommit:
			*left--
			return t, at, r.commit(t, b)
		default:
			return nil, 0, errEnd
		}
	}
	return nil, 0, errEnd
}

// logged takes the blocks that follow a descriptor.
func (r *recovery) logged(t *transaction, descriptor []byte, at int64, left *int64, sequence uint32) (int64, error) {
	l := r.log
	old := l.incompat&(journalCsumV2|journalCsumV3) == 0 && l.compat&journalCompatChecksum != 0
	if old {
		t.crc = crc32be(t.crc, descriptor)
	}
	for _, tag := range l.tags(descriptor) {
		if *left--; *left <= 0 {
			return 0, errEnd
		}
		m, err := l.f.mapped(l.inode, at, at+1)
		if err != nil {
			return 0, err
		}
		if m.hole {
			return 0, unreplayable("it has a hole")
		}
		b, err := l.block(at)
		if err != nil {
			return 0, err
		}
		if old {
			t.crc = crc32be(t.crc, b)
		}
		t.wrongData = t.wrongData || !l.dataOK(b, sequence, tag.crc)
		if len(t.writes) == MaxReplayed {
			return 0, unreplayable(fmt.Sprintf("it has more than %d blocks", MaxReplayed))
		}
		if tag.home < l.f.blocks {
			t.writes = append(t.writes, write{tag.home, m.physical, sequence, tag.escaped})
		}
		at = l.after(at)
	}
	return at, nil
}

// commit decides whether a transaction counts. A wrong checksum ends the log
// where it can be that of an older transaction, or of a commit that was not
// written to its end; else the log is damaged, and a mount would refuse it.
func (r *recovery) commit(t *transaction, b []byte) error {
	l := r.log
	seconds := be.Uint64(b[48:])
	if t.doubtful {
		if seconds < r.lastCommit {
			return errEnd
		}
		return unreplayable("a checksum is wrong")
	}
	switch {
	case l.checksummed():
		if !checksumAt(l.seed, b, 16) {
			return errEnd
		}
	case l.compat&journalCompatChecksum != 0:
		// Type 1 is this CRC, in 4 bytes; without one, nothing is compared.
		if b[12] == 1 && b[13] == 4 && be.Uint32(b[16:]) != t.crc {
			return errEnd
		}
	}
	if t.wrongData {
		return unreplayable("a checksum is wrong")
	}
	r.lastCommit = seconds
	return nil
}

// overlay returns the last write of each block that was not revoked by its
// own transaction or a later one.
func (r *recovery) overlay() (o replayed) {
	slices.SortStableFunc(r.writes, func(a, b write) int {
		switch {
		case a.home < b.home:
			return -1
		case a.home > b.home:
			return 1
		}
		return 0
	})
	for _, w := range r.writes {
		if last, ok := r.revoked[w.home]; ok && int32(last-w.sequence) >= 0 {
			continue
		}
		at := w.at << 1
		if w.escaped {
			at |= 1
		}
		if n := len(o.home); n > 0 && o.home[n-1] == w.home {
			o.at[n-1] = at
			continue
		}
		o.home, o.at = append(o.home, w.home), append(o.at, at)
	}
	return o
}

// crc32be is the CRC-32 of Ethernet with the highest bit first, without a
// final inversion: the kernel's crc32_be.
func crc32be(crc uint32, b []byte) uint32 {
	for _, c := range b {
		crc = crc<<8 ^ crcTable[byte(crc>>24)^c]
	}
	return crc
}

var crcTable = func() (table [256]uint32) {
	const polynomial = 0x04c11db7
	for k := range table {
		crc := uint32(k) << 24
		for range 8 {
			carry := crc >> 31
			crc = crc<<1 ^ carry*polynomial
		}
		table[k] = crc
	}
	return table
}()
