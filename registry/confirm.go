package registry

import (
	"net/http"
	"strings"
)

// confirm asks for what was stored by the digest that it has. What the
// registry announced instead decides nothing: it may be another algorithm's,
// or of another form. The request that stored it is still open.
func (t target) confirm(resp *http.Response, digest, announced string) error {
	other := t.wrong("the registry stored it as %q, not as %s", clip(announced), digest)
	if resp.Request.URL.Query().Get("from") == t.name {
		return other // a mount from the repository itself is not worth a question
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
		return nil // it is there, or the registry does not say
	case s == http.StatusNotFound:
		return other
	}
	return t.status(head)
}
