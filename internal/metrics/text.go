package metrics

import (
	"bytes"
	"strconv"
	"strings"
)

// contentType is that of Prometheus's text form, version 0.0.4. It is written by
// hand: what the client library sets up when a process starts takes memory in
// every process of every mount, with metrics or without.
const contentType = "text/plain; version=0.0.4; charset=utf-8"

// text is metrics in Prometheus's text form.
type text struct {
	bytes.Buffer
	name string // of the metric that was begun
}

var (
	escapeHelp  = strings.NewReplacer("\\", `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
)

// begin starts a metric. Its values must follow.
func (t *text) begin(d desc, k kind) {
	t.name = d.name
	t.WriteString("# HELP " + d.name + " " + escapeHelp.Replace(d.help) + "\n# TYPE " + d.name + " " + string(k) + "\n")
}

// value writes a value of the metric, with a suffix of its name and its labels.
func (t *text) value(suffix string, names, values []string, v float64) {
	t.WriteString(t.name + suffix)
	for i, name := range names {
		t.WriteByte("{,"[min(i, 1)])
		t.WriteString(name + `="` + escapeLabel.Replace(values[i]) + `"`)
	}
	if len(names) > 0 {
		t.WriteByte('}')
	}
	t.WriteString(" " + number(v) + "\n")
}

// number formats a value as Prometheus's own library does.
func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
