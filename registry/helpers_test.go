package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/artifacttest"
	"github.com/cocoonstack/epochfs/test/tier"
	"github.com/google/go-containerregistry/pkg/authn"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Large blobs need not be so large here, but no socket should take one.
	uploadChunk = 1 << 20
	if tier.Shorter() == 1 {
		uploadChunk = 4 << 20
	}
	smallChunk = uploadChunk / 4
	goleak.VerifyTestMain(m)
}

// keys is a keychain with one account, or with none.
type keys struct {
	cfg   *authn.AuthConfig
	mu    sync.Mutex
	asked []string
}

func (k *keys) Resolve(r authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked = append(k.asked, r.String())
	if k.cfg == nil {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(*k.cfg), nil
}

func account(user, password string) *keys {
	return &keys{cfg: &authn.AuthConfig{Username: user, Password: password}}
}

// quickLimits are limits with which a test need not wait.
func quickLimits() limits {
	l := defaultLimits()
	l.first = time.Millisecond
	return l
}

// client makes a client for a server's base URL that is closed with the
// test and has no credentials unless opts say so.
func client(t testing.TB, base string, opts Options) *Registry {
	t.Helper()
	return clientWith(t, base, opts, quickLimits(), nil)
}

func clientWith(t testing.TB, base string, opts Options, lim limits, dial dialFunc) *Registry {
	t.Helper()
	if opts.Keychain == nil {
		opts.Keychain = &keys{}
	}
	if dial == nil {
		dial = dialNarrow
	}
	scheme, host, _ := strings.Cut(base, "://")
	r, err := newRegistry(Reference{Scheme: scheme, Host: host, Repository: "vm", Tag: "1"}, opts, lim, dial)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// dialNarrow makes connections whose sockets do not take a large blob.
func dialNarrow(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return conn, conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
}

// random are n bytes that are the same in every run.
func random(n int) []byte {
	b := make([]byte, n)
	artifacttest.Fill(b, uint64(n))
	return b
}

func readAll(t *testing.T, rc io.ReadCloser, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reads compares what comes with what should. It keeps nothing of it: memory
// that is touched for the first time is what takes longest under the race
// detector.
func reads(t *testing.T, what string, rc io.ReadCloser, err error, want []byte) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	buf := make([]byte, 64<<10)
	for at := 0; ; {
		n, err := rc.Read(buf)
		if n > len(want)-at || !bytes.Equal(buf[:n], want[at:at+n]) {
			t.Errorf("%s: after %d bytes come others than the %d wanted", what, at, len(want))
			return
		}
		at += n
		if err == io.EOF && at < len(want) {
			t.Errorf("%s: %d bytes and not %d", what, at, len(want))
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes that are not the %d wanted", what, len(got), len(want))
	}
}

// wantError checks an error's kind, whether it is worth another try, and
// that its text is one line without any of the secrets.
func wantError(t *testing.T, err, kind error, temporary bool, secrets ...string) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("not an *Error: %v", err)
	}
	if !errors.Is(err, kind) {
		t.Errorf("%v: is not %v", err, kind)
	}
	if e.Temporary() != temporary {
		t.Errorf("%v: temporary is %v", err, e.Temporary())
	}
	text := err.Error()
	if strings.ContainsAny(text, "\n\r\x1b") {
		t.Errorf("not one clean line: %q", text)
	}
	for _, s := range secrets {
		if strings.Contains(text, s) {
			t.Errorf("%q holds the secret %q", text, s)
		}
	}
	return e
}

// dialLog connects every host name to one server and notes who was asked
// for.
type dialLog struct {
	to string // host:port of the server; "" refuses all but loopback
	mu sync.Mutex
	at []string
}

func (d *dialLog) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.at = append(d.at, addr)
	d.mu.Unlock()
	if d.to != "" {
		addr = d.to
	} else if !isLoopback(addr) {
		return nil, errors.New("no way out of the test")
	}
	return new(net.Dialer).DialContext(ctx, network, addr)
}

func (d *dialLog) outside() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, a := range d.at {
		if !isLoopback(a) {
			out = append(out, a)
		}
	}
	return out
}

// headers notes an Authorization header of each request, by host.
type headers struct {
	mu  sync.Mutex
	got []string
}

func (h *headers) note(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, r.Header.Get("Authorization"))
}

func (h *headers) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.got...)
}
