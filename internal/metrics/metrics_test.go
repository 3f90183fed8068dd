package metrics

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/internal/control"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sample() control.Mount {
	return control.Mount{
		Reference: "r.example/vm@sha256:00", Digest: "sha256:00", Dir: "/mnt/\xff", Since: time.Unix(1e9, 0),
		Files: []control.File{
			{Name: "config.json", Data: 100, Local: 100, Verified: true, Mode: "passthrough", Open: 2},
			{Name: "memory-ranges", Data: 1000, Local: 10, Mode: "cached", Open: 1, Fetching: true},
		},
		Reads:   control.Reads{Count: 10, Bytes: 5000, Misses: 4, Failed: 1, Waiting: 2},
		Wrong:   control.Wrong{Pieces: 3, FoundBy: map[string]int64{"stream": 3, "copy": 0}},
		Network: control.Network{Causes: map[string]int64{"http_503": 3, "slow": 1}},
		Link: control.Link{Ranges: "ignored", Connection: 1e6, Latency: control.Histogram{
			Bounds: []float64{0.01, 0.1}, Counts: []int64{5, 2, 1}, Sum: 1.5,
		}},
		Mirrors: []control.Mirror{
			{Host: "r.example", Requests: 1, Bytes: 10, Resting: time.Now().Add(time.Hour)}, // another path of the same host
			{Host: "m.example", Requests: 2, Bytes: 20, Resting: time.Now().Add(time.Hour), Wrong: 1},
			{Host: "r.example", Requests: 3, Bytes: 30, Registry: true},
		},
		Cache:      control.Cache{Used: 7, Limit: 8, Full: true},
		WorkingSet: &control.WorkingSet{Ready: true, Recorded: 70, Local: 60, Fetched: 50, Stored: 40, Used: 30, Late: 20, Unused: 10},
		Waiting:    []control.Wait{{Since: time.Now().Add(-time.Minute)}},
	}
}

// scrape asks a server for its metrics.
func scrape(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Address(s.Addr())); err == nil {
		t.Error("two servers have one address")
	}
	s.Serve("v1", sample)
	url := "http://" + s.Addr()
	code, text := scrape(t, url+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, text)
	}
	for _, want := range strings.Split(strings.TrimSpace(`
epochfs_mount_info{digest="sha256:00",dir="/mnt/�",reference="r.example/vm@sha256:00",version="v1"} 1
epochfs_mount_start_time_seconds 1e+09
epochfs_files 2
epochfs_files_complete 1
epochfs_files_verified 1
epochfs_files_fetching 1
epochfs_files_open{mode="cached"} 1
epochfs_files_open{mode="direct"} 0
epochfs_files_open{mode="passthrough"} 1
epochfs_data_bytes 1100
epochfs_local_bytes 110
epochfs_reads_total 10
epochfs_read_hits_total 6
epochfs_read_bytes_total 5000
epochfs_read_errors_total 1
epochfs_reads_waiting 2
epochfs_wrong_pieces_total{found_by="copy"} 0
epochfs_wrong_pieces_total{found_by="stream"} 3
epochfs_registry_requests_total{host="m.example"} 2
epochfs_registry_requests_total{host="r.example"} 4
epochfs_registry_received_bytes_total{host="m.example"} 20
epochfs_registry_received_bytes_total{host="r.example"} 40
epochfs_registry_up{host="m.example"} 0
epochfs_registry_up{host="r.example"} 1
epochfs_registry_wrong_blobs{host="m.example"} 1
epochfs_registry_retries_total{cause="http_503"} 3
epochfs_registry_retries_total{cause="slow"} 1
epochfs_registry_failures_in_a_row 0
epochfs_registry_range_ignored 1
epochfs_registry_connection_bytes_per_second 1e+06
epochfs_registry_first_byte_seconds_bucket{le="0.01"} 5
epochfs_registry_first_byte_seconds_bucket{le="0.1"} 7
epochfs_registry_first_byte_seconds_bucket{le="+Inf"} 8
epochfs_registry_first_byte_seconds_sum 1.5
epochfs_registry_first_byte_seconds_count 8
epochfs_working_set_bytes 70
epochfs_working_set_local_bytes 60
epochfs_working_set_fetched_bytes 50
epochfs_working_set_stored_bytes 40
epochfs_working_set_used_bytes 30
epochfs_working_set_late_bytes 20
epochfs_working_set_unused_bytes 10
epochfs_working_set_ready 1
epochfs_cache_used_bytes 7
epochfs_cache_limit_bytes 8
epochfs_cache_full 1
`), "\n") {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	if !regexp.MustCompile(`\nepochfs_longest_wait_seconds 6\d\.`).MatchString(text) {
		t.Error("no longest wait of a minute")
	}
	if strings.Contains(text, "\ngo_") || strings.Contains(text, "\nprocess_") {
		t.Error("somebody else's metrics are there")
	}
	if code, _ := scrape(t, url+"/"); code != http.StatusNotFound {
		t.Errorf("status of another path: %d", code)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

// A server that was not asked for, or has not come to serve, can be closed.
func TestNotServed(t *testing.T) {
	none, err := Listen("")
	if err != nil || none != nil {
		t.Fatalf("%v, %v", none, err)
	}
	none.Serve("", sample)
	if none.Addr() != "" {
		t.Error(none.Addr())
	}
	if err := none.Close(); err != nil {
		t.Error(err)
	}
	s, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"9100": "127.0.0.1:9100", ":9100": "127.0.0.1:9100", "0.0.0.0:9100": "0.0.0.0:9100", "[::1]:1": "[::1]:1", "host:0": "host:0",
		"": "", ":": "", "x": "", "h:x": "", "1:2:3": "", ":65536": "", "-1": "",
	} {
		var a Address
		if err := a.Set(in); (err == nil) != (want != "") || string(a) != want {
			t.Errorf("%q: %q, %v", in, a, err)
		}
	}
}

// Names and units are as Prometheus wants them.
func TestNames(t *testing.T) {
	odd := sample()
	odd.Dir, odd.Mirrors[1].Host = "/a\\b\"c\nd{}", "h\"\n"
	out := new(text)
	collect(out, "v1", odd, time.Now())
	if !strings.Contains(out.String(), `dir="/a\\b\"c\nd{}"`) {
		t.Error("a directory is not escaped")
	}
	problems, err := promlint.New(out).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// The dashboard and the alerts name metrics that exist, and the page on
// operations has them all.
func TestDocs(t *testing.T) {
	have := map[string]bool{}
	have[mountInfo.name], have[firstByte.name] = true, true
	for _, m := range all {
		have[m.desc.name] = true
	}
	if len(have) != len(all)+2 {
		t.Fatalf("%d names of %d metrics", len(have), len(all)+2)
	}
	dashboard, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	if !json.Valid(dashboard) {
		t.Error("the dashboard is no JSON")
	}
	for _, file := range []string{"grafana.json", "alerts.yml", "operations.md"} {
		text, err := os.ReadFile("../../docs/" + file)
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile(`\bepochfs_\w+`).FindAllString(string(text), -1)
		if len(named) == 0 {
			t.Errorf("%s names no metric", file)
		}
		seen := map[string]bool{}
		for _, name := range named {
			name = strings.TrimSuffix(name, "_bucket")
			if seen[name] = true; !have[name] {
				t.Errorf("%s names %s, which does not exist", file, name)
			}
		}
		if file == "operations.md" {
			for name := range have {
				if !seen[name] {
					t.Errorf("%s does not explain %s", file, name)
				}
			}
		}
	}
}
