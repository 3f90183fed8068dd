package main

import (
	"fmt"
	"html"
	"math"
	"os"
	"strings"
)

// draw writes a plot of all lines with a goal: a bar each, as long as its
// figure beside its limit, on a logarithmic scale. Left of the line in the
// middle is better than the goal.
func (r *report) draw(file string) error {
	var b strings.Builder
	const width, left, step, half = 980, 470, 26, 220
	var lines []*line
	for _, l := range r.Lines {
		if l.Sense != no && l.Figure > 0 && l.Limit > 0 {
			lines = append(lines, l)
		}
	}
	height := 60 + step*len(lines)
	middle := left + half
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="20" text-anchor="end">better than the goal ←</text><text x="%d" y="20">→ short of it</text>`+"\n", middle-8, middle+8)
	for _, f := range []float64{0.25, 0.5, 1, 2, 4} {
		x := float64(middle) + half/2*math.Log2(f)/2
		fmt.Fprintf(&b, `<path d="M%.1f 30V%d" stroke="%s"/><text x="%.1f" y="%d" text-anchor="middle" fill="#666">%g × goal</text>`+"\n",
			x, height-24, map[bool]string{true: "#333", false: "#ddd"}[f == 1], x, height-8, f)
	}
	for i, l := range lines {
		bad := l.Figure / l.Limit
		if l.Sense == atLeast {
			bad = 1 / bad
		}
		x := float64(middle) + half/2*math.Max(-2, math.Min(2, math.Log2(bad)/2))
		y, color := 34+step*i, "#c2410c"
		if l.Met {
			color = "#15803d"
		}
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="16" fill="%s"/>`+"\n",
			math.Min(x, float64(middle)), y, math.Abs(x-float64(middle)), color)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, y+13, html.EscapeString(clip(l.Work, 72)))
		cells := l.cells()
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s (%s %s)</text>`+"\n", left+2*half+8, y+13, number(l.Figure), l.Sense, strings.TrimPrefix(cells[6], string(l.Sense)+" "))
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// clip shortens text to n runes.
func clip(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return text
}
