package main

import (
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"
)

// usualColumns is the width without a terminal.
const usualColumns = 80

// columns returns the width of the output: COLUMNS, else the terminal's
// width, else 80 characters.
func columns(out io.Writer) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 && n <= 10_000 {
		return n
	}
	if width, _, ok := terminalSize(out); ok {
		return width
	}
	return usualColumns
}

// terminalSize returns the size of the terminal out, if it is one.
func terminalSize(out io.Writer) (width, height int, ok bool) {
	f, isFile := out.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	width, height, err := term.GetSize(int(f.Fd()))
	return width, height, err == nil && width > 0 && height > 0
}

// utf8Terminal reports whether the locale uses UTF-8.
func utf8Terminal() bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := os.Getenv(name); v != "" {
			v = strings.ToUpper(strings.ReplaceAll(v, "-", ""))
			return strings.Contains(v, "UTF8")
		}
	}
	return false
}

// screen shows one text after the other: in the same place of a terminal,
// else separated by empty lines.
type screen struct {
	out   io.Writer
	shown bool
}

func newScreen(out io.Writer) *screen { return &screen{out: out} }

// Control sequences of ECMA-48.
const (
	toTop       = "\x1b[H"
	eraseLine   = "\x1b[K" // from here to its end
	eraseBelow  = "\x1b[J" // from here to the end of the screen
	eraseScreen = "\x1b[2J"
)

func (s *screen) show(text string) error {
	again := s.shown
	s.shown = true
	width, height, ok := terminalSize(s.out)
	if !ok {
		if again {
			text = "\n" + text
		}
		_, err := io.WriteString(s.out, text)
		return err
	}
	var b strings.Builder
	if !again {
		b.WriteString(eraseScreen)
	}
	b.WriteString(toTop)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for _, line := range lines[:min(len(lines), height-1)] {
		if runes := []rune(line); len(runes) > width {
			line = string(runes[:width])
		}
		b.WriteString(line + eraseLine + "\n")
	}
	b.WriteString(eraseBelow)
	_, err := io.WriteString(s.out, b.String())
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
