package main

import (
	"fmt"
	"html"
	"strings"
)

// startBars are the bars of the picture: lines of the row vm by what they end in,
// and what they are called. The first is the reference of all.
var startBars = []struct{ line, name string }{
	{"", "from local files"},
	{packedWithSet, "mounted, with its working set"},
	{packedWithoutSet, "mounted, without"},
	{downloadedFirst, "downloaded first"},
}

// startPicture draws how long a guest's first turn takes, as SVG.
func startPicture(r *report) (string, error) {
	const width, left, right, step, top = 820, 220, 150, 38, 44
	seconds := make([]float64, len(startBars))
	notes := make([]string, len(startBars))
	longest := 0.0
	for i, bar := range startBars {
		l := r.line("vm", bar.line)
		if l == nil {
			return "", fmt.Errorf("no line of the row vm ends in %q", bar.line)
		}
		seconds[i] = l.Ours.median()
		if bar.line == "" {
			seconds[i] = l.Theirs.median()
		}
		notes[i], _, _ = strings.Cut(l.Note, ",")
		longest = max(longest, seconds[i])
	}
	notes[0] = ""
	var b strings.Builder
	height := top + step*len(startBars) + 12
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="14">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="12" y="24" font-weight="bold">Seconds until a resumed VM is done with its first piece of work</text>`+"\n")
	for i, bar := range startBars {
		y := top + step*i
		long := seconds[i] / longest * (width - left - right)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" fill="#333">%s</text>`+"\n", left-10, y+18, html.EscapeString(bar.name))
		fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="26" fill="%s"/>`+"\n", left, y, long, []string{"#94a3b8", "#15803d", "#c2410c", "#c2410c"}[i])
		text := number(seconds[i]) + " s"
		if notes[i] != "" {
			text += ", " + notes[i]
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" fill="#333">%s</text>`+"\n", left+long+8, y+18, html.EscapeString(text))
	}
	b.WriteString("</svg>\n")
	return b.String(), nil
}

// line returns the first line of a row whose work ends in some words.
func (r *report) line(row, end string) *line {
	for _, l := range r.Lines {
		if l.Row == row && strings.HasSuffix(l.Work, end) {
			return l
		}
	}
	return nil
}
