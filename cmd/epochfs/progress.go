package main

import (
	"context"
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
	showWaitIn  = time.Second            // on a terminal: most answers come sooner
	barWidth    = 24                     // characters
)

// reportEvery is the time between lines where there is no terminal. Tests
// have less of it.
var reportEvery = 5 * time.Second

// meter shows how far long work has come: a bar on a terminal, now and
// then a line elsewhere.
type meter struct {
	out   io.Writer
	label string
	of    counted
	total int64                    // of what is counted; 0 where it is not known
	local int64                    // of total, what the cache has; not shown where it is 0
	bar   *progressbar.ProgressBar // nil where there is no terminal
	begun time.Time

	done atomic.Int64
	stop chan struct{}
	gone chan struct{}
}

// what a meter counts; the zero value is time alone.
type counted int

const (
	nothing counted = iota
	bytesOfIt
	filesOfIt
)

// startMeter begins to show progress in bytes on stderr. The caller calls
// finish.
func (g *globals) startMeter(label string, total int64) *meter {
	return g.startLocalMeter(label, total, 0)
}

// startLocalMeter is startMeter for work that need not fetch local bytes.
func (g *globals) startLocalMeter(label string, total, local int64) *meter {
	return g.start(&meter{label: label, of: bytesOfIt, total: total, local: local})
}

// start begins to show m, which has what there is to know of the work.
func (g *globals) start(m *meter) *meter {
	m.out, m.begun = os.Stderr, time.Now()
	m.stop, m.gone = make(chan struct{}), make(chan struct{})
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
	opts := []progressbar.Option{
		progressbar.OptionSetWriter(m.out),
		progressbar.OptionSetDescription(label),
		progressbar.OptionSetWidth(barWidth),
		progressbar.OptionShowBytes(m.of == bytesOfIt),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetElapsedTime(m.total <= 0),
		progressbar.OptionSetPredictTime(m.total > 0),
		progressbar.OptionSetSpinnerChangeInterval(0), // drawn only when told to
		progressbar.OptionClearOnFinish(),
	}
	if m.of != nothing {
		opts = append(opts, progressbar.OptionShowCount())
	}
	bar := progressbar.NewOptions64(most, opts...)
	bar.StartWithoutRender() // its rates count from here
	return bar
}

// add counts what is done.
func (m *meter) add(n int64) { m.done.Add(n) }

// finish takes the bar away.
func (m *meter) finish() {
	close(m.stop)
	<-m.gone
}

// interrupted makes of the error that a signal has brought about one that
// tells how far the work was, and what is left of it.
func (m *meter) interrupted(ctx context.Context, err error, left string) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return interrupted(err, "%s: %s; %s", m.label, m.far(), left)
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
			if m.bar != nil && m.drawn() {
				_ = m.bar.Clear() // a terminal that is gone shows nothing anyway
			}
			return
		case <-tick.C:
			switch {
			case m.bar == nil:
				fmt.Fprintln(m.out, "epochfs: "+printable(m.line()))
			case m.of != nothing:
				_ = m.bar.Set64(m.done.Load())
			case m.drawn():
				_ = m.bar.RenderBlank()
			}
		}
	}
}

// drawn says whether there is a bar: not at once where most answers come
// before anybody could read it.
func (m *meter) drawn() bool { return m.of != nothing || time.Since(m.begun) >= showWaitIn }

// amount is n of what is counted, in words.
func (m *meter) amount(n int64) string {
	if m.of == filesOfIt {
		return fmt.Sprintf("%d files", n)
	}
	return size(n)
}

// far is how much is done.
func (m *meter) far() string {
	done := m.done.Load()
	if m.total <= 0 {
		return m.amount(done)
	}
	return fmt.Sprintf("%s of %s (%d%%)", m.amount(done), m.amount(m.total), 100*done/m.total)
}

// line is how far it is, how fast it goes, how long it will take and what
// of it is not fetched.
func (m *meter) line() string {
	if m.of == nothing {
		return fmt.Sprintf("%s, for %s", m.label, time.Since(m.begun).Round(time.Second))
	}
	rate := m.rate()
	line := fmt.Sprintf("%s: %s, %s/s", m.label, m.far(), m.amount(rate))
	if m.total <= 0 {
		return line
	}
	left := "?"
	if rate > 0 {
		left = (time.Duration((m.total-m.done.Load())/rate) * time.Second).String()
	}
	line += fmt.Sprintf(", %s left", left)
	if m.local > 0 {
		line += fmt.Sprintf(", %s from the cache", size(m.local))
	}
	return line
}

// rate is what was done per second so far.
func (m *meter) rate() int64 {
	return int64(float64(m.done.Load()) / time.Since(m.begun).Seconds())
}

// summary is what there is to say when it is done.
func (m *meter) summary() string {
	took := time.Since(m.begun)
	step := 100 * time.Millisecond
	if took < time.Second {
		step = time.Millisecond
	}
	text := fmt.Sprintf("%s in %s", size(m.done.Load()), took.Round(step))
	if m.local > 0 {
		text += fmt.Sprintf(", %s of it from the cache", size(m.local))
	}
	return text
}
