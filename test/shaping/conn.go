package shaping

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// bridge joins one client's connection with one of its own to the server.
type bridge struct {
	proxy          *Proxy
	client, server *net.TCPConn
	fromClient     *bufio.Reader
	fromServer     *bufio.Reader
	pace           *pace
}

// serve passes on one connection's requests until either side ends it.
func (p *Proxy) serve(client *net.TCPConn) {
	defer client.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(p.ctx, "tcp", p.backend)
	if err != nil {
		return // the client sees its connection closed
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	unhook := context.AfterFunc(p.ctx, func() {
		client.Close()
		server.Close()
	})
	defer unhook()
	b := &bridge{
		proxy: p, client: client, server: server,
		fromClient: bufio.NewReader(client),
		fromServer: bufio.NewReader(server),
		pace:       newPace(p.opts.PerConn),
	}
	for b.exchange() {
	}
}

// exchange forwards one request and its answer. It reports whether the
// connection can be used again.
func (b *bridge) exchange() bool {
	req, err := http.ReadRequest(b.fromClient)
	if err != nil {
		return false
	}
	b.proxy.requests.Add(1)
	if err := b.proxy.sleep(b.proxy.opts.Delay); err != nil {
		return false
	}
	if b.proxy.opts.IgnoreRanges {
		req.Header.Del("Range")
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "") // or Write would put one there
	}
	if req.Header.Get("Expect") != "" {
		// The server's own 100 would be taken for its answer.
		req.Header.Del("Expect")
		if _, err := io.WriteString(b.client, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return false
		}
	}
	if err := req.Write(b.server); err != nil {
		return false
	}
	resp, err := http.ReadResponse(b.fromServer, req)
	if err != nil {
		return false
	}
	// Its body is not closed: that would read what answer has taken from
	// the connection below it.
	if err := b.answer(req, resp); err != nil {
		return false
	}
	return !req.Close && !resp.Close
}

// answer passes on a response. Where its length is known the body goes
// through the kernel; any other is small here.
func (b *bridge) answer(req *http.Request, resp *http.Response) error {
	n := resp.ContentLength
	if req.Method == http.MethodHead || n < 0 || len(resp.TransferEncoding) > 0 {
		resp.Body = &counted{resp.Body, b}
		return resp.Write(b.client)
	}
	head := bufio.NewWriterSize(b.client, 4096)
	fmt.Fprintf(head, "HTTP/1.1 %s\r\n", resp.Status)
	resp.Header.Set("Content-Length", fmt.Sprint(n))
	if resp.Close {
		resp.Header.Set("Connection", "close")
	}
	_ = resp.Header.Write(head)
	_, _ = head.WriteString("\r\n")
	if err := head.Flush(); err != nil {
		return err
	}
	return b.body(n)
}

// body sends n bytes: first those that came with the headers, then the
// rest as slices from socket to socket.
func (b *bridge) body(n int64) error {
	slice := b.sliceSize()
	for n > 0 {
		var src io.Reader = b.server
		want := min(n, slice)
		if have := int64(b.fromServer.Buffered()); have > 0 {
			src, want = b.fromServer, min(want, have)
		}
		if err := b.wait(want); err != nil {
			return err
		}
		// A LimitedReader over a TCP connection is what splice knows.
		sent, err := b.client.ReadFrom(&io.LimitedReader{R: src, N: want})
		b.proxy.body.Add(sent)
		n -= sent
		if err != nil {
			return err
		}
		if sent < want {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

const (
	sliceMost  = 256 << 10
	sliceLeast = 16 << 10
	// sliceTime is the length of a slice at the connection's rate: long
	// compared with a timer's precision, short compared with what is
	// measured.
	sliceTime = 5 * time.Millisecond
)

func (b *bridge) sliceSize() int64 {
	rate := b.proxy.opts.PerConn
	if rate == 0 {
		rate = b.proxy.opts.Total
	}
	if rate == 0 {
		return 4 * sliceMost
	}
	return max(sliceLeast, min(sliceMost, rate*int64(sliceTime)/int64(time.Second)))
}

// wait pauses until n bytes may have passed, on this connection and on
// the link.
func (b *bridge) wait(n int64) error {
	now := time.Now()
	return b.proxy.sleep(max(b.pace.take(now, n), b.proxy.total.take(now, n)))
}

// sleep fails when the proxy is closed meanwhile.
func (p *Proxy) sleep(d time.Duration) error {
	if d <= 0 {
		return p.ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// counted counts and paces a body of unknown length.
type counted struct {
	io.ReadCloser
	b *bridge
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p[:min(len(p), sliceLeast)])
	c.b.proxy.body.Add(int64(n))
	if werr := c.b.wait(int64(n)); werr != nil {
		return n, werr
	}
	return n, err
}
