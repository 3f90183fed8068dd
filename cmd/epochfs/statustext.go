package main

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cocoonstack/epochfs/internal/control"
	"github.com/cocoonstack/epochfs/internal/mounts"
)

// printStatus prints a mount as text.
func printStatus(b *strings.Builder, m control.Mount, now time.Time) {
	fmt.Fprintf(b, "%s: %s\n", printable(m.Dir), printable(m.Reference))
	fmt.Fprintf(b, "  %s\n", printable(m.Summary))
	if m.PID != 0 {
		fmt.Fprintf(b, "  process %d (version %s), for %s; %d requests, %s, %d retries%s\n", m.PID, printable(m.Program),
			now.Sub(m.Since).Round(time.Second), m.Network.Requests, size(m.Network.Bytes), m.Network.Retries, causes(m.Network.Causes))
		fmt.Fprintf(b, "  %s\n", printable(keptLine(m)))
		fmt.Fprintf(b, "  %s\n", printable(linkLine(m)))
		fmt.Fprintf(b, "  cache %s: %s of %s\n", printable(m.Cache.Dir), size(m.Cache.Used), size(m.Cache.Limit))
		if m.Cache.Copied > 0 {
			fmt.Fprintf(b, "  %s were not fetched: other cached files had them\n", size(m.Cache.Copied))
		}
	}
	for _, line := range setLines(m.WorkingSet) {
		fmt.Fprintf(b, "  %s\n", printable(line))
	}
	if len(m.Mirrors) > 1 {
		for _, p := range m.Mirrors {
			fmt.Fprintf(b, "  %s\n", printable(mirrorLine(p, now)))
		}
	}
	printFiles(b, m.Files)
	if len(m.Users) > 0 {
		fmt.Fprintf(b, "  in use: %s\n", printable(usersText(m.Users)))
	}
	for _, w := range m.Waiting {
		why := "waiting for the first answer"
		if w.Error != "" {
			why = "retrying after: " + w.Error
		}
		fmt.Fprintf(b, "  waits for %s of %s at %d since %s: %s\n", size(w.Length), printable(w.File), w.Offset,
			now.Sub(w.Since).Round(time.Second), printable(why))
	}
}

// usersText formats the users of a mount.
func usersText(users []control.User) string {
	var all []string
	for _, u := range users[:min(len(users), mostUsers)] {
		all = append(all, mounts.User{PID: u.PID, Command: u.Command, What: u.Use}.String())
	}
	if more := len(users) - len(all); more > 0 {
		all = append(all, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(all, "; ")
}

// setLines returns what there is to know about the working set.
func setLines(w *control.WorkingSet) (lines []string) {
	if w == nil {
		return nil
	}
	switch {
	case w.Error != "":
		lines = append(lines, "working set: none, "+w.Error)
	case w.State == control.SetLooking:
		lines = append(lines, "working set: the registry is asked for one")
	case w.State == control.SetNone:
		lines = append(lines, "working set: none; epochfs record makes one")
	default:
		lines = append(lines, fmt.Sprintf("working set (by %s, %d recordings): %s recorded, %s local, %s fetched, %s stored, %s used, %s late, %s unused",
			w.FoundBy, w.Runs, size(w.Recorded), size(w.Local), size(w.Fetched), size(w.Stored), size(w.Used), size(w.Late), size(w.Unused)))
	}
	if r := w.Recording; r != nil {
		line := fmt.Sprintf("recording to %s: %s touched", r.File, size(r.Bytes))
		switch {
		case r.Error != "":
			line += "; " + r.Error
		case r.Done:
			line += "; done"
		}
		lines = append(lines, line)
	}
	return lines
}

// causes formats why requests were repeated.
func causes(counts map[string]int64) string {
	var all []string
	for _, why := range sortedKeys(counts) {
		all = append(all, fmt.Sprintf("%s %d", why, counts[why]))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + printable(strings.Join(all, ", ")) + ")"
}

// linkLine formats what was learned about the path to the registry.
func linkLine(m control.Mount) string {
	var known []string
	if trip := m.Link.RoundTrip; trip > 0 {
		known = append(known, fmt.Sprintf("%.3g ms to the first byte", trip*1000))
	}
	if rate := m.Link.Connection; rate > 0 {
		known = append(known, humanize.Bytes(uint64(rate))+"/s a connection")
	}
	switch m.Link.Ranges {
	case "served":
		known = append(known, "ranges are honoured")
	case "ignored":
		known = append(known, "Range is ignored")
	}
	if len(known) == 0 {
		known = append(known, "not known yet")
	}
	return "link: " + strings.Join(known, ", ")
}

func mirrorLine(p control.Mirror, now time.Time) string {
	kind := "mirror"
	if p.Registry {
		kind = "registry"
	}
	line := fmt.Sprintf("%s %s: %d requests, %s", kind, p.Host, p.Requests, size(p.Bytes))
	if p.Missing > 0 {
		line += fmt.Sprintf(", %d blobs missing", p.Missing)
	}
	if p.Wrong > 0 {
		line += fmt.Sprintf(", wrong bytes of %d blobs", p.Wrong)
	}
	if p.Resting.After(now) {
		line += fmt.Sprintf("; avoided for %s: %s", p.Resting.Sub(now).Round(time.Second), p.Error)
	}
	return line
}

func printFiles(b *strings.Builder, files []control.File) {
	if len(files) == 0 {
		return
	}
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "  FILE\tSIZE\tDATA\tLOCAL\t\tOPEN\tVERIFIED")
	for _, f := range files {
		mode, verified := "no", "no"
		if f.Mode != "" {
			mode = f.Mode
		}
		if f.Verified {
			verified = "yes"
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(f.Name), size(f.Size), size(f.Data), size(f.Local),
			control.Percent(f.Local, f.Data), mode, verified)
	}
	_ = tw.Flush() // a Builder cannot fail
}

// glyphs replace letters of a map if the terminal has them.
var glyphs = strings.NewReplacer(
	string(control.Hole), "·", string(control.Missing), "░", string(control.Partly), "▒",
	string(control.Present), "▓", string(control.Verified), "█",
)

// printMaps draws each file as a strip, and explains the blocks.
func printMaps(b *strings.Builder, files []control.File, width int) {
	drawn := func(strip string) string { return strip }
	if utf8Terminal() {
		drawn = glyphs.Replace
	}
	for _, f := range files {
		if f.Map == nil {
			continue
		}
		fmt.Fprintf(b, "%s, %s\n%s\n", printable(f.Name), size(f.Size), drawn(f.Map.Strip(width)))
	}
	legend := []struct {
		letter rune
		means  string
	}{
		{control.Hole, "hole"}, {control.Missing, "missing"}, {control.Partly, "partly present"},
		{control.Present, "present"}, {control.Verified, "verified"},
	}
	var all []string
	for _, l := range legend {
		all = append(all, drawn(string(l.letter))+" "+l.means)
	}
	fmt.Fprintln(b, strings.Join(all, "   "))
}

// keptLine describes what happens to the mount if its process dies.
func keptLine(m control.Mount) string {
	switch {
	case m.KeeperPID != 0:
		return fmt.Sprintf("kept by process %d", m.KeeperPID)
	case m.NotKept != "":
		return "not kept, it ends with its process: " + m.NotKept
	}
	return "no longer kept, it ends with its process: its keeper has ended; epochfs restart starts another"
}
