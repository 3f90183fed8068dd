package fat

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

// entrySize is the size of an entry of a directory.
const entrySize = 32

// Attributes of entries. One with the first four of them is a part of a long
// name.
const (
	attrReadOnly  = 0x01
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLong      = 0x0f
)

// entry is a parsed entry.
type entry struct {
	inode              uint64
	long, short        string
	attributes         byte
	cluster            uint32
	size               int64
	modified, accessed time.Time
}

func (e *entry) kind() vfs.Type {
	if e.attributes&attrDirectory != 0 {
		return vfs.Directory
	}
	return vfs.Regular
}

func (e *entry) name() string {
	if e.long != "" {
		return e.long
	}
	return e.short
}

// parse reads the fields of an entry but for its long name.
func (f *FS) parse(b []byte, inode uint64) *entry {
	e := &entry{
		inode: inode, attributes: b[11], short: shortName(b),
		cluster: uint32(le.Uint16(b[26:])), size: int64(le.Uint32(b[28:])),
		modified: date(le.Uint16(b[24:]), le.Uint16(b[22:])), accessed: date(le.Uint16(b[18:]), 0),
	}
	if f.bits == 32 {
		e.cluster |= uint32(le.Uint16(b[20:])) << 16
	}
	return e
}

// entry reads the entry that is a file's number.
func (f *FS) entry(inode uint64) (*entry, error) {
	if inode > uint64(f.pages.Size())/entrySize {
		return nil, fmt.Errorf("%w: FAT entry %d", vfs.ErrDamaged, inode)
	}
	b, err := f.pages.Bytes(int64(inode)*entrySize, entrySize)
	if err != nil {
		return nil, err
	}
	return f.parse(b, inode), nil
}

// date decodes the two words of a time, which is local; the zone is not
// known, and is taken as UTC.
func date(day, clock uint16) time.Time {
	return time.Date(1980+int(day>>9), time.Month(max(1, day>>5&15)), max(1, int(day&31)),
		int(clock>>11), int(clock>>5&63), int(clock&31)*2, 0, time.UTC)
}

var errFound = errors.New("found")

// entries visits the entries of a directory that are in use, also the one
// with the volume's label.
func (f *FS) entries(inode uint64, visit func(*entry) error) error {
	var l longName
	parse := func(b []byte, at int64) error {
		for ; len(b) >= entrySize; b, at = b[entrySize:], at+entrySize {
			switch {
			case b[0] == 0:
				return errFound // the rest was never used
			case b[0] == 0xe5:
				l = longName{}
				continue
			case b[11]&0x3f == attrLong:
				l.add(b)
				continue
			}
			e := f.parse(b, uint64(at)/entrySize)
			e.long = l.take(b)
			if strings.HasPrefix(e.short, ".") && (e.short == "." || e.short == "..") {
				continue
			}
			if err := visit(e); err != nil {
				return err
			}
		}
		return nil
	}
	err := f.blocks(inode, parse)
	if err == errFound {
		return nil
	}
	return err
}

// blocks visits the pieces of a directory, each with its place.
func (f *FS) blocks(inode uint64, visit func(b []byte, at int64) error) error {
	cluster := f.rootCluster
	if inode != rootInode {
		e, err := f.entry(inode)
		if err != nil {
			return err
		}
		if e.kind() != vfs.Directory {
			return fmt.Errorf("inode %d: %w", inode, fs.ErrInvalid)
		}
		if cluster = e.cluster; cluster == 0 {
			return fmt.Errorf("%w: FAT directory %d has no clusters", vfs.ErrDamaged, inode)
		}
	} else if !f.hasRootChain {
		b, err := f.pages.Bytes(f.root, int(f.rootSize))
		if err != nil {
			return err
		}
		return visit(b, f.root)
	}
	c, err := f.chain(cluster, maxDirectory)
	if err != nil {
		return err
	}
	var hints []vfs.Extent
	for k, r := range c.runs {
		hints = append(hints, vfs.Extent{Offset: r.at, Length: c.end(k) - r.start})
	}
	f.pages.Prefetch(hints)
	for _, h := range hints {
		b, err := f.pages.Bytes(h.Offset, int(h.Length))
		if err != nil {
			return err
		}
		if err := visit(b, h.Offset); err != nil {
			return err
		}
	}
	return nil
}

