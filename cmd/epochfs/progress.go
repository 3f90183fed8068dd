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
	showWaitIn  = time.Second            // on a terminal: most answers arrive sooner
	barWidth    = 24                     // characters
)

// reportEvery is the time between lines without a terminal. Tests shorten
// it.
var reportEvery = 5 * time.Second

// meter shows the progress of long work: a bar on a terminal, else a line
// now and then.
type meter struct {
	out   io.Writer
	label string
	of    counted
	total int64                    // in units of of; 0 if not known
	local int64                    // part of total that is in the cache; not shown if 0
	bar   *progressbar.ProgressBar // nil without a terminal
	begun time.Time

	done atomic.Int64
	stop chan struct{}
	gone chan struct{}
}

// counted is what a meter counts; the zero value is time alone.
type counted int

const (
	nothing counted = iota
	bytesOfIt
	filesOfIt
)

// startMeter starts showing progress in bytes on stderr. The caller must
// call finish.
func (g *globals) startMeter(label string, total int64) *meter {
	return g.startLocalMeter(label, total, 0)
}

// startLocalMeter is startMeter for work that need not fetch local bytes.
func (g *globals) startLocalMeter(label string, total, local int64) *meter {
	return g.start(&meter{label: label, of: bytesOfIt, total: total, local: local})
}

// start starts showing m.
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
		progressbar.OptionSetSpinnerChangeInterval(0), // drawn only on request
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

// finish removes the bar.
func (m *meter) finish() {
	close(m.stop)
	<-m.gone
}

// interrupted adds to the error after a signal how much was done and what is
// left behind.
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
				_ = m.bar.Clear() // a closed terminal shows nothing anyway
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

// drawn reports whether there is a bar. At first there is none, because most
// answers arrive before it could be read.
func (m *meter) drawn() bool { return m.of != nothing || time.Since(m.begun) >= showWaitIn }

// amount formats n in units of m.of.
func (m *meter) amount(n int64) string {
	if m.of == filesOfIt {
		return fmt.Sprintf("%d files", n)
	}
	return size(n)
}

// far formats how much is done.
func (m *meter) far() string {
	done := m.done.Load()
	if m.total <= 0 {
		return m.amount(done)
	}
	return fmt.Sprintf("%s of %s (%d%%)", m.amount(done), m.amount(m.total), 100*done/m.total)
}

// line formats the progress, the rate, the time left, and what is not
// fetched.
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

// rate returns the amount done per second so far.
func (m *meter) rate() int64 {
	return int64(float64(m.done.Load()) / time.Since(m.begun).Seconds())
}

// summary returns the text when the work is done.
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
