package mirrors

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/internal/digests"
	"github.com/cocoonstack/epochfs/test/registrytest"
)

// changed is a file of docs/mirrors with other text in place of some, each of
// which is there.
func changed(t testing.TB, file string, changes ...string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../docs/mirrors", file))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(changes); i += 2 {
		if !strings.Contains(string(raw), changes[i]) {
			t.Fatalf("%s has no %q", file, changes[i])
		}
	}
	return strings.NewReplacer(changes...).Replace(string(raw))
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// freePort is a port of loopback.
func freePort(t testing.TB) string {
	t.Helper()
	l, err := registrytest.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// serves starts a server that ends with the test, and returns when it takes
// connections.
func serves(t testing.TB, port, log string, cmd *exec.Cmd) {
	t.Helper()
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	said := func() string { raw, _ := os.ReadFile(log); return string(raw) }
	t.Cleanup(func() {
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		<-ended
		if t.Failed() {
			t.Logf("%s: %s", cmd.Path, said()[max(0, len(said())-4000):])
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ended:
			t.Fatalf("%s ended at once: %s", cmd.Path, said())
		}
	}
	t.Fatalf("%s does not listen", cmd.Path)
}

// look finds a program of a Debian package, or skips the test.
func look(t testing.TB, name, pack string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/bin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			return p
		}
	}
	t.Skipf("%s is not installed (Debian package %s)", name, pack)
	return ""
}

// nginx starts one with the file of docs/mirrors, and returns its URL. More
// pairs of old and new text change the file.
func (u *upstream) nginx(t testing.TB, more ...string) string {
	t.Helper()
	binary := look(t, "nginx", "nginx")
	dir, port := t.TempDir(), freePort(t)
	cert, key := u.ca.Issue(t)
	write(t, filepath.Join(dir, "epochfs.conf"), changed(t, "nginx.conf", append(more,
		"/var/cache/nginx-epochfs", filepath.Join(dir, "cache"),
		"server registry.example:443", "server "+u.front.Host,
		"proxy_ssl_name                registry.example", "proxy_ssl_name localhost",
		"Host         registry.example", "Host "+u.front.Host, "Host registry.example", "Host "+u.front.Host,
		"listen 5000 ", "listen 127.0.0.1:"+port+" ",
		"/etc/nginx/epochfs.crt", cert, "/etc/nginx/epochfs.key", key,
		"/etc/ssl/certs/ca-certificates.crt", u.ca.File, "resolver 127.0.0.53", "resolver "+resolver(t),
	)...))
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`user root;
worker_processes auto;
worker_rlimit_nofile 8192;
daemon off;
pid %[1]s/pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 100000;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
    include %[1]s/epochfs.conf;
}
`, dir))
	serves(t, port, filepath.Join(dir, "log"), exec.Command(binary, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "log")))
	return "https://127.0.0.1:" + port
}

// resolver is a DNS server that knows 127.0.0.1, under all names.
func resolver(t testing.TB) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed
			}
			end := 12 // of the name in the question, which ends with 0, and its type and class
			for end < n && buf[end] != 0 {
				end += 1 + int(buf[end])
			}
			if end += 5; end > n {
				continue
			}
			answer := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, buf[12:end]...)
			if buf[end-3] == 1 { // A
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1)
			}
			_, _ = conn.WriteTo(answer, from)
		}
	}()
	return conn.LocalAddr().String()
}

// trafficServer starts one with the files of docs/mirrors, and returns its URL.
func (u *upstream) trafficServer(t testing.TB) string {
	t.Helper()
	binary := look(t, "traffic_server", "trafficserver")
	const plugins = "/usr/lib/trafficserver/modules"
	if _, err := os.Stat(plugins + "/slice.so"); err != nil {
		t.Skip("slice.so is not installed (Debian package trafficserver-experimental-plugins)")
	}
	dir, port := t.TempDir(), freePort(t)
	cert, key := u.ca.Issue(t)
	etc := filepath.Join(dir, "etc")
	for name, changes := range map[string][]string{
		"records.config": {
			"STRING 5000:ssl", "STRING " + port + ":ssl", "STRING /etc/trafficserver", "STRING /",
			"STRING /etc/ssl/certs", "STRING /", "STRING ca-certificates.crt", "STRING " + u.ca.File,
			"ram_cache.size INT 1G", "ram_cache.size INT 64M",
		},
		"remap.config":          {"https://registry.example", strings.Replace(u.front.URL, "127.0.0.1", "localhost", 1)},
		"ssl_multicert.config":  {"epochfs.crt", cert, "epochfs.key", key},
		"storage.config":        {"/var/cache/trafficserver 200G", filepath.Join(dir, "cache") + " 4G"},
		"cache.config":          nil,
		"header_rewrite.config": nil,
	} {
		text := changed(t, "trafficserver/"+name, changes...)
		if name == "records.config" {
			// The certificates here are for a name, and nobody asks DNS for it.
			text += "CONFIG proxy.config.admin.user_id STRING #-1\nCONFIG proxy.config.crash_log_helper STRING NULL\nCONFIG proxy.config.hostdb.host_file.path STRING /etc/hosts\n"
		}
		write(t, filepath.Join(etc, name), text)
	}
	write(t, filepath.Join(etc, "ip_allow.yaml"), "ip_allow:\n  - {apply: in, ip_addrs: 0/0, action: allow, methods: ALL}\n")
	for _, name := range []string{"plugin.config", "parent.config", "hosting.config", "volume.config", "splitdns.config", "socks.config"} {
		write(t, filepath.Join(etc, name), "")
	}
	root := filepath.Join(dir, "runroot.yaml")
	text := fmt.Sprintf("prefix: %[1]s\nexec_prefix: %[1]s\nsysconfdir: %[1]s/etc\nlibexecdir: %[2]s\nbindir: /usr/bin\nsbindir: /usr/sbin\n", dir, plugins)
	for _, name := range []string{"datadir", "includedir", "libdir", "localstatedir", "runtimedir", "logdir", "mandir", "cachedir"} {
		text += fmt.Sprintf("%s: %s/%s\n", name, dir, strings.TrimSuffix(name, "dir"))
		write(t, filepath.Join(dir, strings.TrimSuffix(name, "dir"), "x"), "")
	}
	write(t, root, text)
	serves(t, port, filepath.Join(dir, "said"), exec.Command(binary, "--run-root="+root))
	u.answers(t, "https://127.0.0.1:"+port)
	return "https://127.0.0.1:" + port
}

// answers returns when a cache has a range of the smallest blob: it may listen
// before it can keep anything.
func (u *upstream) answers(t testing.TB, url string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		req, err := http.NewRequest(http.MethodGet, url+"/v2/"+repo+"/blobs/"+digests.Of([]byte("{}")), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=0-0")
		if resp, err := client.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusPartialContent {
				return
			}
		}
	}
	t.Fatalf("%s serves nothing", url)
}

// pullThrough starts Debian's docker-registry as a pull-through cache, and
// returns its URL.
func (u *upstream) pullThrough(t testing.TB) string {
	t.Helper()
	return registrytest.Debian(t, registrytest.DebianOptions{CA: u.ca, Proxy: u.front.URL, Trust: u.ca}).URL
}
