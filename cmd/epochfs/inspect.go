package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/mounting"
	"github.com/cocoonstack/epochfs/snapshot/manifest"
)

type inspectOptions struct {
	*globals
	out       io.Writer
	reference string
}

func newInspectCmd(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect REF",
		Short: "Show a snapshot's envelope, files, sizes and digests",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runInspect(cmd.Context(), inspectOptions{globals: g, out: cmd.OutOrStdout(), reference: args[0]})
		},
	}
}

// inspected is the JSON output. Sizes are in bytes.
type inspected struct {
	Version     int               `json:"version"`
	Reference   string            `json:"reference"`
	Digest      string            `json:"digest"`
	Kind        string            `json:"kind"`
	Platform    string            `json:"platform,omitempty"`
	Created     time.Time         `json:"created,omitzero"`
	BaseImage   string            `json:"base_image,omitempty"`
	Source      string            `json:"source,omitempty"`
	Revision    string            `json:"revision,omitempty"`
	FromNode    string            `json:"from_node,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Envelope    json.RawMessage   `json:"envelope,omitempty"`
	Size        int64             `json:"size"`
	Data        int64             `json:"data"`
	Stored      int64             `json:"stored"`
	Packed      *inspectedPacks   `json:"packed,omitempty"`
	WorkingSet  *inspectedSet     `json:"working_set,omitempty"`
	Files       []inspectedFile   `json:"files"`
}

// inspectedSet is the working set that the registry has for the snapshot.
type inspectedSet struct {
	Digest  string `json:"digest,omitempty"` // of its manifest
	FoundBy string `json:"found_by"`
	Runs    int    `json:"runs"` // how often it was recorded
	Stages  int    `json:"stages"`
	Size    int64  `json:"size"`
}

func (w *inspectedSet) text() string {
	if w == nil {
		return "none"
	}
	return fmt.Sprintf("%s in %d stages, recorded %s; found by %s", size(w.Size), w.Stages, times(w.Runs), w.FoundBy)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// setPatience is how long inspect waits for what it can do without.
const setPatience = 5 * time.Second

// inspectSet returns the artifact's working set, or nil. That it cannot be
// asked for is a note.
func (opts *inspectOptions) inspectSet(ctx context.Context, o *mounting.Opened) *inspectedSet {
	within, cancel := context.WithTimeout(ctx, setPatience)
	defer cancel()
	found, err := o.WorkingSet(within)
	if err != nil && ctx.Err() == nil {
		opts.note("no working set: %v", err)
	}
	if found == nil {
		return nil
	}
	set := mounting.Inherit(found.Set, o.Artifact.Files)
	return &inspectedSet{Digest: found.Digest, FoundBy: found.By, Runs: set.Runs, Stages: set.Stages(), Size: set.Bytes()}
}

type inspectedFile struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	Mode      uint32 `json:"mode"`
	Size      int64  `json:"size"`
	Data      int64  `json:"data"`
	Stored    int64  `json:"stored"`
	Parts     int    `json:"parts"` // of a packed file: granules
	Encoding  string `json:"encoding"`
	Granule   int64  `json:"granule,omitempty"`
	Digest    string `json:"digest,omitempty"` // of the stored blob; none for a split file
}

func runInspect(ctx context.Context, opts inspectOptions) error {
	o, err := opts.open(ctx, opts.reference, readTimeout)
	if err != nil {
		return err
	}
	defer o.Close()
	all := inspectionOf(o)
	if all.Packed, err = inspectPacks(ctx, o); err != nil {
		return fmt.Errorf("%s: %w", o.Reference, err)
	}
	all.WorkingSet = opts.inspectSet(ctx, o)
	if opts.json {
		return printJSON(opts.out, all)
	}
	return printInspected(opts.out, all)
}

func inspectionOf(o *mounting.Opened) inspected {
	a := o.Artifact
	notes := a.Manifest.Annotations
	all := inspected{
		Version:     1,
		Reference:   o.Reference.String(),
		Digest:      a.Digest,
		Kind:        a.Kind.String(),
		Platform:    a.Platform,
		Created:     a.Created,
		BaseImage:   notes[manifest.AnnotationSnapshotBaseImage],
		Source:      notes[manifest.AnnotationSource],
		Revision:    notes[manifest.AnnotationRevision],
		FromNode:    notes[manifest.AnnotationFromNode],
		Annotations: notes,
		Envelope:    a.Envelope,
		Files:       []inspectedFile{},
	}
	for _, f := range a.Files {
		encoding := ""
		if len(f.Parts) > 0 {
			encoding = f.Parts[0].Encoding.String()
		}
		one := inspectedFile{
			Name: f.Name, MediaType: f.MediaType, Mode: f.Mode,
			Size: f.Size(), Data: f.PayloadSize(), Stored: f.StoredSize(),
			Parts: len(f.Parts), Encoding: encoding, Digest: f.Digest(),
		}
		if f.Index != nil {
			one.Granule, one.Parts = f.Index.Head.Granule, f.Index.Granules()
		}
		all.Files = append(all.Files, one)
		all.Size += f.Size()
		all.Data += f.PayloadSize()
		all.Stored += f.StoredSize()
	}
	return all
}

func printInspected(out io.Writer, all inspected) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(key, value string) {
		if value = printable(value); value != "" {
			fmt.Fprintf(w, "%s\t%s\n", printable(key), value)
		}
	}
	row("reference", all.Reference)
	row("kind", all.Kind)
	row("platform", all.Platform)
	if !all.Created.IsZero() {
		row("created", fmt.Sprintf("%s, %s", timeText(all.Created, time.RFC3339, ""), humanize.Time(all.Created)))
	}
	row("base image", all.BaseImage)
	row("source", all.Source)
	row("revision", all.Revision)
	row("from node", all.FromNode)
	for _, field := range envelopeFields(all.Envelope) {
		row(field[0], field[1])
	}
	row("size", fmt.Sprintf("%s, %s of data, %s in the registry", size(all.Size), size(all.Data), size(all.Stored)))
	if all.Packed != nil {
		for _, r := range all.Packed.rows() {
			row(r[0], r[1])
		}
	}
	row("working set", all.WorkingSet.text())
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintln(w, "FILE\tSIZE\tDATA\tHOLES\tSTORED\tPARTS\tDIGEST")
	for _, f := range all.Files {
		digest := f.Digest
		if digest == "" {
			digest = "split"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d %s\t%s\n", printable(f.Name), size(f.Size), size(f.Data),
			holes(f.Size, f.Data), size(f.Stored), f.Parts, f.Encoding, digest)
	}
	return w.Flush()
}

// envelopeFields returns the envelope's scalar values with their keys, in
// its order.
func envelopeFields(envelope []byte) [][2]string {
	var env struct {
		Config json.RawMessage `json:"config"`
	}
	if json.Unmarshal(envelope, &env) != nil {
		return nil
	}
	dec := json.NewDecoder(strings.NewReader(string(env.Config)))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil
	}
	var fields [][2]string
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return fields
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return fields
		}
		switch value.(type) {
		case string, json.Number, bool:
			fields = append(fields, [2]string{strings.ReplaceAll(fmt.Sprint(key), "_", " "), fieldText(key, value)})
		}
	}
	return fields
}

// fieldText formats a value of the envelope: memory and storage are in
// bytes.
func fieldText(key, value any) string {
	if n, ok := value.(json.Number); ok && (key == "memory" || key == "storage") {
		if bytes, err := n.Int64(); err == nil {
			return size(bytes)
		}
	}
	return fmt.Sprint(value)
}
