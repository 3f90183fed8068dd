package transport

import (
	"math"
	"time"
)

const (
	// tardyLeast is the shortest time that counts as standing still, if
	// Options do not say: less is the scheduler's and the garbage collector's.
	tardyLeast = 80 * time.Millisecond
	// tardyFirst is that time while no request was answered.
	tardyFirst = 200 * time.Millisecond
	// tardyGrowth is by how much longer each further double is waited for,
	// unless doubles have won, or other requests show that the link is well.
	tardyGrowth = 1.5
	// looks is how often a request that stands still is looked at in that
	// time.
	looks = 4
	// lateTimer is how late a timer may be before the machine is what is slow.
	lateTimer = 20 * time.Millisecond
)

// Bounds of the patience with a request, after which it is given up.
const (
	patienceLeast  = 2 * time.Second
	patienceFirst  = 10 * time.Second // while no request was answered
	patienceMost   = 60 * time.Second
	patienceStream = 60 * time.Second // if it could only begin again
	patienceFactor = 8                // of what counts as standing still
)

// watch is what a body knows of the wait for its next bytes. It is under
// body.mu.
type watch struct {
	timer   *time.Timer
	due     time.Time // when timer fires
	waiting bool
	since   time.Time     // when the wait began
	gap     time.Duration // the longest wait that ended with bytes
	doubles int           // how many were started in this wait
	started time.Duration // into the wait, when the last of them was
	signs   int           // looks at which other requests had overtaken this one since the last look
	sign    int64         // what showed it
	gaveUp  bool
}

// begin begins a wait for bytes.
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

// resumeWaitLocked goes on with a wait.
func (b *body) resumeWaitLocked() {
	b.watch.waiting = true
	opts := &b.link.opts
	first := opts.Tardy * (looks - 1) / looks
	if opts.Timeout > 0 {
		first = min(first, opts.Timeout/3) // then it may have to be given up
	}
	b.armLocked(time.Now(), min(first, patienceLeast))
}

// endWaitLocked ends a wait and returns how long it was.
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

// look looks at a wait: it starts a double when the request stands still,
// and gives it up in the end.
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

// hedgeLocked starts a double if it is time for one, and returns when to
// look again.
func (b *body) hedgeLocked(still, tardy time.Duration) time.Duration {
	w := &b.watch
	step := tardy / looks
	if still < tardy-step {
		return tardy - step - still
	}
	if b.overtaken(tardy) {
		w.signs++
	}
	sure := w.signs > 1 // and not only in the moment before everything became slow
	after := tardy
	switch pays := b.link.pays(); {
	case pays && w.doubles > 1:
		after = tardy / 2 // so many requests stand still that doubles do
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

// hedged reports whether a double could get what is left, and nothing else.
func (b *body) hedged() bool {
	ranges := b.link.ranges.Load()
	return !b.whole && ranges != rangesIgnored && (!b.r.Stream || ranges == rangesHonoured || b.at > b.r.Off)
}

// bounds returns how long the request may bring nothing before it counts as
// standing still, and before it is given up.
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
		patience = min(patience, l.opts.Timeout/3) // it is for more than one try
	}
	return tardy, patience
}

// overtaken reports whether other requests have shown since the last look
// that the link is well: one that began later was answered, or their bytes
// came while this one's stood still.
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

// budget bounds doubles, in tokens. Each takes one. A share of all answers
// earns one, so doubles stay a few in a hundred when everything is slow at
// once and none of them helps. A double that wins earns two, so that a
// registry that lets many requests stand still is met with as many.
type budget struct {
	tokens float64
	filled time.Time
}

const (
	tokensFirst   = 2.0
	tokensMost    = 8.0
	tokensDebt    = -8.0 // for requests that others have overtaken
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

// mayDouble takes a token for a double, if there is one. sure says that
// other requests have overtaken the one that stands still.
func (l *Link) mayDouble(sure bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Before(l.asked) || l.failures > 0 {
		return false // the source is in trouble, and not this request
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

// doubleWon notes that a double has brought bytes first.
func (l *Link) doubleWon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.budget.earn(tokensWon, tokensMost)
}

// gaveUp notes that a request was given up: the next gets more patience.
func (l *Link) gaveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.givenUp++
	l.slow++
}
