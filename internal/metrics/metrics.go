// Package metrics exports a mount's status to Prometheus. Values are
// determined only for a scrape, so nothing is spent between two scrapes.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/control"
)

// Address is the address of the metrics endpoint, as host:port. A port alone
// means the loopback address, and "" no endpoint. An Address can be a flag's
// value.
type Address string

// Set parses s.
func (a *Address) Set(s string) error {
	if !strings.Contains(s, ":") {
		s = ":" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return errors.New("it is [HOST:]PORT")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return errors.New("the port is a number up to 65535")
	}
	if host == "" {
		host = "127.0.0.1"
	}
	*a = Address(net.JoinHostPort(host, port))
	return nil
}

// String returns host:port.
func (a *Address) String() string { return string(*a) }

// Type returns the name of the value in help texts.
func (a *Address) Type() string { return "addr" }

// Limits on clients.
const (
	headerIn = 5 * time.Second
	answerIn = 10 * time.Second
	most     = 2 // concurrent scrapes
)

// Server serves metrics. A nil Server serves nothing.
type Server struct {
	l    net.Listener
	http *http.Server
	done chan struct{}
}

// Listen listens on an address. Clients that connect before Serve wait.
// Listen returns nil if at is "".
func Listen(at Address) (*Server, error) {
	if at == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", string(at))
	if err != nil {
		return nil, fmt.Errorf("metrics cannot be served: %w", err)
	}
	return &Server{l: l, done: make(chan struct{})}, nil
}

// Addr returns the listener's address, as host:port, or "" for a nil Server.
func (s *Server) Addr() string {
	if s == nil {
		return ""
	}
	return s.l.Addr().String()
}

// Serve starts to answer GET /metrics with the results of status.
func (s *Server) Serve(version string, status func() control.Mount) {
	if s == nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler(version, status))
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerIn, ReadTimeout: headerIn, WriteTimeout: answerIn, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), // clients get the error in the answer
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(s.l) // it returns after Close
	}()
}

// Close stops the server.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	if s.http == nil {
		return s.l.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = s.http.Close()
	}
	<-s.done
	return err
}

// handler answers scrapes.
func handler(version string, status func() control.Mount) http.Handler {
	scrapes := make(chan struct{}, most)
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case scrapes <- struct{}{}:
			defer func() { <-scrapes }()
		default:
			http.Error(w, "too many scrapes at a time", http.StatusServiceUnavailable)
			return
		}
		t := new(text)
		collect(t, version, status(), time.Now())
		w.Header().Set("Content-Type", contentType)
		_, _ = w.Write(t.Bytes()) // it fails if the client has gone
	})
	return http.TimeoutHandler(answer, answerIn, "the mount does not tell its status")
}
