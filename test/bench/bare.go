package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// bareRequests is how many requests are in flight, as many as a mount's.
const bareRequests = 16

// bare sends the requests for blobs of a start's last run again, from a client
// that does nothing else, and returns the seconds of each run: what the link and
// the server take alone.
func (b *bench) bare(ctx context.Context, s *start) (sample, error) {
	backend, stop, err := b.lean(nil)
	if err != nil {
		return nil, err
	}
	defer stop()
	var seconds sample
	for range b.runs {
		proxy, err := shaping.Start(backend, s.link)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		err = sendAll(ctx, "http://"+proxy.Addr(), s.requests)
		seconds = append(seconds, time.Since(began).Seconds())
		proxy.Close()
		if err != nil {
			return nil, err
		}
	}
	return seconds, nil
}

// sendAll sends requests, some at a time, and reads the answers.
func sendAll(ctx context.Context, url string, requests []request) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: bareRequests}}
	defer client.CloseIdleConnections()
	var g errgroup.Group
	g.SetLimit(bareRequests)
	for _, r := range requests {
		g.Go(func() error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+r.path, http.NoBody)
			if err != nil {
				return err
			}
			if r.span != "" {
				req.Header.Set("Range", r.span)
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				return fmt.Errorf("%s: %s", r.path, resp.Status)
			}
			_, err = io.Copy(io.Discard, resp.Body)
			return err
		})
	}
	return g.Wait()
}
