package transport

import (
	"math"
	"time"
)

const (
	// tardyLeast is the shortest wait that counts as a stall, unless
	// Options sets another: shorter waits may be due to the scheduler or
	// the garbage collector.
	tardyLeast = 80 * time.Millisecond
	// tardyFirst is the shortest wait that counts as a stall before any
	// request was answered.
	tardyFirst = 200 * time.Millisecond
	// tardyGrowth is the factor by which the wait for each further
	// double grows, unless doubles have won or other requests show that
	// the link works.
	tardyGrowth = 1.5
	// looks is the number of checks during the shortest wait that counts
	// as a stall.
	looks = 4
	// lateTimer is how late a timer may fire before the machine, not the
	// link, is slow.
	lateTimer = 20 * time.Millisecond
)

// Bounds of the time after which a request is given up.
const (
	patienceLeast  = 2 * time.Second
	patienceFirst  = 10 * time.Second // before any request was answered
	patienceMost   = 60 * time.Second
	patienceStream = 60 * time.Second // for a request that could only start over
	patienceFactor = 8                // times the wait that counts as a stall
)

// watch is the state of a body's wait for its next bytes. It is guarded by
// body.mu.
type watch struct {
	timer   *time.Timer
	due     time.Time // when timer fires
	waiting bool
	since   time.Time     // when the wait began
	gap     time.Duration // the longest wait that ended with bytes
	doubles int           // doubles started in this wait
	started time.Duration // when the last double was started, since the wait began
	signs   int           // checks that found this request overtaken by another
	sign    int64         // time of the last overtaking event, since Link.epoch
	gaveUp  bool
}

// begin starts a wait for bytes.
func (b *body) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &b.watch
	w.since, w.started, w.signs, w.sign = time.Now(), 0, 0, 0
	if b.double == nil {
		w.doubles = 0
	}
	b.resumeWaitLocked()
}

// resumeWaitLocked resumes a wait.
func (b *body) resumeWaitLocked() {
	b.watch.waiting = true
	opts := &b.link.opts
	first := opts.Tardy * (looks - 1) / looks
	if opts.Timeout > 0 {
		first = min(first, opts.Timeout/3) // the request may have to be given up by then
	}
	b.armLocked(time.Now(), min(first, patienceLeast))
}

// endWaitLocked ends a wait and returns its duration.
func (b *body) endWaitLocked() time.Duration {
	w := &b.watch
	if w.timer != nil {
		w.timer.Stop()
	}
	if !w.waiting {
		return 0
	}
	w.waiting = false
	return time.Since(w.since)
}

func (b *body) armLocked(now time.Time, d time.Duration) {
	w := &b.watch
	w.due = now.Add(d)
	if w.timer == nil {
		w.timer = time.AfterFunc(d, b.look)
	} else {
		w.timer.Reset(d)
	}
}

// look checks a wait: it starts a double if the request has stalled, and
// finally gives the request up.
func (b *body) look() {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &b.watch
	if !w.waiting || w.gaveUp || b.closed {
		return
	}
	now := time.Now()
	if now.Before(w.due) {
		return // the timer of an earlier wait
	}
	if late := now.Sub(w.due); late > lateTimer {
		w.since = w.since.Add(late)
	}
	still := now.Sub(w.since)
	tardy, patience := b.bounds()
	if still >= patience {
		b.giveUpLocked()
		return
	}
	next := patience - still
	if b.hedged() {
		next = min(next, b.hedgeLocked(still, tardy))
	}
	b.armLocked(now, next)
}

// hedgeLocked starts a double if one is due, and returns the time to the
// next check.
func (b *body) hedgeLocked(still, tardy time.Duration) time.Duration {
	w := &b.watch
	step := tardy / looks
	if still < tardy-step {
		return tardy - step - still
	}
	if b.overtaken(tardy) {
		w.signs++
	}
	sure := w.signs > 1 // one sign may be from just before everything became slow
	after := tardy
	switch pays := b.link.pays(); {
	case pays && w.doubles > 1:
		after = tardy / 2 // so many requests stall that doubles do, too
	case !pays && !sure:
		after = time.Duration(float64(tardy) * math.Pow(tardyGrowth, float64(w.doubles)))
	}
	if still >= w.started+after && b.link.mayDouble(sure) {
		w.doubles++
		w.started = still
		b.doubleLocked()
	}
	return step
}

