package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside"
)

// nameText returns a guest's name for printing: escaped on a terminal, else
// unchanged, as in ls.
func nameText(name string, escape bool) string {
	if !escape {
		return name
	}
	var b strings.Builder
	for i, r := range name {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(name[i:], "\uFFFD"):
			fmt.Fprintf(&b, `\x%02x`, name[i])
		case r == '\\':
			b.WriteString(`\\`)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// typeLetters are the first letters of ls -l, and typeNames the types in
// --json.
var (
	typeLetters = map[vfs.Type]byte{
		vfs.Regular: '-', vfs.Directory: 'd', vfs.Symlink: 'l', vfs.CharDevice: 'c',
		vfs.BlockDevice: 'b', vfs.FIFO: 'p', vfs.Socket: 's',
	}
	typeNames = map[vfs.Type]string{
		vfs.Regular: "file", vfs.Directory: "directory", vfs.Symlink: "symlink", vfs.CharDevice: "char-device",
		vfs.BlockDevice: "block-device", vfs.FIFO: "fifo", vfs.Socket: "socket",
	}
)

// guestMode returns a mode as ls -l prints it.
func guestMode(f *inside.File) string {
	letter, ok := typeLetters[vfs.Type(f.Type)]
	if !ok {
		letter = '?'
	}
	b := []byte(modeText(uint32(f.Mode) & 0o777))
	b[0] = letter
	for _, special := range []struct {
		bit         uint16
		at          int
		with, alone byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if f.Mode&special.bit == 0 {
			continue
		}
		if b[special.at] == 'x' {
			b[special.at] = special.with
		} else {
			b[special.at] = special.alone
		}
	}
	return string(b)
}

// lsTime returns a time as ls -l prints it: with the year instead of the
// clock if it is more than half a year from now.
func lsTime(t, now time.Time) string {
	const halfYear = 31556952 * time.Second / 2
	if t.IsZero() {
		return "?"
	}
	if age := now.Sub(t); age < 0 || age > halfYear {
		return t.Local().Format("Jan _2  2006")
	}
	return t.Local().Format("Jan _2 15:04")
}

// mark returns what ls adds to a name of an overlay's upper layer.
func mark(f *inside.File) string {
	switch {
	case f.Broken != "":
		return "  (damaged)"
	case f.Whiteout:
		return "  (deleted)"
	case f.Opaque:
		return "  (hides the image's)"
	case f.Metacopy:
		return "  (metadata only)"
	}
	return ""
}

// guestJSON is a guest's file in the JSON output, one object for each line.
type guestJSON struct {
	Path     string    `json:"path"`
	Base64   string    `json:"path_base64,omitempty"` // of a path that is not UTF-8
	Type     string    `json:"type"`
	Inode    uint64    `json:"inode"`
	Mode     string    `json:"mode"` // octal
	Links    uint32    `json:"links"`
	UID      uint32    `json:"uid"`
	GID      uint32    `json:"gid"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified,omitzero"`
	Changed  time.Time `json:"changed,omitzero"`
	Accessed time.Time `json:"accessed,omitzero"`
	Target   string    `json:"target,omitempty"`
	Major    uint32    `json:"major,omitempty"`
	Minor    uint32    `json:"minor,omitempty"`
	Whiteout bool      `json:"whiteout,omitempty"`
	Opaque   bool      `json:"opaque,omitempty"`
	Metacopy bool      `json:"metacopy,omitempty"`
	Error    string    `json:"error,omitempty"`
}

func newGuestJSON(path string, f *inside.File) guestJSON {
	j := guestJSON{
		Path: path, Type: typeNames[vfs.Type(f.Type)], Inode: f.Inode, Mode: fmt.Sprintf("%04o", f.Mode), Links: f.Links,
		UID: f.UID, GID: f.GID, Size: f.Size, Modified: f.Modified, Changed: f.Changed, Accessed: f.Accessed,
		Target: f.Target, Major: f.Major, Minor: f.Minor, Whiteout: f.Whiteout, Opaque: f.Opaque, Metacopy: f.Metacopy, Error: f.Broken,
	}
	j.Base64 = notText(path)
	return j
}

// notText returns a name that JSON cannot hold in base64, or "".
func notText(name string) string {
	if utf8.ValidString(name) {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(name))
}

// printLine writes v as JSON on one line.
func printLine(w io.Writer, v any) error {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, escapeJSON(b.String()))
	return err
}
