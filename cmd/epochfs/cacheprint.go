package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cocoonstack/epochfs/cache"
)

// cachedFile is a cached file in the JSON output. Sizes are in bytes.
type cachedFile struct {
	Name     string    `json:"name"`
	Key      string    `json:"key"`
	Size     int64     `json:"size"`
	Data     int64     `json:"data"`
	Local    int64     `json:"local"`
	Disk     int64     `json:"disk"`
	Verified bool      `json:"verified"`
	InUse    bool      `json:"in_use"`
	Damaged  bool      `json:"damaged"`
	Used     time.Time `json:"used,omitzero"`
}

func cachedFileOf(f cache.StoredFile) cachedFile {
	return cachedFile{f.Name, f.Key, f.Size, f.Data, f.Local, f.Disk, f.Verified, f.InUse, f.Damaged, f.Used}
}

// cachedArtifact is the cached part of an artifact. The one without a
// reference has the files of no artifact.
type cachedArtifact struct {
	Reference string       `json:"reference"`
	Tags      []string     `json:"tags"`
	Opened    time.Time    `json:"opened,omitzero"`
	Local     int64        `json:"local"`
	Disk      int64        `json:"disk"`
	Alone     int64        `json:"alone"` // of disk, files of no other artifact
	InUse     bool         `json:"in_use"`
	Files     []cachedFile `json:"files,omitempty"`
	Count     int          `json:"count"` // number of files
}

// name returns the artifact's name for messages.
func (a *cachedArtifact) name() string {
	switch {
	case len(a.Tags) > 0:
		return strings.Join(a.Tags, ", ")
	case a.Reference != "":
		return a.Reference
	}
	return "(no reference)"
}

// cacheListing is the output of cache ls and cache du.
type cacheListing struct {
	Version    int              `json:"version"`
	Dir        string           `json:"dir"`
	Disk       int64            `json:"disk"`
	Small      int64            `json:"small"` // of disk: manifests, config blobs and references
	Limit      int64            `json:"limit"`
	Free       int64            `json:"free"`
	References []cachedArtifact `json:"references"`
}

func listingOf(dir string, inv *cache.Inventory) cacheListing {
	l := cacheListing{Version: 1, Dir: dir, Disk: inv.Disk, Small: inv.Small, Limit: inv.Limit, Free: inv.Free, References: []cachedArtifact{}}
	files := map[string]cache.StoredFile{}
	for _, f := range inv.Files {
		files[f.Key] = f
	}
	owners := ownersOf(inv)
	for _, a := range inv.Artifacts {
		entry := cachedArtifact{Reference: a.Reference, Tags: slices.Concat([]string{}, a.Tags), Opened: a.Used}
		for _, f := range a.Files {
			if s, ok := files[f.Key]; ok {
				s.Name = f.Name
				entry.add(s, len(owners[f.Key]) == 1)
			}
		}
		l.References = append(l.References, entry)
	}
	rest := cachedArtifact{Tags: []string{}}
	for _, f := range inv.Files {
		if len(owners[f.Key]) == 0 {
			rest.add(f, true)
		}
	}
	if rest.Count > 0 {
		l.References = append(l.References, rest)
	}
	return l
}

func (a *cachedArtifact) add(f cache.StoredFile, alone bool) {
	a.Files = append(a.Files, cachedFileOf(f))
	a.Count++
	a.Local += f.Local
	a.Disk += f.Disk
	a.InUse = a.InUse || f.InUse
	if alone {
		a.Alone += f.Disk
	}
}

func usageOf(dir string, inv *cache.Inventory) cacheListing {
	l := listingOf(dir, inv)
	for i := range l.References {
		l.References[i].Files = nil
	}
	return l
}

// ownersOf returns the names of the artifacts that a file belongs to, by the
// file's key.
func ownersOf(inv *cache.Inventory) map[string][]string {
	owners := map[string][]string{}
	for _, a := range inv.Artifacts {
		named := cachedArtifact{Reference: a.Reference, Tags: a.Tags}
		for _, f := range a.Files {
			if !slices.Contains(owners[f.Key], named.name()) {
				owners[f.Key] = append(owners[f.Key], named.name())
			}
		}
	}
	return owners
}

func printListing(out io.Writer, l cacheListing) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i, a := range l.References {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, printable(a.name()))
		if a.Reference != "" {
			fmt.Fprintf(w, "  %s, opened %s\n", printable(a.Reference), humanize.Time(a.Opened))
		}
		if len(a.Files) == 0 {
			fmt.Fprintln(w, "  no file is local")
			continue
		}
		fmt.Fprintln(w, "  FILE\tSIZE\tDATA\tLOCAL\tDISK\tSTATE")
		for _, f := range a.Files {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\n", printable(f.shown()), size(f.Size), size(f.Data),
				portion(f.Local, f.Data), size(f.Disk), f.state())
		}
	}
	return w.Flush()
}

// shown returns the file's name, or its key if the name is lost.
func (f *cachedFile) shown() string {
	if f.Name == "" {
		return f.Key
	}
	return f.Name
}

// state describes a cached file.
func (f *cachedFile) state() string {
	var words []string
	switch {
	case f.Damaged:
		words = append(words, "damaged")
	case f.Verified:
		words = append(words, "verified")
	case f.Local == f.Data:
		words = append(words, "complete")
	default:
		words = append(words, "partial")
	}
	if f.InUse {
		words = append(words, "in use")
	}
	return strings.Join(words, ", ")
}

