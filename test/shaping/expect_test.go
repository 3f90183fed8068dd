package shaping

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A request that expects 100 Continue gets that, and then its answer, whether
// its client waits for the first or not.
func TestExpectContinue(t *testing.T) {
	body := strings.Repeat("x", 1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != body {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	defer s.Close()
	p, err := Start(strings.TrimPrefix(s.URL, "http://"), Options{Delay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, patience := range []time.Duration{time.Nanosecond, time.Hour} {
		transport := &http.Transport{ExpectContinueTimeout: patience}
		for range 3 {
			req, err := http.NewRequest(http.MethodPut, "http://"+p.Addr()+"/blob", bytes.NewReader([]byte(body)))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Expect", "100-continue")
			resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%v: %s", patience, resp.Status)
			}
		}
		transport.CloseIdleConnections()
	}
}
