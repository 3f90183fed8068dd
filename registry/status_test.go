package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/registrytest"
)

func TestReasons(t *testing.T) {
	at := target{op: "get blob", host: "r.example.com", what: "vm"}
	dial := func(errno syscall.Errno) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	for _, c := range []struct {
		err           error
		reason, brief string
	}{
		{at.broken(dial(syscall.ECONNREFUSED)), "refused", "connection refused"},
		{at.broken(dial(syscall.ECONNRESET)), "reset", "connection reset by peer"},
		{at.broken(dial(syscall.EHOSTUNREACH)), "no_route", "no route to host"},
		{at.broken(dial(syscall.ETIMEDOUT)), "timeout", "connection timed out"},
		{at.broken(&net.DNSError{Err: "no such host", Name: "r.example.com"}), "dns", "the host's name cannot be resolved"},
		{at.broken(&tls.CertificateVerificationError{Err: errors.New("x")}), "certificate", "its certificate is not trusted"},
		{at.broken(errStalled), "stalled", "no data arrived for too long"},
		{at.broken(context.DeadlineExceeded), "timeout", "no answer in time"},
		{at.broken(io.EOF), "reset", "the connection was closed without an answer"},
		{at.short(), "cut", "the connection was cut"},
		{at.wrong("what came has digest x"), "content", "wrong content"},
		{at.fail(ErrDenied, nil), "denied", "not allowed"},
		{&Error{Status: 503}, "http_503", "503 Service Unavailable"},
		{&Error{Status: 599}, "other", "it failed"},
		{at.broken(errors.New("a\x1b[2Jb")), "other", "a [2Jb"},
	} {
		var e *Error
		if !errors.As(fmt.Errorf("wrapped: %w", c.err), &e) || e.Reason() != c.reason || e.Brief() != c.brief {
			t.Errorf("%v: %q, %q", c.err, e.Reason(), e.Brief())
		}
	}
}

// Places tell who served, who failed and until when it is left alone.
func TestPlaces(t *testing.T) {
	own, bad, rotten := stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t)), stock(t, registrytest.InMemory(t))
	bad.Inject(&registrytest.Fault{Status: 503})
	m := mirrored(t, own.URL, nil, Options{}, at(bad.Front), at(rotten.Front))
	began := time.Now()
	own.read(t, m, 0, 1000)
	p := m.Upstreams()
	if len(p) != 3 || p[0].Host != bad.Host || p[0].Own || p[1].Own || !p[2].Own || p[2].Host != own.Host {
		t.Fatalf("places: %+v", p)
	}
	var e *Error
	if p[0].Failures != 1 || p[0].Resting.Before(began.Add(time.Second)) || !errors.As(p[0].Err, &e) || e.Reason() != "http_503" {
		t.Errorf("the one that fails: %+v", p[0])
	}
	if p[1].Stats.Requests != 1 || p[1].Stats.Bytes != 1000 || p[1].Failures != 0 || p[1].Err != nil || p[1].Wrong != 0 || p[2].Stats.Requests != 0 {
		t.Errorf("the one that serves: %+v, the registry: %+v", p[1], p[2])
	}
	m.Blame(own.digest, nil)
	if p := m.Upstreams(); p[1].Wrong != 1 {
		t.Errorf("the one that was blamed: %+v", p[1])
	}
}

// Small requests that are made again are counted by what they had failed
// of.
func TestReasonsOfRetries(t *testing.T) {
	own := stock(t, registrytest.InMemory(t))
	own.Inject(&registrytest.Fault{Status: 503, Times: 2})
	m := mirrored(t, own.URL, nil, Options{})
	if _, _, err := m.GetManifest(t.Context(), "vm", "1"); err != nil {
		t.Fatal(err)
	}
	if n := m.Reasons(); m.Stats().Retries != 2 || len(n) != 1 || n["http_503"] != 2 {
		t.Errorf("reasons: %v", n)
	}
}
