package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Upstream is the state of one of the hosts that Mirrors reads from.
type Upstream struct {
	Host    string // with the port, if one is named
	Own     bool   // the registry itself, not a mirror
	Trusted bool   // may serve bytes that no digest verifies in time
	Stats   Stats

	Failures int       // of a mirror, consecutive
	Resting  time.Time // the mirror is not asked before this time; zero or past if it may be asked
	Err      error     // the last failure; nil after a complete body
	Missing  int       // blobs that it lacked
	Wrong    int       // blobs of which it sent wrong bytes
}

// Upstreams returns all upstreams in the order in which they are asked. The
// registry itself is the last; its failures are its callers' to report.
func (m *Mirrors) Upstreams() []Upstream {
	all := make([]Upstream, 0, len(m.upstreams))
	for _, p := range m.upstreams {
		all = append(all, p.status(time.Now()))
	}
	return all
}

func (p *upstream) status(now time.Time) Upstream {
	s := Upstream{Host: p.reg.host, Own: p.own, Trusted: p.trusted, Stats: p.reg.Stats()}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Failures, s.Resting, s.Err = p.failures, p.until, p.last
	for _, b := range p.blobs {
		if b.wrong {
			s.Wrong++
		}
		if now.Before(b.missing) {
			s.Missing++
		}
	}
	return s
}

// Reasons counts the retries in Stats by Error.Reason.
func (m *Mirrors) Reasons() map[string]int64 {
	all := map[string]int64{}
	for _, p := range m.upstreams {
		p.reg.reasons.addTo(all)
	}
	return all
}

// tally counts errors by reason. Its zero value is ready to use.
type tally struct {
	mu       sync.Mutex
	byReason map[string]int64
}

func (t *tally) count(err error) {
	reason := "other"
	var e *Error
	if errors.As(err, &e) {
		reason = e.Reason()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byReason == nil {
		t.byReason = map[string]int64{}
	}
	t.byReason[reason]++
}

func (t *tally) addTo(all map[string]int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for reason, n := range t.byReason {
		all[reason] += n
	}
}

// Reason returns the cause as one word of a small set, for counters:
// http_503, refused, reset, no_route, dns, certificate, stalled, timeout,
// cut, content, denied or other.
func (e *Error) Reason() string {
	reason, _ := e.brief()
	return reason
}

// Brief returns the cause in a few words, without operation and target.
func (e *Error) Brief() string {
	_, text := e.brief()
	return text
}

// errnos are the names of network errors.
var errnos = map[syscall.Errno]string{
	syscall.ECONNREFUSED: "refused",
	syscall.ECONNRESET:   "reset",
	syscall.EPIPE:        "reset",
	syscall.ENETUNREACH:  "no_route",
	syscall.EHOSTUNREACH: "no_route",
	syscall.ENETDOWN:     "no_route",
	syscall.ETIMEDOUT:    "timeout",
}

func (e *Error) brief() (reason, text string) {
	var errno syscall.Errno
	var dns *net.DNSError
	var late net.Error
	known := errors.As(e.cause, &errno) && errnos[errno] != ""
	switch {
	case e.Status != 0 && e.cause == nil && http.StatusText(e.Status) != "":
		code := strconv.Itoa(e.Status)
		return "http_" + code, code + " " + http.StatusText(e.Status)
	case e.kind == ErrContent:
		return "content", "wrong content"
	case known:
		return errnos[errno], errno.Error()
	case errors.As(e.cause, &dns):
		return "dns", "the host's name cannot be resolved"
	case isCertificate(e.cause):
		return "certificate", "its certificate is not trusted"
	case errors.Is(e.cause, errStalled):
		return "stalled", errStalled.Error()
	case errors.Is(e.cause, errHungUp):
		return "reset", errHungUp.Error()
	case errors.Is(e.cause, context.DeadlineExceeded), errors.As(e.cause, &late) && late.Timeout():
		return "timeout", "no answer in time"
	case errors.Is(e.cause, io.ErrUnexpectedEOF):
		return "cut", "the connection was cut"
	case e.kind == ErrDenied:
		return "denied", ErrDenied.Error()
	case e.cause != nil:
		return "other", clip(e.cause.Error())
	}
	return "other", "it failed"
}
