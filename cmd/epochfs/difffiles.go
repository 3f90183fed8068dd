package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/snapshot"
	"github.com/cocoonstack/epochfs/snapshot/layout"
	"github.com/cocoonstack/epochfs/snapshot/sparse"
)

// envelopeChange is a value of the envelope in the JSON output.
type envelopeChange struct {
	Kind   string          `json:"kind"` // "envelope"
	Change string          `json:"change"`
	Key    string          `json:"key"`
	Before json.RawMessage `json:"before,omitempty"`
	After  json.RawMessage `json:"after,omitempty"`
}

// fileChange is a file of the snapshot in the JSON output.
type fileChange struct {
	Kind    string       `json:"kind"` // "file"
	Change  string       `json:"change"`
	Name    string       `json:"name"`
	Before  int64        `json:"size_before"`
	After   int64        `json:"size_after"`
	Differs int64        `json:"differs"` // bytes, at most
	Ranges  int          `json:"ranges"`
	Map     *control.Map `json:"map,omitempty"` // cells are ".", "=" or "#"
}

// envelopes compares the values of snapshot.json by their keys.
func (d *differ) envelopes() error {
	var values [2]map[string]string
	for i, o := range d.sides {
		values[i] = flatten(o.Artifact.Envelope)
	}
	keys := maps.Clone(values[0])
	maps.Copy(keys, values[1])
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		before, had := values[0][key]
		after, has := values[1][key]
		if had == has && before == after {
			continue
		}
		d.found = true
		change := changeOf(had, has)
		if d.json {
			c := envelopeChange{Kind: "envelope", Change: change, Key: key}
			if had {
				c.Before = json.RawMessage(before)
			}
			if has {
				c.After = json.RawMessage(after)
			}
			if err := printLine(d.out, c); err != nil {
				return err
			}
			continue
		}
		switch change {
		case "+":
			d.printf("+  %s %s: %s\n", snapshot.EnvelopeName, printable(key), printable(after))
		case "-":
			d.printf("-  %s %s: %s\n", snapshot.EnvelopeName, printable(key), printable(before))
		default:
			d.printf("M  %s %s: %s -> %s\n", snapshot.EnvelopeName, printable(key), printable(before), printable(after))
		}
	}
	return nil
}

func changeOf(had, has bool) string {
	switch {
	case !had:
		return "+"
	case !has:
		return "-"
	}
	return "M"
}

// flatten returns the scalar values of a JSON object, by their keys joined
// with dots.
func flatten(text []byte) map[string]string {
	all := map[string]string{}
	var walk func(prefix string, raw json.RawMessage, depth int)
	walk = func(prefix string, raw json.RawMessage, depth int) {
		var object map[string]json.RawMessage
		const deepest = 16
		if depth > deepest || json.Unmarshal(raw, &object) != nil || object == nil {
			var b bytes.Buffer
			if json.Compact(&b, raw) == nil {
				all[strings.TrimPrefix(prefix, ".")] = b.String()
			}
			return
		}
		for key, value := range object {
			walk(prefix+"."+key, value, depth+1)
		}
	}
	if len(text) > 0 {
		walk("", text, 0)
	}
	return all
}

// files compares the snapshots' files, or one of them.
func (d *differ) files(ctx context.Context, only string) error {
	byName := [2]map[string]*layout.File{{}, {}}
	for i, o := range d.sides {
		for _, f := range o.Artifact.Files {
			if only == "" || f.Name == only {
				byName[i][f.Name] = f
			}
		}
	}
	names := maps.Clone(byName[0])
	maps.Copy(names, byName[1])
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, b := byName[0][name], byName[1][name]
		if err := d.snapshotFile(ctx, name, a, b); err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) snapshotFile(ctx context.Context, name string, a, b *layout.File) error {
	c := fileChange{Kind: "file", Change: changeOf(a != nil, b != nil), Name: name}
	var ranges []sparse.Segment
	switch c.Change {
	case "+":
		c.After, c.Differs, c.Ranges = b.Size(), b.PayloadSize(), 1
	case "-":
		c.Before, c.Differs, c.Ranges = a.Size(), a.PayloadSize(), 1
	default:
		var err error
		if ranges, err = layout.Differing(ctx, a, b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if len(ranges) == 0 {
			return nil
		}
		c.Before, c.After, c.Ranges = a.Size(), b.Size(), len(ranges)
		for _, r := range ranges {
			c.Differs += r.Length
		}
		c.Map = differenceMap(a, b, ranges)
	}
	d.found = true
	if d.json {
		return printLine(d.out, c)
	}
	switch c.Change {
	case "+":
		d.printf("+  %s, %s, %s of data\n", printable(name), size(c.After), size(c.Differs))
	case "-":
		d.printf("-  %s, %s, %s of data\n", printable(name), size(c.Before), size(c.Differs))
	default:
		d.modified(c)
	}
	return nil
}

// modified prints how much of a file differs, and where.
func (d *differ) modified(c fileChange) {
	sizes := size(c.After)
	if c.Before != c.After {
		sizes = size(c.Before) + " -> " + size(c.After)
	}
	ranges := "1 range"
	if c.Ranges > 1 {
		ranges = fmt.Sprintf("%d ranges", c.Ranges)
	}
	d.printf("M  %s, %s: %s (%s) differ at most, in %s\n", printable(c.Name), sizes, size(c.Differs),
		control.Percent(c.Differs, max(c.Before, c.After, 1)), ranges)
	strip := differenceStrip(c.Map, columns(d.diffOptions.out))
	if utf8Terminal() {
		strip = differenceGlyphs.Replace(strip)
	}
	d.printf("%s\n", strip)
}

// Letters of a map of differences: data that differs, data that is equal,
// holes in both.
const (
	differs = '#'
	equal   = '='
)

var differenceGlyphs = strings.NewReplacer(".", "·", "=", "░", "#", "█")

// differenceMap draws the larger of two files.
func differenceMap(a, b *layout.File, ranges []sparse.Segment) *control.Map {
	total := max(a.Size(), b.Size())
	m := &control.Map{Cell: control.CellSize(total)}
	cells := make([]byte, (total+m.Cell-1)/m.Cell)
	for i := range cells {
		from, to := int64(i)*m.Cell, min(int64(i+1)*m.Cell, total)
		for len(ranges) > 0 && ranges[0].Offset+ranges[0].Length <= from {
			ranges = ranges[1:]
		}
		switch {
		case len(ranges) > 0 && ranges[0].Offset < to:
			cells[i] = differs
		case a.Map.PayloadAt(to) > a.Map.PayloadAt(from) || b.Map.PayloadAt(to) > b.Map.PayloadAt(from):
			cells[i] = equal
		default:
			cells[i] = control.Hole
		}
	}
	m.Cells = string(cells)
	return m
}

// differenceStrip returns a map as width letters. Every difference is
// visible, however small.
func differenceStrip(m *control.Map, width int) string {
	n := len(m.Cells)
	if n == 0 {
		return ""
	}
	strip := make([]byte, width)
	for i := range strip {
		from := i * n / width
		cells := m.Cells[from:max(from+1, ((i+1)*n+width-1)/width)]
		switch {
		case strings.IndexByte(cells, differs) >= 0:
			strip[i] = differs
		case strings.IndexByte(cells, equal) >= 0:
			strip[i] = equal
		default:
			strip[i] = control.Hole
		}
	}
	return string(strip)
}
