package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// sample is one quantity in each run.
type sample []float64

func (s sample) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	t := slices.Sorted(slices.Values(s))
	return (t[(len(t)-1)/2] + t[len(t)/2]) / 2
}

// sense is the side of its limit on which a figure meets its goal.
type sense string

const (
	atMost  sense = "≤"
	atLeast sense = "≥"
	no      sense = "" // measured, but without a goal
)

// line is one line of the table: a quantity, its reference from the same
// runs, and how they compare.
type line struct {
	Row       string  `json:"row"` // name of the row it belongs to
	Work      string  `json:"work"`
	Unit      string  `json:"unit"`
	Ours      sample  `json:"epochfs"`
	Reference string  `json:"reference"` // what was run, or why not
	Theirs    sample  `json:"reference_runs,omitempty"`
	Figure    float64 `json:"figure"` // what the goal speaks of: a ratio, or ours
	Sense     sense   `json:"sense,omitempty"`
	Limit     float64 `json:"limit"`
	Met       bool    `json:"met"`
	Note      string  `json:"note,omitempty"`
	Ratio     bool    `json:"ratio"` // Figure is one
}

// timed compares times, pair by pair: the median of ours by theirs is to
// be at most limit.
func timed(work string, ours sample, reference string, theirs sample, s sense, limit float64) *line {
	l := &line{Work: work, Unit: "s", Ours: ours, Reference: reference, Theirs: theirs, Sense: s, Limit: limit, Ratio: true}
	l.Figure = ratios(ours, theirs).median()
	l.judge()
	return l
}

// sped compares times as speeds: theirs by ours is to be at least limit.
func sped(work string, ours sample, reference string, theirs sample, limit float64) *line {
	l := &line{Work: work, Unit: "s", Ours: ours, Reference: reference, Theirs: theirs, Sense: atLeast, Limit: limit, Ratio: true}
	l.Figure = ratios(theirs, ours).median()
	l.judge()
	return l
}

// counted compares a quantity with a fixed limit.
func counted(work, unit string, ours sample, s sense, limit float64) *line {
	l := &line{Work: work, Unit: unit, Ours: ours, Reference: "–", Sense: s, Limit: limit, Figure: ours.median()}
	l.judge()
	return l
}

func (l *line) judge() {
	switch l.Sense {
	case atMost:
		l.Met = l.Figure <= l.Limit
	case atLeast:
		l.Met = l.Figure >= l.Limit
	}
	if math.IsNaN(l.Figure) {
		l.Figure = 0 // JSON has no word for it
		l.Met = false
	}
}

func ratios(a, b sample) sample {
	r := make(sample, min(len(a), len(b)))
	for i := range r {
		r[i] = a[i] / b[i]
	}
	return r
}

// report is the output of --json.
type report struct {
	Version int       `json:"version"`
	Date    time.Time `json:"date"`
	Machine machine   `json:"machine"`
	Commit  string    `json:"commit"`
	Runs    int       `json:"runs"`
	Seconds float64   `json:"seconds"` // seconds of the whole run
	Lines   []*line   `json:"lines"`
	Failed  []string  `json:"failed,omitempty"` // rows that could not be run
}

// write stores the report as JSON.
func (r *report) write(file string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

// print writes the report as a table, which is Markdown too.
func (r *report) print(w io.Writer) {
	rows := [][]string{{"row", "work", "epochfs", "reference", "", "ratio", "goal", "met"}}
	for _, l := range r.Lines {
		rows = append(rows, l.cells())
	}
	width := make([]int, len(rows[0]))
	for _, cells := range rows {
		for i, c := range cells {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	for i, cells := range rows {
		fmt.Fprintln(w, tableLine(cells, width, " "))
		if i == 0 {
			fmt.Fprintln(w, tableLine(make([]string, len(cells)), width, "-"))
		}
	}
	if r.Machine.Load > 0.5 {
		fmt.Fprintf(w, "the machine was busy: load %s before the first row\n", number(r.Machine.Load))
	}
	for _, f := range r.Failed {
		fmt.Fprintln(w, "failed:", f)
	}
}

func tableLine(cells []string, width []int, pad string) string {
	var b strings.Builder
	for i, c := range cells {
		b.WriteString("|" + pad + c + strings.Repeat(pad, width[i]-len([]rune(c))) + pad)
	}
	return b.String() + "|"
}

func (l *line) cells() []string {
	ratio, goal, met := "", "", ""
	if l.Ratio {
		ratio = number(l.Figure) + " ×"
	}
	if l.Sense != no {
		goal = string(l.Sense) + " " + number(l.Limit)
		if l.Ratio {
			goal += " ×"
		}
		met = "no"
		if l.Met {
			met = "yes"
		}
	}
	work := l.Work
	if l.Note != "" {
		work += " (" + l.Note + ")"
	}
	return []string{l.Row, work, l.Ours.show(l.Unit), l.Reference, l.Theirs.show(l.Unit), ratio, goal, met}
}

// show is the median and the spread.
func (s sample) show(unit string) string {
	if len(s) == 0 {
		return ""
	}
	text := number(s.median())
	if len(s) > 1 {
		text += fmt.Sprintf(" (%s–%s)", number(slices.Min(s)), number(slices.Max(s)))
	}
	return strings.TrimSpace(text + " " + unit)
}

// number has three significant digits.
func number(f float64) string {
	switch a := math.Abs(f); {
	case f == 0:
		return "0"
	case a >= 100:
		return fmt.Sprintf("%.0f", f)
	case a >= 10:
		return fmt.Sprintf("%.1f", f)
	case a >= 1:
		return fmt.Sprintf("%.2f", f)
	}
	return fmt.Sprintf("%.3f", f)
}
