package registry

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// lookMost bounds the wait between two checks whether a registry is back.
const lookMost = 5 * time.Second

// comesBack waits for a registry that answered before and is unreachable
// now, so that its restart does not use up the few tries of a request. It
// returns false if the registry does not answer within the client's
// patience. It returns at once without patience, and after other errors.
func (r *Registry) comesBack(ctx context.Context, err error) bool {
	if r.patience == 0 || !r.answered.Load() || !errors.Is(err, ErrUnreachable) {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	for wait := r.limits.first; !r.isUp(ctx); wait = min(2*wait, lookMost) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// isUp reports whether the registry itself answers, with whatever status.
func (r *Registry) isUp(ctx context.Context) bool {
	q := request{target: r.target("look for", "registry", ""), method: http.MethodGet, url: r.at("")}
	resp, err := r.follow(ctx, q, authorization{})
	if err != nil {
		return false
	}
	drain(resp)
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	}
	return true
}
