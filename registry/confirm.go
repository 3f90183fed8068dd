package registry

import (
	"net/http"
	"strings"
)

// confirm checks that the registry has the stored content under its digest.
// The digest that the registry announced decides nothing: it may have
// another algorithm or form. The caller has not yet closed the answer of the
// request that stored the content.
func (t target) confirm(resp *http.Response, digest, announced string) error {
	other := t.wrong("the registry stored it as %q, not as %s", clip(announced), digest)
	if resp.Request.URL.Query().Get("from") == t.name {
		return other // a mount from the repository itself does not justify another request
	}
	kind := "/blobs/"
	header := http.Header{}
	if strings.HasPrefix(t.op, "put manifest") {
		kind = "/manifests/"
		header.Set("Accept", manifestTypes)
	}
	q := request{
		target: t,
		method: http.MethodHead,
		url:    t.r.at(t.name + kind + digest),
		header: header,
		access: access{name: t.name, push: true},
	}
	head, err := t.r.do(resp.Request.Context(), q)
	if err != nil {
		return err
	}
	defer drain(head)
	switch s := head.StatusCode; {
	case s == http.StatusOK, s == http.StatusForbidden, s == http.StatusMethodNotAllowed:
		return nil // stored, or the registry does not say
	case s == http.StatusNotFound:
		return other
	}
	return t.status(head)
}
