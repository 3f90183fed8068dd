package metrics

import (
	"time"

	"github.com/cocoonstack/epochfs/internal/control"
)

var (
	mountInfo = describe("mount_info", "What is mounted where, by which version; always 1.", "digest", "dir", "reference", "version")
	firstByte = describe("registry_first_byte_seconds", "Time from requests for bytes of files to the first byte of their answers.")
)

// all holds every metric except mountInfo and firstByte. Counters start at
// zero with the process.
var all = []metric{
	gauge("mount_start_time_seconds", "When it was mounted, in seconds since 1970.",
		func(m *control.Mount) int64 { return m.Since.Unix() }),

	gauge("files", "Files of the mount.", count(func(*control.File) bool { return true })),
	gauge("files_complete", "Files of which all data is in the cache.", count(func(f *control.File) bool { return f.Local >= f.Data })),
	gauge("files_verified", "Files of which all data was hashed against the artifact.", count(func(f *control.File) bool { return f.Verified })),
	gauge("files_fetching", "Files of which bytes are on their way.", count(func(f *control.File) bool { return f.Fetching })),
	openFiles,
	gauge("data_bytes", "Data of all files, without holes.", sum(func(f *control.File) int64 { return f.Data })),
	gauge("local_bytes", "Data of all files that is in the cache.", sum(func(f *control.File) int64 { return f.Local })),

	counter("reads_total", "Reads that came to the process; the kernel answers others by itself.",
		func(m *control.Mount) int64 { return m.Reads.Count }),
	counter("read_hits_total", "Reads that were answered from the cache at once.",
		func(m *control.Mount) int64 { return m.Reads.Count - m.Reads.Misses }),
	counter("read_bytes_total", "Bytes that those reads were given.",
		func(m *control.Mount) int64 { return m.Reads.Bytes }),
	counter("read_errors_total", "Reads that ended with an I/O error.",
		func(m *control.Mount) int64 { return m.Reads.Failed }),
	gauge("reads_waiting", "Reads that wait for bytes from elsewhere.",
		func(m *control.Mount) int64 { return m.Reads.Waiting }),
	longestWait,
	wrongPieces,

	perHost("registry_requests_total", "HTTP requests to the registry and its mirrors, those for tokens too.", counterKind,
		func(p *control.Mirror, _ time.Time) float64 { return float64(p.Requests) }),
	perHost("registry_received_bytes_total", "Bytes of bodies that came from there.", counterKind,
		func(p *control.Mirror, _ time.Time) float64 { return float64(p.Bytes) }),
	perHost("registry_up", "Whether it is asked: 0 for a mirror that has failed and is left alone for a while.", gaugeKind,
		func(p *control.Mirror, now time.Time) float64 { return oneIf(!p.Resting.After(now)) }),
	perHost("registry_wrong_blobs", "Blobs of which a mirror has sent wrong bytes.", gaugeKind,
		func(p *control.Mirror, _ time.Time) float64 { return float64(p.Wrong) }),
	retries,
	gauge("registry_failures_in_a_row", "Requests for bytes of files that failed since a byte arrived.",
		func(m *control.Mount) int64 { return int64(m.Link.Failures) }),
	flag("registry_range_ignored", "Whether the registry sends whole blobs for ranges of them.",
		func(m *control.Mount) bool { return m.Link.Ranges == "ignored" }),
	gauge("registry_connection_bytes_per_second", "What one connection carries, smoothed; 0 while unknown.",
		func(m *control.Mount) int64 { return m.Link.Connection }),

	setBytes("working_set_bytes", "Data that the mount's working set names.", func(w *control.WorkingSet) int64 { return w.Recorded }),
	setBytes("working_set_local_bytes", "Of the working set, what is in the cache.", func(w *control.WorkingSet) int64 { return w.Local }),
	setBytes("working_set_fetched_bytes", "Of the working set, what came from the registry.", func(w *control.WorkingSet) int64 { return w.Fetched }),
	setBytes("working_set_stored_bytes", "Of the working set, what was handed to the kernel.", func(w *control.WorkingSet) int64 { return w.Stored }),
	setBytes("working_set_used_bytes", "Of the working set, what was read when it was local.", func(w *control.WorkingSet) int64 { return w.Used }),
	setBytes("working_set_late_bytes", "Of the working set, what was read before it was local.", func(w *control.WorkingSet) int64 { return w.Late }),
	setBytes("working_set_unused_bytes", "Of the working set, what is local, and neither read nor handed to the kernel.", func(w *control.WorkingSet) int64 { return w.Unused }),
	flag("working_set_ready", "Whether a start of the VM need not wait for the network.",
		func(m *control.Mount) bool { return m.WorkingSet != nil && m.WorkingSet.Ready }),

	counter("cache_copied_bytes_total", "Bytes of packed artifacts that were taken from other cached files and not fetched.",
		func(m *control.Mount) int64 { return m.Cache.Copied }),
	counter("cache_not_kept_bytes_total", "Bytes that were fetched and not stored, because the disk of the cache is slower than the link.",
		func(m *control.Mount) int64 { return m.Cache.NotKept }),
	gauge("cache_used_bytes", "What the cache takes on disk, with what other mounts have in it.",
		func(m *control.Mount) int64 { return m.Cache.Used }),
	gauge("cache_limit_bytes", "What it may take.",
		func(m *control.Mount) int64 { return m.Cache.Limit }),
	flag("cache_full", "Whether what is fetched cannot be kept, because all that is there is in use.",
		func(m *control.Mount) bool { return m.Cache.Full }),
}

// setBytes returns a gauge of the working set, 0 without one.
func setBytes(name, help string, value func(*control.WorkingSet) int64) metric {
	return gauge(name, help, func(m *control.Mount) int64 {
		if m.WorkingSet == nil {
			return 0
		}
		return value(m.WorkingSet)
	})
}

var openFiles = metric{
	describe("files_open", "Files that are open, by how the kernel reads them.", "mode"), gaugeKind,
	func(m *control.Mount, _ time.Time, tell tell) {
		for _, mode := range []string{"cached", "direct", "passthrough"} {
			tell(float64(count(func(f *control.File) bool { return f.Mode == mode })(m)), mode)
		}
	},
}

var longestWait = metric{
	describe("longest_wait_seconds", "How long the reader has waited who waits longest; 0 where none does."), gaugeKind,
	func(m *control.Mount, now time.Time, tell tell) {
		var longest time.Duration
		for _, w := range m.Waiting {
			longest = max(longest, now.Sub(w.Since))
		}
		tell(longest.Seconds())
	},
}

var wrongPieces = metric{
	describe("wrong_pieces_total", "Pieces of cached files that were found wrong after they were kept, by what found them; they were dropped and are fetched again.", "found_by"), counterKind,
	func(m *control.Mount, _ time.Time, tell tell) {
		for by, n := range m.Wrong.FoundBy {
			tell(float64(n), by)
		}
	},
}

var retries = metric{
	describe("registry_retries_total", "Requests that did not bring what they were made for, by why.", "cause"), counterKind,
	func(m *control.Mount, _ time.Time, tell tell) {
		for cause, n := range m.Network.Causes {
			tell(float64(n), cause)
		}
	},
}