// end is where a run ends in the file.
func (c *chain) end(k int) int64 {
	if k+1 < len(c.runs) {
		return c.runs[k+1].start
	}
	return c.length
}

// ReadDir visits a directory's entries.
func (f *FS) ReadDir(inode uint64, visit func(vfs.DirEntry) error) error {
	var stopped error
	err := f.entries(inode, func(e *entry) error {
		if e.attributes&attrVolume != 0 {
			return nil
		}
		if name := e.name(); name == "" || strings.ContainsAny(name, "/\x00") {
			return fmt.Errorf("%w: FAT directory %d: the name %q", vfs.ErrDamaged, inode, name)
		}
		stopped = visit(vfs.DirEntry{Name: e.name(), Inode: e.inode, Type: e.kind()})
		return stopped
	})
	if stopped != nil {
		return stopped
	}
	return err
}

// Lookup finds a name, long or short, in any case; an exact one first.
func (f *FS) Lookup(dir uint64, name string) (uint64, error) {
	var exact, folded uint64
	err := f.entries(dir, func(e *entry) error {
		switch {
		case e.attributes&attrVolume != 0:
		case e.name() == name:
			exact = e.inode
			return errFound
		case folded == 0 && (strings.EqualFold(e.name(), name) || strings.EqualFold(e.short, name)):
			folded = e.inode
		}
		return nil
	})
	switch {
	case err != nil:
		return 0, err
	case exact != 0:
		return exact, nil
	case folded != 0:
		return folded, nil
	}
	return 0, fmt.Errorf("%q: %w", name, fs.ErrNotExist)
}

// longName collects the entries of a long name, which come before the short
// one, the last part first.
type longName struct {
	units    []uint16
	next     byte // the number of the part that must follow
	checksum byte
	whole    bool
}

// maxParts are 20 parts of 13 units: 255 and an end.
const maxParts = 20

func (l *longName) add(b []byte) {
	number := b[0] & 0x3f
	if b[0]&0x40 != 0 {
		*l = longName{next: number, checksum: b[13]}
	}
	if number == 0 || number > maxParts || number != l.next || b[13] != l.checksum {
		*l = longName{}
		return
	}
	var part []uint16
	for _, r := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for at := r[0]; at < r[1]; at += 2 {
			part = append(part, le.Uint16(b[at:]))
		}
	}
	l.units = append(part, l.units...)
	l.next--
	l.whole = l.next == 0
}

// take returns the long name of the short entry that follows it, and "" if
// there is none or it is another's.
func (l *longName) take(short []byte) string {
	defer func() { *l = longName{} }()
	sum := byte(0)
	for _, c := range short[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if !l.whole || sum != l.checksum {
		return ""
	}
	units := l.units
	for k, u := range units {
		if u == 0 {
			units = units[:k]
			break
		}
	}
	return string(utf16.Decode(units))
}

// shortName decodes a name of 8 and 3 characters. Two bits say that a part
// is to be shown in lower case.
func shortName(b []byte) string {
	if b[11]&(attrVolume|attrDirectory) == attrVolume && b[11]&attrLong != attrLong {
		return strings.TrimRight(oem(b[:11]), " ")
	}
	base, extension := strings.TrimRight(oem(b[:8]), " "), strings.TrimRight(oem(b[8:11]), " ")
	if b[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if b[12]&0x10 != 0 {
		extension = strings.ToLower(extension)
	}
	if extension == "" {
		return base
	}
	return base + "." + extension
}

// upper437 are the characters from 128 on of code page 437.
var upper437 = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")

// oem decodes characters of code page 437, in which 5 stands for e5 at a
// name's beginning.
func oem(b []byte) string {
	var s strings.Builder
	for k, c := range b {
		if k == 0 && c == 5 {
			c = 0xe5
		}
		if c < 128 {
			s.WriteByte(c)
		} else {
			s.WriteRune(upper437[c-128])
		}
	}
	return s.String()
}