// portion formats a part of a whole, in bytes and in percent.
func portion(n, of int64) string {
	if of <= 0 {
		return size(n)
	}
	return fmt.Sprintf("%s (%d%%)", size(n), int64(float64(n)/float64(of)*100))
}

func printUsage(out io.Writer, l cacheListing) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REFERENCE\tFILES\tLOCAL\tDISK\tALONE\tOPENED\tSTATE")
	for _, a := range l.References {
		opened, state := "-", "-"
		if !a.Opened.IsZero() {
			opened = humanize.Time(a.Opened)
		}
		if a.InUse {
			state = "in use"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", printable(a.name()), a.Count, size(a.Local), size(a.Disk), size(a.Alone), opened, state)
	}
	fmt.Fprintf(w, "manifests and references\t\t\t%s\n", size(l.Small))
	fmt.Fprintf(w, "all\t\t\t%s\n", size(l.Disk))
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "%s: may take %s; its file system has %s left\n", printable(l.Dir), size(l.Limit), size(l.Free))
	return err
}

// prunedCache is the output of cache prune.
type prunedCache struct {
	Version int          `json:"version"`
	DryRun  bool         `json:"dry_run"`
	Freed   int64        `json:"freed"`
	Left    int64        `json:"left"`
	InUse   int64        `json:"in_use"` // part of left
	Files   []prunedFile `json:"files"`
	Small   int          `json:"small"` // manifests, config blobs and references
}

type prunedFile struct {
	cachedFile
	References []string `json:"references"`
}

func prunedOf(p cache.Pruned, inv *cache.Inventory, dry bool) prunedCache {
	out := prunedCache{Version: 1, DryRun: dry, Freed: p.Freed, Left: p.Left, InUse: p.InUse, Files: []prunedFile{}, Small: p.Small}
	owners := ownersOf(inv)
	for _, f := range p.Files {
		out.Files = append(out.Files, prunedFile{cachedFileOf(f), slices.Concat([]string{}, owners[f.Key])})
	}
	return out
}

func printPruned(out io.Writer, p prunedCache) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range p.Files {
		fmt.Fprintf(w, "%s\t%s\tused %s\t%s\n", printable(f.shown()), size(f.Disk), humanize.Time(f.Used), printable(strings.Join(f.References, ", ")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	verb := "removed"
	if p.DryRun {
		verb = "would be removed"
	}
	_, err := fmt.Fprintf(out, "%d files and %d manifests and references %s, %s; %s left, %s of it in use\n",
		len(p.Files), p.Small, verb, size(p.Freed), size(p.Left), size(p.InUse))
	return err
}

// verifiedCache is the output of cache verify.
type verifiedCache struct {
	Version  int            `json:"version"`
	Complete bool           `json:"complete"` // the whole cache was verified
	Files    int            `json:"files"`
	Bytes    int64          `json:"bytes"`
	Hashed   int64          `json:"hashed"` // bytes compared with a digest
	Lost     int64          `json:"lost"`   // in a crash of the machine
	Wrong    []cacheFinding `json:"wrong"`
}

type cacheFinding struct {
	File       string   `json:"file"`
	Key        string   `json:"key,omitempty"`
	References []string `json:"references"`
	Offset     int64    `json:"offset"`
	Length     int64    `json:"length"`
	Digest     string   `json:"digest,omitempty"`
	What       string   `json:"what"`
	InUse      bool     `json:"in_use"`
}

func verifiedOf(v cache.Verification, inv *cache.Inventory, complete bool) verifiedCache {
	out := verifiedCache{Version: 1, Complete: complete, Files: v.Files, Bytes: v.Bytes, Hashed: v.Hashed, Lost: v.Lost, Wrong: []cacheFinding{}}
	owners := ownersOf(inv)
	for _, f := range v.Wrong {
		out.Wrong = append(out.Wrong, cacheFinding{
			File: f.Name, Key: f.Key, References: slices.Concat([]string{}, owners[f.Key]),
			Offset: f.Offset, Length: f.Length, Digest: f.Digest, What: f.What, InUse: f.InUse,
		})
	}
	return out
}

func printVerified(out io.Writer, v verifiedCache) error {
	var b strings.Builder
	for _, f := range v.Wrong {
		what := f.File
		if len(f.References) > 0 {
			what = strings.Join(f.References, ", ") + ": " + what
		}
		if f.Length > 0 {
			what += fmt.Sprintf(", %s at %d", size(f.Length), f.Offset)
		}
		what += ": " + f.What
		if f.InUse {
			what += "; a mount uses it: remount to drop what the kernel has in memory"
		}
		fmt.Fprintln(&b, printable(what))
	}
	if v.Lost > 0 {
		fmt.Fprintf(&b, "%s were lost in a crash of the machine, and will be fetched again\n", size(v.Lost))
	}
	fmt.Fprintf(&b, "%d files, %s read, %s verified by digests, the rest by checksums; %d wrong\n",
		v.Files, size(v.Bytes), size(v.Hashed), len(v.Wrong))
	_, err := io.WriteString(out, b.String())
	return err
}