// hedged reports whether a double can fetch exactly the remaining bytes.
func (b *body) hedged() bool {
	ranges := b.link.ranges.Load()
	return !b.whole && ranges != rangesIgnored && (!b.r.Stream || ranges == rangesHonoured || b.at > b.r.Off)
}

// bounds returns how long a request may bring nothing before it counts as
// stalled, and before it is given up.
func (b *body) bounds() (tardy, patience time.Duration) {
	l := b.link
	least := l.opts.Tardy
	if l.busy.read != nil && l.busy.isBusy() {
		least = tardyBusy
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	patience = patienceFirst
	if tardy = max(tardyFirst, least); l.delay.known {
		tardy = max(least, l.delay.most(), l.delay.mean*3/2)
		if !b.opening {
			tardy = max(tardy, l.gap.most(), 3*b.watch.gap)
		}
		patience = max(patienceFactor*tardy, patienceLeast)
	}
	patience = min(patience<<min(l.givenUp, 5), patienceMost)
	if (b.whole || b.r.Stream && b.at > b.r.Off) && l.ranges.Load() != rangesHonoured {
		patience = patienceStream
	}
	if l.opts.Timeout > 0 {
		patience = min(patience, l.opts.Timeout/3) // leave time for more than one try
	}
	return tardy, patience
}

// overtaken reports whether other requests have shown since the last check
// that the link works: a request that began later was answered, or others
// received bytes while this one was stalled.
func (b *body) overtaken(tardy time.Duration) bool {
	l, w := b.link, &b.watch
	sign, least := l.newest.Load(), int64(b.cur.began)
	if !b.opening {
		sign, least = l.lastBytes.Load(), int64(w.since.Sub(l.epoch)+tardy/2)
	}
	is := sign >= least && sign > w.sign
	w.sign = sign
	return is
}

// giveUpLocked cancels the request and its double.
func (b *body) giveUpLocked() {
	b.watch.gaveUp = true
	b.link.gaveUp()
	b.cur.cancel(ErrSlow)
	if b.double != nil {
		b.double.cancel(ErrSlow)
	}
}

// budget bounds doubles by tokens. Each double takes one. A share of all
// answers earns one, so doubles stay at a few percent when everything is
// slow and they do not help. A double that wins earns two, so a registry
// that stalls many requests gets as many doubles.
type budget struct {
	tokens float64
	filled time.Time
}

const (
	tokensFirst   = 2.0
	tokensMost    = 8.0
	tokensDebt    = -8.0 // for a stalled request that others have overtaken
	tokensAnswer  = 0.05
	tokensWon     = 2.0
	tokensASecond = 0.05
)

// earn adds tokens, up to most.
func (t *budget) earn(n, most float64) {
	if t.tokens < most {
		t.tokens = min(t.tokens+n, most)
	}
}

// mayDouble takes a token for a double, if one is left. sure reports that
// other requests have overtaken the stalled one.
func (l *Link) mayDouble(sure bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.asked) || l.failures > 0 {
		return false // the source is in trouble, not this request
	}
	t := &l.budget
	t.earn(now.Sub(t.filled).Seconds()*tokensASecond, tokensFirst)
	t.filled = now
	least := 1.0
	if sure {
		least = tokensDebt
	}
	if t.tokens < least {
		return false
	}
	t.tokens--
	l.slow++
	return true
}

// pays reports whether doubles have won lately.
func (l *Link) pays() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.budget.tokens > tokensFirst
}

// doubleWon records that a double has received bytes first.
func (l *Link) doubleWon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.budget.earn(tokensWon, tokensMost)
}

// gaveUp records that a request was given up. The next request gets more
// time.
func (l *Link) gaveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.givenUp++
	l.slow++
}
