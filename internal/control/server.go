package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

const (
	// answerIn bounds the time for one question.
	answerIn = 5 * time.Second
	// maxAsking bounds concurrent questions; others wait.
	maxAsking = 8
)

// Server answers questions about one mount.
type Server struct {
	l       *net.UnixListener
	name    string // of its socket
	status  func() Mount
	asking  chan struct{}
	answers sync.WaitGroup
}

// Serve starts a server with a socket in dir, which it creates if missing.
// Each answer is a new result of status, with current rates.
func Serve(dir string, status func() Mount) (*Server, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := checkDir(dir, os.Geteuid()); err != nil {
		return nil, err
	}
	name := filepath.Join(dir, strconv.Itoa(os.Getpid())+suffix)
	l, err := listen(name, filepath.Join(dir, strconv.Itoa(os.Getpid())+newSuffix))
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	s := &Server{l: l, name: name, status: withRates(status), asking: make(chan struct{}, maxAsking)}
	s.answers.Go(s.serve)
	return s, nil
}

// listen creates the socket under the name first and renames it to name once
// it listens: clients take a socket that does not listen for a dead
// process's.
func listen(name, first string) (*net.UnixListener, error) {
	_ = os.Remove(first) // of a dead process with the same id
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: first, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(first, 0o600); err == nil {
		err = os.Rename(first, name)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(first))
	}
	return l, nil
}

func (s *Server) serve() {
	for {
		s.asking <- struct{}{}
		conn, err := s.l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, perhaps only for a moment
			<-s.asking
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.answers.Go(func() {
			defer func() { <-s.asking }()
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(answerIn))
			_ = json.NewEncoder(conn).Encode(s.status())
		})
	}
}

// Close stops the server and removes its socket.
func (s *Server) Close() error {
	_ = os.Remove(s.name)
	err := s.l.Close()
	s.answers.Wait()
	return err
}
