package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// longWait is how long a read must wait to be worth reporting. Shorter waits
// are normal whenever bytes are fetched.
const longWait = 2 * time.Second

// Sentence describes in words how the mount is doing and, if it is slow,
// why.
func (m *Mount) Sentence(now time.Time) string {
	if m.Trouble != "" {
		return m.Trouble
	}
	parts := append([]string{m.local()}, m.WorkingSet.sentences()...)
	wait := m.longest()
	stuck := wait != nil && wait.Error != ""
	if stuck {
		parts = append(parts, fmt.Sprintf("waiting %s for %s: %s", ago(now, wait.Since), wait.File, firstOf(wait.Cause, wait.Error)))
	}
	if names := m.fetched(); names != "" && (!stuck || m.Network.Rate > 0) {
		parts = append(parts, m.activity(names))
	}
	switch {
	case stuck:
	case wait == nil:
		parts = append(parts, "nothing waits")
	case now.Sub(wait.Since) >= longWait:
		parts = append(parts, fmt.Sprintf("waiting %s for %s", ago(now, wait.Since), wait.File))
	default:
		parts = append(parts, fmt.Sprintf("readers wait %s at most", ago(now, wait.Since)))
	}
	return strings.Join(append(parts, m.caveats(now)...), "; ")
}

// local describes how much of the data is in the cache.
func (m *Mount) local() string {
	var data, local int64
	for _, f := range m.Files {
		data, local = data+f.Data, local+f.Local
	}
	return fmt.Sprintf("local: %s of %s", Percent(local, data), humanize.IBytes(uint64(data)))
}

// sentences returns what is worth knowing about the working set.
func (w *WorkingSet) sentences() (all []string) {
	if w == nil {
		return nil
	}
	switch {
	case w.State == SetReplaying:
		all = append(all, fmt.Sprintf("working set: %s of %s local", Percent(w.Local, w.Recorded), humanize.IBytes(uint64(w.Recorded))))
	case w.State == SetReady:
		text := fmt.Sprintf("working set of %s local", humanize.IBytes(uint64(w.Local)))
		if w.Late > 0 {
			text += fmt.Sprintf(", %s of it late", Percent(w.Late, w.Local))
		}
		all = append(all, text)
	}
	if r := w.Recording; r != nil && !r.Done {
		all = append(all, fmt.Sprintf("recording: %s touched", humanize.IBytes(uint64(r.Bytes))))
	}
	return all
}

// Percent formats part as a percentage of whole. The results 0 % and 100 %
// are exact.
func Percent(part, whole int64) string {
	switch {
	case part >= whole:
		return "100 %"
	case part == 0:
		return "0 %"
	case part*100 < whole:
		return "under 1 %"
	}
	return fmt.Sprintf("%d %%", int64(float64(part)/float64(whole)*100))
}

// activity describes what is being fetched from where, and what limits the
// rate.
func (m *Mount) activity(names string) string {
	host := ""
	var most int64 = -1
	for _, p := range m.Mirrors {
		if p.Rate > most || p.Rate == most && p.Registry {
			host, most = p.Host, p.Rate
		}
	}
	if m.Network.Rate == 0 {
		return fmt.Sprintf("asking %s for %s", host, names)
	}
	rate := humanize.Bytes(uint64(m.Network.Rate)) + "/s"
	switch {
	case m.Link.Ranges == "ignored":
		return fmt.Sprintf("slow because the registry ignores Range: %s comes from its start, at %s from %s", names, rate, host)
	case m.Network.Limit > 0 && m.Network.Rate*10 >= m.Network.Limit*8:
		return fmt.Sprintf("reading %s at %s from %s, no faster because of --limit-rate", names, rate, host)
	}
	return fmt.Sprintf("reading %s at %s from %s", names, rate, host)
}

// fetched returns the names of the files being fetched.
func (m *Mount) fetched() string {
	var names []string
	for _, f := range m.Files {
		if f.Fetching {
			names = append(names, f.Name)
		}
	}
	switch n := len(names); {
	case n > 2:
		return fmt.Sprintf("%s and %d others", names[0], n-1)
	case n == 2:
		return names[0] + " and " + names[1]
	case n == 1:
		return names[0]
	}
	return ""
}

// longest returns the longest wait, or nil without waits.
func (m *Mount) longest() *Wait {
	var longest *Wait
	for i := range m.Waiting {
		if w := &m.Waiting[i]; longest == nil || w.Since.Before(longest.Since) {
			longest = w
		}
	}
	return longest
}

// caveats returns what is worth knowing although it delays no reader.
func (m *Mount) caveats(now time.Time) (all []string) {
	if m.Reads.Failed > 0 {
		all = append(all, fmt.Sprintf("%d reads have failed", m.Reads.Failed))
	}
	if n := m.Wrong.Pieces; n > 0 {
		all = append(all, fmt.Sprintf("the cache was wrong in %d %s: dropped and fetched again; see the log", n, plural(n, "piece", "pieces")))
	}
	if m.Cache.Full {
		all = append(all, "the cache is full: fetched data is not stored")
	}
	if n := m.Cache.NotKept; n > 0 {
		all = append(all, fmt.Sprintf("the cache's disk is slower than the link: %s were fetched and not stored", humanize.IBytes(uint64(n))))
	}
	for _, p := range m.Mirrors {
		switch {
		case p.Registry:
		case p.Resting.After(now):
			all = append(all, fmt.Sprintf("the mirror %s fails: %s", p.Host, p.Error))
		case p.Wrong > 0:
			all = append(all, fmt.Sprintf("the mirror %s has sent wrong bytes", p.Host))
		}
	}
	return all
}

func plural(n int64, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// ago formats the time since then as one number.
func ago(now, then time.Time) string {
	switch d := max(0, now.Sub(then)); {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
