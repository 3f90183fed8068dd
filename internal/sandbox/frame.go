package sandbox

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A frame is a kind, the length of its payload as four bytes with the lowest
// first, and the payload.
const headerSize = 5

// helloFrame is a child's first frame: its payload is the Level. Callers use
// kinds from 1 on.
const helloFrame = 0

// Conn carries frames. One goroutine may read while another writes.
type Conn struct {
	r   io.Reader
	w   io.Writer
	in  []byte // of the last frame read; grows up to MaxFrame
	out []byte
}

// Read returns the next frame. The payload is valid until the next Read.
func (c *Conn) Read() (kind byte, payload []byte, err error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(h[1:]))
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	if n > cap(c.in) {
		c.in = make([]byte, max(n, 4096))
	}
	payload = c.in[:n]
	_, err = io.ReadFull(c.r, payload)
	return h[0], payload, err
}

// Buffer returns an empty payload to append to, for Write. It is valid until
// the next Buffer.
func (c *Conn) Buffer() []byte {
	if c.out == nil {
		c.out = make([]byte, headerSize, 4096)
	}
	return c.out[headerSize:headerSize]
}

// Write sends a frame. It does not copy a payload that was appended to
// Buffer's result.
func (c *Conn) Write(kind byte, payload []byte) error {
	if len(payload) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes", len(payload))
	}
	frame := c.out
	if cap(frame) < headerSize+len(payload) || len(payload) > 0 && &frame[:headerSize+1][headerSize] != &payload[0] {
		frame = append(make([]byte, headerSize, headerSize+len(payload)), payload...)
		c.out = frame
	}
	frame = frame[:headerSize+len(payload)]
	frame[0] = kind
	binary.LittleEndian.PutUint32(frame[1:], uint32(len(payload)))
	_, err := c.w.Write(frame)
	return err
}
