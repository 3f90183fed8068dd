// Package wire defines the messages between the process that reads a guest's
// disk and its parent: their numbers, and the encoding of their fields. Both
// sides treat their input as hostile: a Decoder is bounded by its frame and
// fails permanently on the first invalid field.
package wire

import (
	"encoding/binary"
	"time"
)

// Kinds of frames. The parent sends a Call, and answers each Read; all
// others are the child's. A Done ends the call.
const (
	Call     = 1 + iota // an Op and its arguments
	Bytes               // answers Read
	Failed              // answers Read: the parent knows the reason
	Read                // image, offset, length
	Prefetch            // image, then offset and length of each range; not answered
	Item                // a result; its fields depend on the Op
	Data                // offset, then bytes to the frame's end
	Done                // a Code and a text
)

// Op is the operation of a Call.
type Op byte

// The operations, with their arguments and the fields of their Items.
const (
	Images  Op = 1 + iota // number of images, then of each format, size and base's number plus 1; the first is the disk. Item: the disk's size, whether it lacks a base
	Volumes               // Item: a Volume
	OpenFS                // volume number, whether its upper view. Item: file system number, a Description
	Resolve               // file system, path, whether to follow a last symbolic link. Item: a File
	List                  // file system, inode, whether to stat. Items: Files
	ReadAt                // file system, inode, offset, length. Data
	Extents               // file system, inode. Items: offset, length
	Locate                // file system, inode. Items: offset in the file, length, offset in the disk
	Xattrs                // file system, inode. Items: name, value
	Tree                  // file system, inode: prepares for a walk
	Raw                   // offset, length. Data of the disk that is not zeros
)

// Format is the format of an image.
type Format byte

// Formats.
const (
	FormatRaw Format = iota
	FormatQcow2
)

// Code is the result of a call.
type Code byte

// Codes.
const (
	OK Code = iota
	NotFound
	Invalid // not that type of file
	Damaged
	Unsupported
	NoBase
	Metacopy
	ImageFailed // a Read was answered by Failed
	Other
	codes
)

// Valid reports whether c is a known code.
func (c Code) Valid() bool { return c < codes }

// Bounds of fields.
const (
	MaxRead   = 1 << 20 // bytes of one Read
	MaxRanges = 4096    // of one Prefetch
	MaxName   = 1024    // bytes: 255 UTF-16 units take up to 765
	MaxPath   = 4096
	MaxText   = 512
	MaxXattr  = 64 << 10
)

// Volume is a volume of a disk.
type Volume struct {
	Number       int
	Name         string
	Type, Label  string
	Offset, Size int64
}

// Description describes a whole file system.
type Description struct {
	Type, Label, UUID, State string
	Size                     int64
	HasUpper                 bool // it has an overlay's upper layer
}

// File is a directory entry, or the file at a path.
type File struct {
	Name   string // of an entry; of a file, its path without links
	Inode  uint64
	Type   byte // a vfs.Type
	Stated bool // the fields below are known
	Mode   uint16
	Links  uint32
	UID    uint32
	GID    uint32
	Size   int64
	Blocks int64
	Major  uint32
	Minor  uint32

	Modified, Changed, Accessed time.Time

	Target   string // of a symbolic link
	Whiteout bool   // of an upper layer: marks a deletion
	Opaque   bool   // of an upper layer: hides the directory below
	Metacopy bool   // of an upper layer: its contents are elsewhere
	Broken   string // why the rest could not be read, or ""
}

// Encoder appends fields to B.
type Encoder struct{ B []byte }

// Num appends a number.
func (e *Encoder) Num(n uint64) { e.B = binary.AppendUvarint(e.B, n) }

// Int appends a number that may be negative.
func (e *Encoder) Int(n int64) { e.B = binary.AppendVarint(e.B, n) }

// Text appends a string, cut to most bytes.
func (e *Encoder) Text(s string, most int) {
	s = s[:min(len(s), most)]
	e.Num(uint64(len(s)))
	e.B = append(e.B, s...)
}

// Bool appends a boolean.
func (e *Encoder) Bool(b bool) {
	if b {
		e.B = append(e.B, 1)
	} else {
		e.B = append(e.B, 0)
	}
}

// Time appends a time to the nanosecond.
func (e *Encoder) Time(t time.Time) {
	if t.IsZero() {
		e.Bool(false)
		return
	}
	e.Bool(true)
	e.Int(t.Unix())
	e.Num(uint64(t.Nanosecond()))
}

// Decoder parses fields from B.
type Decoder struct {
	B   []byte
	bad bool
}

// Ok reports whether all fields were present, and nothing else.
func (d *Decoder) Ok() bool { return !d.bad && len(d.B) == 0 }

// Good reports whether all fields so far were present.
func (d *Decoder) Good() bool { return !d.bad }

func (d *Decoder) fail() {
	d.bad, d.B = true, nil
}

// Num parses a number.
func (d *Decoder) Num() uint64 {
	n, size := binary.Uvarint(d.B)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.B = d.B[size:]
	return n
}

// NumBelow parses a number that must be less than limit.
func (d *Decoder) NumBelow(limit uint64) uint64 {
	n := d.Num()
	if n >= limit {
		d.fail()
		return 0
	}
	return n
}

// Int parses a number that may be negative.
func (d *Decoder) Int() int64 {
	n, size := binary.Varint(d.B)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.B = d.B[size:]
	return n
}

// Text parses a string of at most that many bytes.
func (d *Decoder) Text(most int) string {
	n := d.Num()
	if n > uint64(most) || n > uint64(len(d.B)) {
		d.fail()
		return ""
	}
	s := string(d.B[:n])
	d.B = d.B[n:]
	return s
}

// Bool parses a boolean.
func (d *Decoder) Bool() bool {
	if len(d.B) == 0 || d.B[0] > 1 {
		d.fail()
		return false
	}
	b := d.B[0] == 1
	d.B = d.B[1:]
	return b
}

// maxSecond bounds times to years of four digits, as JSON requires.
const maxSecond = 253402300799

// Time parses a time.
func (d *Decoder) Time() time.Time {
	if !d.Bool() {
		return time.Time{}
	}
	s, ns := d.Int(), d.NumBelow(1e9)
	if s < -62135596800 || s > maxSecond {
		return time.Time{} // the guest may have written any value
	}
	return time.Unix(s, int64(ns)).UTC()
}
