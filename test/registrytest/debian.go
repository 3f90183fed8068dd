package registrytest

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cocoonstack/epochfs/test/tier"
)

// Binary is the distribution registry as Debian ships it.
const Binary = "docker-registry"

// The one account of a registry with DebianOptions.Auth.
const (
	User     = "epochfs"
	Password = "s3cret-pass"
	// account is User with Password in bcrypt, the only form that the
	// registry takes.
	account = User + ":$2y$05$abcdefghijklmnopqrstuuV7fpPozvyqJfnY19y0802WTlXUm6Rjy\n"
)

// DebianOptions configure a registry's requirements for clients.
type DebianOptions struct {
	Auth  bool   // HTTP basic, User and Password
	CA    *CA    // TLS with its certificate; nil for plain HTTP
	Proxy string // base URL of a registry that it is a pull-through cache of
	Trust *CA    // whose certificate that registry has; nil for those of the system
}

// Registry is a docker-registry process.
type Registry struct {
	URL  string // without a slash at the end
	Host string // host:port
	Dir  string // where its blobs lie

	binary, config string
	env            []string
	kill           func() // ends the process; nil if none runs
}

// Stop kills the process. Its data and its port are kept for Start.
func (r *Registry) Stop() {
	if r.kill != nil {
		r.kill()
		r.kill = nil
	}
}

// Start runs it again, on the same port.
func (r *Registry) Start(t testing.TB) {
	t.Helper()
	if err := r.run(); err != nil {
		t.Fatal(err)
	}
}

// Collect stops the registry, has it collect its garbage, and starts it again.
func (r *Registry) Collect(t testing.TB) {
	t.Helper()
	r.Stop()
	cmd := exec.Command(r.binary, "garbage-collect", r.config)
	cmd.Env = r.env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r.Start(t)
}

// Debian starts a docker-registry on a free loopback port, with its data
// in a directory of the test, and stops it with the test. Without the
// binary the test is skipped.
func Debian(t testing.TB, o DebianOptions) *Registry {
	t.Helper()
	tier.Long(t, "runs Debian's docker-registry")
	binary, err := exec.LookPath(Binary)
	if err != nil {
		t.Skipf("%s is not installed (Debian package %s)", Binary, Binary)
	}
	dir := t.TempDir()
	// The port may be taken between its choice and its use.
	for try := 0; ; try++ {
		reg, err := startDebian(t, binary, dir, o)
		if err == nil {
			return reg
		}
		if try == 3 {
			t.Fatal(err)
		}
	}
}

func startDebian(t testing.TB, binary, dir string, o DebianOptions) (*Registry, error) {
	host := freePort(t)
	reg := &Registry{URL: "http://" + host, Host: host, Dir: filepath.Join(dir, "data")}
	if o.CA != nil {
		reg.URL = "https://" + host
	}
	config := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(config, []byte(debianConfig(t, dir, host, o)), 0o600); err != nil {
		t.Fatal(err)
	}
	reg.binary, reg.config = binary, config
	reg.env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if o.Trust != nil {
		reg.env = append(reg.env, "SSL_CERT_FILE="+o.Trust.File)
	}
	if err := reg.run(); err != nil {
		return nil, err
	}
	t.Cleanup(reg.Stop)
	return reg, nil
}

// run starts the process and returns when it answers.
func (r *Registry) run() error {
	var log strings.Builder
	cmd := exec.Command(r.binary, "serve", r.config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Env = r.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	r.kill = func() {
		cmd.Process.Kill()
		<-exited
	}
	if err := waitReady(r.URL, exited); err != nil {
		r.Stop()
		return fmt.Errorf("%s: %w\n%s", Binary, err, log.String())
	}
	return nil
}

func debianConfig(t testing.TB, dir, host string, o DebianOptions) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n")
	fmt.Fprintf(&b, "storage:\n  filesystem:\n    rootdirectory: %q\n  delete:\n    enabled: true\n", filepath.Join(dir, "data"))
	fmt.Fprintf(&b, "http:\n  addr: %q\n", host)
	if o.CA != nil {
		cert, key := o.CA.Issue(t)
		fmt.Fprintf(&b, "  tls:\n    certificate: %q\n    key: %q\n", cert, key)
	}
	if o.Proxy != "" {
		fmt.Fprintf(&b, "proxy:\n  remoteurl: %q\n", o.Proxy)
	}
	if o.Auth {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(account), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "auth:\n  htpasswd:\n    realm: test\n    path: %q\n", file)
	}
	return b.String()
}

// Listen listens on loopback, at a port that the kernel gives to nobody who
// does not ask for it. A registry that comes to listen only later, or is away
// for a while, finds it free: another test's server would have taken any
// other, or a connection have begun there, even one that a client makes to
// this very port.
func Listen() (l net.Listener, err error) {
	for range 100 {
		if l, err = net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10000+rand.IntN(20000))); err == nil {
			break
		}
	}
	return l, err
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// waitReady returns when the registry answers with any status.
func waitReady(url string, exited <-chan struct{}) error {
	const patience = 20 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it is our own child
	defer tr.CloseIdleConnections()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v2/", nil)
		if err != nil {
			return err
		}
		if resp, err := tr.RoundTrip(req); err == nil {
			resp.Body.Close()
			return nil
		}
		select {
		case <-tick.C:
		case <-exited:
			return fmt.Errorf("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("no answer for %v", patience)
		}
	}
}
