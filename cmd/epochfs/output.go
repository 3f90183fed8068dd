package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/dustin/go-humanize"

	"github.com/cocoonstack/epochfs/internal/text"
)

// printable makes text from elsewhere fit for one line of a terminal.
func printable(s string) string { return text.Line(s) }

// printJSON writes v as indented JSON, without control characters.
func printJSON(w io.Writer, v any) error {
	var raw bytes.Buffer
	enc := json.NewEncoder(&raw)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(w, escapeJSON(raw.String()))
	return err
}

// escapeJSON escapes what encoding/json does not: DEL, the C1 controls, and
// characters that change how a terminal shows the rest.
func escapeJSON(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		if r > 0xffff {
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
			continue
		}
		fmt.Fprintf(&b, `\u%04x`, r)
	}
	return b.String()
}

// size formats a number of bytes.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// timeText formats a local time, or returns unknown if it is zero.
func timeText(t time.Time, layout, unknown string) string {
	if t.IsZero() {
		return unknown
	}
	return t.Local().Format(layout)
}
