package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// monitor controls a QEMU by QMP. One goroutine at a time.
type monitor struct {
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

// errRefused is wrapped by errors about refusals of QEMU.
var errRefused = errors.New("refused")

// message is an answer, an error, an event or the greeting.
type message struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// dial connects to the socket, once it is there, and leaves negotiation.
func dial(ctx context.Context, socket string) (*monitor, error) {
	var d net.Dialer
	for {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err == nil {
			m := &monitor{conn, json.NewDecoder(conn), json.NewEncoder(conn)}
			if err := m.call("qmp_capabilities", nil, nil); err != nil {
				conn.Close()
				return nil, err
			}
			return m, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// call runs a command; result may be nil.
func (m *monitor) call(name string, arguments, result any) error {
	request := map[string]any{"execute": name}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := m.out.Encode(request); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for {
		var answer message
		switch err := m.in.Decode(&answer); {
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case answer.Error != nil:
			return fmt.Errorf("%s: %w: %s", name, errRefused, answer.Error.Desc)
		case answer.Return == nil: // an event, or the greeting
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Return, result)
		}
	}
}

// status polls a query until its status satisfies done.
func (m *monitor) status(ctx context.Context, query string, done func(status string) bool) error {
	for {
		var s struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.call(query, nil, &s); err != nil {
			return err
		}
		if s.Error != "" {
			return fmt.Errorf("%s: %w: %s", query, errRefused, s.Error)
		}
		if done(s.Status) {
			return nil
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// ignoreShared leaves the memory, which is a file, out of saving and
// loading.
func (m *monitor) ignoreShared() error {
	capability := map[string]any{"capability": "x-ignore-shared", "state": true}
	return m.call("migrate-set-capabilities", map[string]any{"capabilities": []any{capability}}, nil)
}

// pause waits a moment between two polls.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(2 * time.Millisecond):
		return nil
	}
}
