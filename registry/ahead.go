package registry

import "io"

// readChunk is a part of a body that was read into a chunk buffer.
type readChunk struct {
	buf *[]byte
	n   int
	err error // ended the body; as from io.ReadFull
}

// ahead reads a body in chunks, one chunk ahead of its consumer.
type ahead struct {
	full chan readChunk // the next chunk, or the error that ended the body
	free chan *[]byte   // buffers whose bytes are no longer needed
	stop chan struct{}
}

// readAhead starts reading body. The caller returns buffers to free, and
// calls close before anything else reads or seeks body.
func readAhead(body io.Reader) *ahead {
	a := &ahead{full: make(chan readChunk), free: make(chan *[]byte, 2), stop: make(chan struct{})}
	a.free <- chunks.Get().(*[]byte)
	a.free <- chunks.Get().(*[]byte)
	go a.run(body)
	return a
}

func (a *ahead) run(body io.Reader) {
	defer close(a.full)
	for {
		p := readChunk{}
		select {
		case p.buf = <-a.free:
		case <-a.stop:
			return
		}
		p.n, p.err = io.ReadFull(&interrupted{body, a.stop}, *p.buf)
		select {
		case a.full <- p:
		case <-a.stop:
			chunks.Put(p.buf)
			return
		}
		if p.err != nil {
			return
		}
	}
}

// close stops reading and returns once the reading goroutine has ended.
func (a *ahead) close() {
	close(a.stop)
	for range a.full {
	}
	for {
		select {
		case buf := <-a.free:
			chunks.Put(buf)
		default:
			return
		}
	}
}

// interrupted is a reader that fails before its next read once stop is
// closed.
type interrupted struct {
	r    io.Reader
	stop <-chan struct{}
}

func (i *interrupted) Read(p []byte) (int, error) {
	select {
	case <-i.stop:
		return 0, io.ErrClosedPipe
	default:
		return i.r.Read(p)
	}
}
