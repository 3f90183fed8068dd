package registrytest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// get sends one request on a connection of its own.
func get(t *testing.T, url string, header http.Header, tlsConfig *tls.Config) (int, []byte, error) {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

func TestDebianWithAccountAndTLS(t *testing.T) {
	ca := NewCA(t)
	reg := Debian(t, DebianOptions{Auth: true, CA: ca})
	pem, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	trust := &tls.Config{RootCAs: roots}
	if _, _, err := get(t, reg.URL+"/v2/", nil, nil); err == nil {
		t.Error("the certificate is trusted without the authority")
	}
	if status, _, err := get(t, reg.URL+"/v2/", nil, trust); err != nil || status != 401 {
		t.Error("without an account:", status, err)
	}
	req, _ := http.NewRequest(http.MethodGet, reg.URL, nil)
	req.SetBasicAuth(User, Password)
	if status, _, err := get(t, reg.URL+"/v2/", req.Header, trust); err != nil || status != 200 {
		t.Error("with the account:", status, err)
	}
}

func TestFrontBeforeDebian(t *testing.T) {
	f := Before(t, Debian(t, DebianOptions{}).URL)
	if status, _, err := get(t, f.URL+"/v2/", nil, nil); err != nil || status != 200 {
		t.Fatal(status, err)
	}
	if status, _, err := get(t, f.URL+"/v2/a/manifests/b", nil, nil); err != nil || status != 404 {
		t.Fatal(status, err)
	}
	if c := f.Counts(); c.Other != 1 || c.Manifests != 1 || c.Blobs != 0 {
		t.Fatalf("%+v", c)
	}
}

func TestFaults(t *testing.T) {
	const text = "0123456789"
	f := NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }))
	blob := f.URL + "/v2/a/blobs/sha256:1"

	f.Inject(&Fault{Match: Path("/blobs/"), Times: 1, Status: 429, Header: http.Header{"Retry-After": {"7"}}, Body: "no"})
	if status, body, err := get(t, blob, nil, nil); err != nil || status != 429 || string(body) != "no" {
		t.Error(status, string(body), err)
	}
	f.Inject(&Fault{Times: 1, Flip: 3})
	if _, body, err := get(t, blob, nil, nil); err != nil || string(body) != "01r3456789" {
		t.Error(string(body), err)
	}
	f.Inject(&Fault{Times: 1, Cut: 4})
	if _, body, err := get(t, blob, nil, nil); err == nil || string(body) != "0123" {
		t.Error(string(body), err)
	}
	f.Inject(&Fault{Times: 1, Drop: true})
	if _, _, err := get(t, blob, nil, nil); err == nil {
		t.Error("no error from a dropped connection")
	}
	if _, body, err := get(t, blob, nil, nil); err != nil || string(body) != text {
		t.Error(string(body), err)
	}
	c := f.Counts()
	if c.Blobs != 5 || c.BlobBytes != int64(len("no")+10+4+0+10) {
		t.Errorf("%+v", c)
	}
	if n := f.BlobBytes()["sha256:1"]; n != c.BlobBytes {
		t.Error(n)
	}
}

func TestStallEndsWithClear(t *testing.T) {
	f := NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("x", 100)) }))
	f.Inject(&Fault{Stall: 10})
	done := make(chan int)
	go func() {
		_, body, _ := get(t, f.URL+"/x", nil, nil)
		done <- len(body)
	}()
	deadline := time.Now().Add(10 * time.Second)
	for len(f.Requests()) == 0 || f.Requests()[0].Sent() < 10 {
		if time.Now().After(deadline) {
			t.Fatal("nothing came")
		}
		time.Sleep(time.Millisecond)
	}
	f.Clear()
	if n := <-done; n != 100 {
		t.Error("bytes:", n)
	}
}

// A registry that is kept from seeing a range answers with all there is.
func TestFrontIgnoresRange(t *testing.T) {
	front := NewFront(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
	}))
	ask := http.Header{"Range": {"bytes=2-3"}}
	if status, body, err := get(t, front.URL, ask, nil); err != nil || status != http.StatusPartialContent || string(body) != "23" {
		t.Errorf("%d, %q, %v", status, body, err)
	}
	front.Inject(&Fault{Whole: true})
	if status, body, err := get(t, front.URL, ask, nil); err != nil || status != http.StatusOK || string(body) != "0123456789" {
		t.Errorf("%d, %q, %v", status, body, err)
	}
}
