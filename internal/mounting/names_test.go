package mounting

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

// nameServer answers every question for an IPv4 address with 127.0.0.1,
// and others with nothing, or all with an error (RFC 1035, 4.1).
type nameServer struct {
	rcode atomic.Uint32 // 0: no error
	asked atomic.Int64
}

// startNameServer has all names of the process resolved by one until the
// test ends.
func startNameServer(t *testing.T) *nameServer {
	s := &nameServer{}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	was := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve(conn)
	}()
	t.Cleanup(func() {
		net.DefaultResolver = was
		conn.Close()
		<-done
	})
	return s
}

func (s *nameServer) serve(conn net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		const header = 12
		end := header + bytes.IndexByte(buf[header:n], 0) + 5 // of the question
		if n < header || end > n {
			continue
		}
		s.asked.Add(1)
		reply := append([]byte(nil), buf[:end]...)
		binary.BigEndian.PutUint16(reply[2:], 0x8180|uint16(s.rcode.Load())) // an answer
		copy(reply[4:header], []byte{0, 1, 0, 0, 0, 0, 0, 0})
		if isA := binary.BigEndian.Uint16(buf[end-4:]) == 1; isA && s.rcode.Load() == 0 {
			reply[7] = 1
			reply = append(reply, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
		}
		_, _ = conn.WriteTo(reply, from)
	}
}

// A name server that fails in the middle, or does not know the name any
// more, is waited for as a registry is.
func TestNamesFail(t *testing.T) {
	const servfail, nxdomain = 2, 3
	names := startNameServer(t)
	for what, rcode := range map[string]uint32{"server failure": servfail, "no such name": nxdomain} {
		t.Run(what, func(t *testing.T) {
			a, data := big()
			p := newPlace(t, registrytest.NewHandler(), a)
			_, port, err := net.SplitHostPort(p.front.Host)
			if err != nil {
				t.Fatal(err)
			}
			p.cfg.EpochServer, p.cfg.ReadTimeout = "http://registry.test:"+port, 0
			o := p.mustOpen("registry.test:" + port + "/team/vm:v1")

			names.rcode.Store(rcode)
			p.front.Inject(&registrytest.Fault{Drop: true}) // no connection lasts
			read := make(chan struct{})
			go func() {
				defer close(read)
				readAt(t, o, data)
			}()
			for deadline := time.Now().Add(20 * time.Second); o.networkStatus().Causes["dns"] < 3; {
				if time.Now().After(deadline) {
					t.Errorf("%d questions were asked, tried again was for %v", names.asked.Load(), o.networkStatus().Causes)
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			p.front.Clear()
			names.rcode.Store(0)
			<-read
		})
	}
}
