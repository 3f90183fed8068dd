package registrytest

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Fault is a fault of a request. If it concerns neither the answer's body
// nor a range, the registry does not see the request.
type Fault struct {
	Match func(*http.Request) bool // nil: every request
	Times int                      // how often; 0: until Clear

	Status int           // answer with this status instead
	Header http.Header   // of that answer, or further ones of the registry's
	Body   string        // of that answer
	Delay  time.Duration // before anything else
	Drop   bool          // break the connection instead of an answer
	Whole  bool          // the registry does not see that a range is asked for

	Cut      int64 // break the connection after this many bytes of body, if > 0
	Flip     int64 // change the body's byte with this number, counted from 1
	Stall    int64 // send this many bytes of body, if > 0, and then nothing until the client leaves or Clear
	DropBody int64 // break the connection after this many bytes of the request's body, if > 0

	once sync.Once
	free chan struct{} // closed by Clear
}

// Path matches requests whose path holds the text.
func Path(text string) func(*http.Request) bool {
	return func(r *http.Request) bool { return strings.Contains(r.URL.Path, text) }
}

// Method matches requests with a method whose path holds the text.
func Method(method, text string) func(*http.Request) bool {
	return func(r *http.Request) bool { return r.Method == method && strings.Contains(r.URL.Path, text) }
}

// Inject makes a fault of the requests to come. The first that matches is
// taken.
func (f *Front) Inject(fault *Fault) {
	fault.free = make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, fault)
}

// Clear ends all faults and releases requests that stall in one.
func (f *Front) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fault := range f.faults {
		fault.once.Do(func() { close(fault.free) })
	}
	f.faults = nil
}

// takeLocked finds the fault of a request and counts it. One that is used
// up stays in the list, so that Clear reaches those who stall in it.
func (f *Front) takeLocked(req *http.Request) *Fault {
	for _, fault := range f.faults {
		if fault.Times < 0 || fault.Match != nil && !fault.Match(req) {
			continue
		}
		if fault.Times > 0 {
			if fault.Times--; fault.Times == 0 {
				fault.Times = -1
			}
		}
		return fault
	}
	return nil
}

// before causes faults before the registry sees a request. It reports
// whether it has answered.
func (fault *Fault) before(w http.ResponseWriter, req *http.Request) bool {
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-fault.free:
		case <-req.Context().Done():
		}
	}
	if fault.DropBody > 0 {
		io.CopyN(io.Discard, req.Body, fault.DropBody)
	}
	if fault.Drop || fault.DropBody > 0 {
		panic(http.ErrAbortHandler)
	}
	if fault.Whole {
		req.Header.Del("Range")
	}
	for k, v := range fault.Header {
		w.Header()[k] = v
	}
	if fault.Status == 0 {
		return false
	}
	w.WriteHeader(fault.Status)
	io.WriteString(w, fault.Body)
	return true
}

// writer counts an answer and makes the faults of its body.
type writer struct {
	http.ResponseWriter
	rec   *Request
	req   *http.Request
	fault *Fault
}

// WriteHeader notes the status.
func (w *writer) WriteHeader(status int) {
	w.rec.status.CompareAndSwap(0, int64(status))
	w.ResponseWriter.WriteHeader(status)
}

// Write passes bytes on, or what the fault makes of them.
func (w *writer) Write(p []byte) (int, error) {
	w.rec.status.CompareAndSwap(0, http.StatusOK)
	if w.fault == nil {
		return w.pass(p)
	}
	at := w.rec.Sent()
	if f := w.fault.Flip - 1 - at; w.fault.Flip > 0 && f >= 0 && f < int64(len(p)) {
		p = append([]byte(nil), p...)
		p[f] ^= 0x40
	}
	if left := w.fault.Cut - at; w.fault.Cut > 0 && left <= int64(len(p)) {
		w.pass(p[:max(0, left)])
		w.Flush()
		panic(http.ErrAbortHandler)
	}
	if left := w.fault.Stall - at; w.fault.Stall > 0 && left < int64(len(p)) {
		w.pass(p[:max(0, left)])
		w.Flush()
		p = p[max(0, left):]
		select {
		case <-w.fault.free:
		case <-w.req.Context().Done():
			panic(http.ErrAbortHandler)
		}
		n, err := w.pass(p)
		return n + int(max(0, left)), err
	}
	return w.pass(p)
}

// pass counts before it writes: the client may have the bytes, and the test
// ask for the count, before Write returns. It writes a little at a time, so
// that what is counted and not sent is little too.
func (w *writer) pass(p []byte) (n int, err error) {
	for {
		next := p[n:min(len(p), n+32<<10)]
		w.rec.sent.Add(int64(len(next)))
		k, err := w.ResponseWriter.Write(next)
		w.rec.sent.Add(int64(k - len(next)))
		if n += k; err != nil || n == len(p) {
			return n, err
		}
	}
}

// Flush sends what was written.
func (w *writer) Flush() {
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}
