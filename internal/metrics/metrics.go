// Package metrics shows what a mount tells of itself to Prometheus. All
// values are looked up when they are asked for: between two scrapes it
// costs nothing.
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

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cocoonstack/epochfs/internal/control"
)

// Address is where metrics are served, as host:port. A port alone is one
// of the loopback address. It is a flag's value; "" for nowhere.
type Address string

// Set reads it.
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

// String is host:port.
func (a *Address) String() string { return string(*a) }

// Type names the kind of value in help texts.
func (a *Address) Type() string { return "addr" }

// Patience with those who ask.
const (
	headerIn = 5 * time.Second
	answerIn = 10 * time.Second
	most     = 2 // at a time
)

// Server serves metrics. A nil one serves nothing.
type Server struct {
	l    net.Listener
	http *http.Server
	done chan struct{}
}

// Listen takes the address; who asks waits until Serve. It returns nil
// where there is no address.
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

// Addr is where it listens, as host:port; "" where it does not.
func (s *Server) Addr() string {
	if s == nil {
		return ""
	}
	return s.l.Addr().String()
}

// Serve begins to answer GET /metrics with what status says.
func (s *Server) Serve(version string, status func() control.Mount) {
	if s == nil {
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", handler(version, status))
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerIn, ReadTimeout: headerIn, WriteTimeout: answerIn, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0), // who asks wrongly is told
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(s.l) // it ends with Close
	}()
}

// Close ends it.
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

// handler answers scrapes from a registry of its own: the default one has
// collectors that nobody asked for.
func handler(version string, status func() control.Mount) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{version: version, status: status})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{
		MaxRequestsInFlight: most, Timeout: answerIn, ErrorHandling: promhttp.HTTPErrorOnError,
	})
}
