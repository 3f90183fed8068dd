package shaping

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options say how the link looks. The zero value only counts.
type Options struct {
	Delay        time.Duration // from the end of a request to its passing on; 0: none
	PerConn      int64         // bytes per second of response bodies, each connection; 0: unlimited
	Total        int64         // bytes per second of response bodies, all connections; 0: unlimited
	IgnoreRanges bool          // Range headers are dropped, as by a registry that ignores them
}

// Counts are what passed through a proxy since it was started, or since
// another reading was subtracted.
type Counts struct {
	Requests    int64
	Body        int64 // bytes of response bodies
	Connections int64
}

// Sub returns the counts that came after before was read.
func (c Counts) Sub(before Counts) Counts {
	return Counts{c.Requests - before.Requests, c.Body - before.Body, c.Connections - before.Connections}
}

// Proxy is a running reverse proxy.
type Proxy struct {
	opts     Options
	backend  string
	listener net.Listener
	total    *pace
	ctx      context.Context
	stop     context.CancelFunc
	work     sync.WaitGroup

	requests, body, connections atomic.Int64
}

// Start listens on a free port of loopback and passes requests on to
// backend, a TCP address that speaks plain HTTP/1.1. The Host header is
// passed on as it came, so that the server's own links lead through the
// proxy.
func Start(backend string, opts Options) (*Proxy, error) {
	if opts.Delay < 0 || opts.PerConn < 0 || opts.Total < 0 {
		return nil, errors.New("shaping: a negative delay or rate")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{opts: opts, backend: backend, listener: l, total: newPace(opts.Total)}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.work.Go(p.accept)
	return p, nil
}

// Addr is where the proxy listens, as host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Counts returns what has passed so far. A body that is under way counts
// with the bytes that were sent.
func (p *Proxy) Counts() Counts {
	return Counts{p.requests.Load(), p.body.Load(), p.connections.Load()}
}

// Close breaks all connections and waits for their ends.
func (p *Proxy) Close() error {
	p.stop()
	err := p.listener.Close()
	p.work.Wait()
	return err
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed, or out of descriptors: nothing more will come
		}
		p.connections.Add(1)
		p.work.Go(func() { p.serve(conn.(*net.TCPConn)) })
	}
}
