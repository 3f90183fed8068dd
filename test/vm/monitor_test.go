package vm

import (
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// answer plays a QEMU that answers each command with the lines for it.
func answer(t *testing.T, answers map[string][]string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte(`{"QMP": {"version": {}, "capabilities": []}}` + "\n"))
		for in := json.NewDecoder(conn); ; {
			var command struct {
				Execute string `json:"execute"`
			}
			if in.Decode(&command) != nil {
				return
			}
			lines := answers[command.Execute]
			answers[command.Execute] = lines[1:]
			_, _ = conn.Write([]byte(lines[0] + "\n"))
		}
	}()
	return socket
}

// TestMonitor has commands answered, refused and interrupted by events.
func TestMonitor(t *testing.T) {
	m, err := dial(t.Context(), answer(t, map[string][]string{
		"qmp_capabilities": {`{"return": {}}`},
		"stop":             {`{"event": "STOP"} {"return": {}}`},
		"cont":             {`{"error": {"class": "GenericError", "desc": "no"}}`},
		"query-migrate":    {`{"return": {"status": "active"}}`, `{"event": "MIGRATION"} {"return": {"status": "completed"}}`, `{"return": {"status": "failed", "error-desc": "disk full"}}`},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer m.conn.Close()
	if err := m.call("stop", nil, nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := m.call("cont", nil, nil); !errors.Is(err, errRefused) {
		t.Errorf("cont: %v, not %v", err, errRefused)
	}
	completed := func(s string) bool { return s == "completed" }
	if err := m.status(t.Context(), "query-migrate", completed); err != nil {
		t.Errorf("completed migration: %v", err)
	}
	if err := m.status(t.Context(), "query-migrate", completed); !errors.Is(err, errRefused) {
		t.Errorf("failed migration: %v, not %v", err, errRefused)
	}
}
