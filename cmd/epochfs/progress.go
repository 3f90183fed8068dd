package main

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/term"
)

const (
	redrawEvery = 200 * time.Millisecond // of the bar on a terminal
	reportEvery = 5 * time.Second        // between lines where there is none
)

// meter shows how far long work has come: a bar on a terminal, now and
// then a line elsewhere.
type meter struct {
	out   io.Writer
	label string
	total int64 // bytes; 0 where it is not known
	bar   bool
	begun time.Time

	done atomic.Int64
	stop chan struct{}
	gone chan struct{}
}

// startMeter begins to show progress on stderr. The caller calls finish.
func (g *globals) startMeter(label string, total int64) *meter {
	m := &meter{
		out: os.Stderr, label: label, total: total, begun: time.Now(),
		bar:  term.IsTerminal(int(os.Stderr.Fd())),
		stop: make(chan struct{}), gone: make(chan struct{}),
	}
	if g.quiet {
		m.out, m.bar = io.Discard, false
	}
	go m.run()
	return m
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
	if m.bar {
		every = redrawEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-m.stop:
			if m.bar {
				fmt.Fprint(m.out, "\r\x1b[K")
			}
			return
		case <-tick.C:
			if m.bar {
				fmt.Fprint(m.out, "\r"+m.line()+"\x1b[K")
			} else {
				fmt.Fprintln(m.out, "epochfs: "+m.line())
			}
		}
	}
}

// line is how far it is, how fast it goes and how long it will take.
func (m *meter) line() string {
	done, took := m.done.Load(), time.Since(m.begun)
	rate := int64(float64(done) / took.Seconds())
	if m.total <= 0 {
		return fmt.Sprintf("%s: %s, %s/s", m.label, size(done), size(rate))
	}
	left := "?"
	if rate > 0 {
		left = (time.Duration((m.total-done)/rate) * time.Second).String()
	}
	return fmt.Sprintf("%s: %s of %s (%d%%), %s/s, %s left", m.label, size(done), size(m.total), 100*done/m.total, size(rate), left)
}
