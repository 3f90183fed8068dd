package control

import (
	"strings"
	"testing"
	"time"
)

var now = time.Unix(2e9, 0)

// a mount of 14 GiB, of which a bit is here.
func mount(change func(*Mount)) *Mount {
	m := &Mount{
		Files: []File{
			{Name: "config.json", Data: 100, Local: 100},
			{Name: "memory-ranges", Data: 14 << 30, Local: 500 << 20},
		},
		Link:    Link{Ranges: "served"},
		Mirrors: []Mirror{{Host: "mirror.example"}, {Host: "registry.example", Registry: true}},
	}
	change(m)
	return m
}

func (m *Mount) reads(rate int64, from int) {
	m.Files[1].Fetching = true
	m.Network.Rate, m.Mirrors[from].Rate = rate, rate
}

func (m *Mount) waits(d time.Duration, cause string) {
	m.Waiting = append(m.Waiting, Wait{File: "memory-ranges", Since: now.Add(-d), Error: cause, Cause: cause})
}

func TestSentence(t *testing.T) {
	for want, change := range map[string]func(*Mount){
		"local: 3 % of 14 GiB; nothing waits": func(*Mount) {},
		"local: 3 % of 14 GiB; nothing waits; the cache was wrong in 1 piece: dropped and fetched again; see the log": func(m *Mount) {
			m.Wrong.Pieces = 1
		},
		"local: 100 % of 14 GiB; nothing waits": func(m *Mount) {
			m.Files[1].Local = m.Files[1].Data
		},
		"local: under 1 % of 14 GiB; nothing waits": func(m *Mount) {
			m.Files[1].Local = 1
		},
		"local: 0 % of 14 GiB; nothing waits": func(m *Mount) {
			m.Files[0].Local, m.Files[1].Local = 0, 0
		},
		"local: 3 % of 14 GiB; reading memory-ranges at 410 MB/s from registry.example; nothing waits": func(m *Mount) {
			m.reads(410e6, 1)
		},
		"local: 3 % of 14 GiB; reading config.json and memory-ranges at 410 MB/s from mirror.example; readers wait 30 ms at most": func(m *Mount) {
			m.reads(410e6, 0)
			m.Files[0].Fetching = true
			m.waits(10*time.Millisecond, "")
			m.waits(30*time.Millisecond, "")
		},
		"local: 3 % of 14 GiB; asking registry.example for memory-ranges; waiting 12 s for memory-ranges": func(m *Mount) {
			m.reads(0, 1)
			m.waits(12*time.Second, "")
		},
		"local: 3 % of 14 GiB; waiting 40 s for memory-ranges: connection refused": func(m *Mount) {
			m.waits(40*time.Second, "connection refused")
			m.waits(3*time.Second, "")
			m.Files[1].Fetching = true // it is tried again
		},
		"local: 3 % of 14 GiB; slow because the registry ignores Range: memory-ranges comes from its start, at 11 MB/s from registry.example; waiting 5 min for memory-ranges": func(m *Mount) {
			m.Link.Ranges = "ignored"
			m.reads(11e6, 1)
			m.waits(5*time.Minute, "")
		},
		"local: 3 % of 14 GiB; reading memory-ranges at 9.0 MB/s from registry.example, no faster because of --limit-rate; nothing waits": func(m *Mount) {
			m.Network.Limit = 10e6
			m.reads(9e6, 1)
		},
		"local: 3 % of 14 GiB; nothing waits; 2 reads have failed; the cache is full: fetched data is not stored; the mirror mirror.example fails: no answer in time": func(m *Mount) {
			m.Reads.Failed, m.Cache.Full = 2, true
			m.Mirrors[0].Resting, m.Mirrors[0].Error = now.Add(time.Second), "no answer in time"
		},
		"local: 3 % of 14 GiB; working set: 50 % of 30 MiB local; nothing waits": func(m *Mount) {
			m.WorkingSet = &WorkingSet{State: SetReplaying, Recorded: 30 << 20, Local: 15 << 20}
		},
		"local: 3 % of 14 GiB; working set of 30 MiB local; nothing waits": func(m *Mount) {
			m.WorkingSet = &WorkingSet{State: SetReady, Recorded: 30 << 20, Local: 30 << 20}
		},
		"local: 3 % of 14 GiB; working set of 30 MiB local, 10 % of it late; nothing waits": func(m *Mount) {
			m.WorkingSet = &WorkingSet{State: SetReady, Recorded: 30 << 20, Local: 30 << 20, Late: 3 << 20}
		},
		"local: 3 % of 14 GiB; recording: 12 MiB touched; nothing waits": func(m *Mount) {
			m.WorkingSet = &WorkingSet{State: SetNone, Recording: &Recording{Bytes: 12 << 20}}
		},
		"it is stopped": func(m *Mount) { m.Trouble = "it is stopped" },
	} {
		if got := mount(change).Sentence(now); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestStrip(t *testing.T) {
	for _, c := range []struct {
		cells string
		width int
		want  string
	}{
		{"", 3, "..."},
		{"#", 3, "###"},
		{"..--oo##", 8, "..--oo##"},
		{"..--oo##", 4, ".-o#"},
		{".-o##o-.", 4, "-oo-"},
		{"-#", 1, "+"},
		{"+#", 1, "+"},
		{".#-", 2, "#+"}, // the middle one is in both
		{"#-", 4, "##--"},
		{"\x1b[2J", 2, ".."}, // whatever it is, it does not get to a terminal
	} {
		if got := (&Map{Cells: c.cells}).Strip(c.width); got != c.want {
			t.Errorf("%q in %d: %q, not %q", c.cells, c.width, got, c.want)
		}
	}
	for size, want := range map[int64]int64{0: 4096, 1: 4096, 2048 * 4096: 4096, 2048*4096 + 1: 4097, 14 << 30: 7 << 20} {
		if got := CellSize(size); got != want {
			t.Errorf("a cell of %d bytes has %d, not %d", size, got, want)
		}
	}
}

// Rates are measured where something is fetched, and nowhere else.
func TestWithRates(t *testing.T) {
	looks := 0
	status := withRates(func() Mount {
		looks++
		m := mount(func(m *Mount) { m.Files[1].Fetching = looks == 2 })
		m.Network.Bytes = int64(looks) * 1e6
		m.Mirrors[1].Bytes = m.Network.Bytes
		return *m
	})
	if m := status(); looks != 1 || m.Network.Rate != 0 {
		t.Errorf("at rest: %d looks, %d bytes a second", looks, m.Network.Rate)
	}
	m := status()
	if r := m.Network.Rate; looks != 3 || r == 0 || r > 1e6*int64(time.Second/rateOver) {
		t.Errorf("fetching: %d looks, %d bytes a second", looks, r)
	}
	if m.Mirrors[1].Rate != m.Network.Rate || m.Mirrors[0].Rate != 0 || !strings.Contains(m.Sentence(now), "reading memory-ranges at ") {
		t.Errorf("rates of mirrors: %+v", m.Mirrors)
	}
}
