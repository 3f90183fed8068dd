package registry

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// lookMost bounds the wait between two looks whether a registry is back.
const lookMost = 5 * time.Second

// comesBack waits for a registry that has answered before and does not now,
// so that a restart does not use up the few tries that a request has. It
// returns false when there is no answer within the client's patience. With
// none, and after errors of other kinds, it does not look.
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

// isUp says that the registry answers for itself, whatever that is.
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
