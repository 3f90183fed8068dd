package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

const (
	redrawEvery = 200 * time.Millisecond // of the bar on a terminal
	reportEvery = 5 * time.Second        // between lines where there is none
	barWidth    = 24                     // characters
)

// meter shows how far long work has come: a bar on a terminal, now and
// then a line elsewhere.
type meter struct {
	out   io.Writer
	label string
	total int64                    // bytes; 0 where it is not known
	local int64                    // of total, what the cache has; not shown where it is 0
	bar   *progressbar.ProgressBar // nil where there is no terminal
	begun time.Time

	done atomic.Int64
	stop chan struct{}
	gone chan struct{}
}

// startMeter begins to show progress on stderr. The caller calls finish.
func (g *globals) startMeter(label string, total int64) *meter {
	return g.startLocalMeter(label, total, 0)
}

// startLocalMeter is startMeter for work that need not fetch local bytes.
func (g *globals) startLocalMeter(label string, total, local int64) *meter {
	m := &meter{
		out: os.Stderr, label: label, total: total, local: local, begun: time.Now(),
		stop: make(chan struct{}), gone: make(chan struct{}),
	}
	switch {
	case g.quiet:
		m.out = io.Discard
	case term.IsTerminal(int(os.Stderr.Fd())):
		m.bar = m.newBar()
	}
	go m.run()
	return m
}

func (m *meter) newBar() *progressbar.ProgressBar {
	most := m.total
	if most <= 0 {
		most = -1 // not known
	}
	label := m.label
	if m.local > 0 {
		label += fmt.Sprintf(" (%s from the cache)", size(m.local))
	}
	return progressbar.NewOptions64(most,
		progressbar.OptionSetWriter(m.out),
		progressbar.OptionSetDescription(label),
		progressbar.OptionSetWidth(barWidth),
		progressbar.OptionShowBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetElapsedTime(false),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionSetSpinnerChangeInterval(0), // drawn only when told to
		progressbar.OptionClearOnFinish(),
	)
}

// add counts bytes that are done.
func (m *meter) add(n int64) { m.done.Add(n) }

// finish takes the bar away.
func (m *meter) finish() {
	close(m.stop)
	<-m.gone
}

func (m *meter) run() {
	defer close(m.gone)
	every := reportEvery
	if m.bar != nil {
		every = redrawEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			if m.bar != nil {
				_ = m.bar.Clear() // a terminal that is gone shows nothing anyway
			}
			return
		case <-tick.C:
			if m.bar != nil {
				_ = m.bar.Set64(m.done.Load())
			} else {
				fmt.Fprintln(m.out, "epochfs: "+m.line())
			}
		}
	}
}

// line is how far it is, how fast it goes, how long it will take and what
// of it is not fetched.
func (m *meter) line() string {
	done, rate := m.done.Load(), m.rate()
	if m.total <= 0 {
		return fmt.Sprintf("%s: %s, %s/s", m.label, size(done), size(rate))
	}
	left := "?"
	if rate > 0 {
		left = (time.Duration((m.total-done)/rate) * time.Second).String()
	}
	line := fmt.Sprintf("%s: %s of %s (%d%%), %s/s, %s left", m.label, size(done), size(m.total), 100*done/m.total, size(rate), left)
	if m.local > 0 {
		line += fmt.Sprintf(", %s from the cache", size(m.local))
	}
	return line
}

// rate is bytes per second so far.
func (m *meter) rate() int64 {
	return int64(float64(m.done.Load()) / time.Since(m.begun).Seconds())
}

// summary is what there is to say when it is done.
func (m *meter) summary() string {
	text := fmt.Sprintf("%s in %s", size(m.done.Load()), time.Since(m.begun).Round(100*time.Millisecond))
	if m.local > 0 {
		text += fmt.Sprintf(", %s of it from the cache", size(m.local))
	}
	return text
}
