package volumes

import (
	"bytes"
	"strings"
	"unicode/utf16"

	"github.com/cocoonstack/epochfs/internal/guestfs/ext4"
	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
)

const (
	// Unknown is the type of an unrecognized volume.
	Unknown = "unknown"
	lvm     = "lvm"

	// LVMDamaged is the type of a physical volume whose metadata cannot be
	// read.
	LVMDamaged = "lvm damaged"
)

// ProbeSize is as much of a volume as the magic numbers need: that of btrfs
// is the last one.
const ProbeSize = 68 << 10

func readHead(img vfs.Image) ([]byte, error) {
	head := make([]byte, min(ProbeSize, img.Size()))
	return head, vfs.ReadFull(img, head, 0)
}

// signatures are the magic numbers of formats, in the places where blkid
// looks for them.
var signatures = []struct {
	kind   string
	offset int
	magic  string
}{
	{"luks", 0, "LUKS\xba\xbe"},
	{"xfs", 0, "XFSB"},
	{"btrfs", 0x10040, "_BHRfS_M"},
	{"swap", 4086, "SWAPSPACE2"},
	{"swap", 65526, "SWAPSPACE2"},
	{"hibernation", 4086, "S1SUSPEND"},
	{"ntfs", 3, "NTFS    "},
	{"bitlocker", 3, "-FVE-FS-"},
	{"exfat", 3, "EXFAT   "},
	{"refs", 3, "ReFS"},
	{"iso9660", 0x8001, "CD001"},
	{"squashfs", 0, "hsqs"},
	{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
	{"f2fs", 1024, "\x10\x20\xf5\xf2"},
	{"raid", 4096, "\xfc\x4e\x2b\xa9"},
	{"raid", 0, "\xfc\x4e\x2b\xa9"},
	{"bcachefs", 4096 + 24, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca"},
}

// Probe returns the format of a volume by its first bytes, and the label
// where that lies there.
func Probe(head []byte) (kind, label string) {
	at := func(offset, n int) []byte {
		if offset+n > len(head) {
			return make([]byte, n)
		}
		return head[offset : offset+n]
	}
	if _, ok := findLabel(head); ok {
		return lvm, ""
	}
	for _, s := range signatures {
		if string(at(s.offset, len(s.magic))) == s.magic {
			return s.kind, signatureLabel(s.kind, at)
		}
	}
	if le.Uint16(at(1024+0x38, 2)) == 0xef53 {
		s := at(1024, 1024)
		if le.Uint32(s[0x60:])&0x8 != 0 {
			return "ext journal", ""
		}
		return ext4.Kind(le.Uint32(s[0x5c:]), le.Uint32(s[0x60:]), le.Uint32(s[0x64:])), ext4.Label(s[0x78:0x88])
	}
	if label, ok := probeFAT(at(0, sector)); ok {
		return "vfat", label
	}
	return Unknown, ""
}

func signatureLabel(kind string, at func(offset, n int) []byte) string {
	switch kind {
	case "xfs":
		return ext4.Label(at(108, 12))
	case "btrfs":
		return ext4.Label(at(0x1012b, 256))
	case "swap":
		return ext4.Label(at(1024+28, 16))
	case "luks":
		if be.Uint16(at(6, 2)) == 2 {
			return ext4.Label(at(24, 48))
		}
	case "iso9660":
		return strings.TrimRight(string(at(0x8028, 32)), " \x00")
	case "erofs":
		return ext4.Label(at(1024+64, 16))
	case "f2fs":
		var units []uint16
		for b := at(1024+124, 128); len(b) >= 2 && (b[0] != 0 || b[1] != 0); b = b[2:] {
			units = append(units, le.Uint16(b))
		}
		return string(utf16.Decode(units))
	}
	return ""
}

// probeFAT recognizes a FAT boot sector by fields that cannot be anything
// else, as the kernel does: it has no magic number that must be there.
func probeFAT(b []byte) (label string, ok bool) {
	size, clusters, fats, media := le.Uint16(b[11:]), b[13], b[16], b[21]
	switch {
	case b[510] != 0x55 || b[511] != 0xaa:
	case size < 512 || size > 4096 || size&(size-1) != 0:
	case clusters == 0 || clusters&(clusters-1) != 0:
	case fats == 0 || fats > 4 || le.Uint16(b[14:]) == 0:
	case media != 0xf0 && media < 0xf8:
	default:
		label = string(b[43:54])
		if le.Uint16(b[22:]) == 0 { // FAT32 has more fields before it
			label = string(b[71:82])
		}
		label = strings.TrimRight(label, " \x00")
		if label == "NO NAME" || bytes.ContainsFunc([]byte(label), func(r rune) bool { return r < ' ' }) {
			label = ""
		}
		return label, true
	}
	return "", false
}
