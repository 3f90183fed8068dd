package inside

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cocoonstack/epochfs/internal/guestfs/vfs"
	"github.com/cocoonstack/epochfs/internal/inside/wire"
	"github.com/cocoonstack/epochfs/internal/sandbox"
)

func TestMain(m *testing.M) {
	if sandbox.Is() {
		os.Exit(sandbox.Main(behave))
	}
	goleak.VerifyTestMain(m)
}

// memory is an image in memory; its first bytes name what the child does.
type memory struct {
	data  []byte
	fails error
	reads atomic.Int64
}

func image(what string) *memory {
	data := make([]byte, 1<<20)
	copy(data, what+"\x00")
	return &memory{data: data}
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	m.reads.Add(1)
	if m.fails != nil && off > 0 {
		return 0, m.fails
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, ctx.Err()
}

func (m *memory) ReadOn(ctx context.Context, p []byte, off int64) (int, error) {
	return m.ReadAt(ctx, p, off)
}

// fake is a child that does what the image says.
type fake struct{ *sandbox.Conn }

func behave(conn *sandbox.Conn) error {
	c := fake{conn}
	what := ""
	for {
		_, call, err := c.Read()
		if err != nil {
			return err
		}
		if wire.Op(call[0]) == wire.Images {
			head := c.ask(0, 0, 64)
			what, _, _ = strings.Cut(string(head), "\x00")
			c.item(func(e *wire.Encoder) { e.Num(1 << 20); e.Bool(false) })
			c.end(wire.OK)
			continue
		}
		if wire.Op(call[0]) == wire.OpenFS {
			c.item(func(e *wire.Encoder) {
				e.Num(0)
				e.Num(2)
				e.Description(wire.Description{Type: "fake", State: "clean"})
			})
			c.end(wire.OK)
			continue
		}
		misbehaviours[what](c)
	}
}

func (c fake) send(kind byte, fill func(e *wire.Encoder)) {
	e := wire.Encoder{}
	fill(&e)
	if c.Write(kind, e.B) != nil {
		os.Exit(3)
	}
}

func (c fake) item(fill func(e *wire.Encoder)) { c.send(wire.Item, fill) }

func (c fake) end(code wire.Code) {
	c.send(wire.Done, func(e *wire.Encoder) {
		e.B = append(e.B, byte(code))
		e.Text("in the child's words", wire.MaxText)
	})
}

func (c fake) ask(number, off, n uint64) []byte {
	c.send(wire.Read, func(e *wire.Encoder) {
		e.Num(number)
		e.Num(off)
		e.Num(n)
	})
	kind, p, err := c.Read()
	if err != nil || kind != wire.Bytes {
		return nil
	}
	return p
}

func (c fake) file(f wire.File) {
	c.item(func(e *wire.Encoder) { e.File(&f) })
}

func regular(name string) wire.File {
	return wire.File{Name: name, Inode: 5, Type: byte(vfs.Regular), Stated: true, Mode: 0o644, Size: 100}
}

// misbehaviours are what a child does when it is asked for a directory.
var misbehaviours = map[string]func(c fake){
	"reads without end": func(c fake) {
		for {
			c.ask(0, 4096, 4096)
		}
	},
	"hints without end": func(c fake) {
		for {
			c.send(wire.Prefetch, func(e *wire.Encoder) { e.Num(0); e.Num(0); e.Num(4096) })
		}
	},
	"huge hints without end": func(c fake) {
		for {
			c.send(wire.Prefetch, func(e *wire.Encoder) {
				e.Num(0)
				for range wire.MaxRanges {
					e.Num(0)
					e.Num(1 << 20)
				}
			})
		}
	},
	"results without end": func(c fake) {
		for i := 0; ; i++ {
			c.file(regular(fmt.Sprint(i)))
		}
	},
	"reads beyond the end":       func(c fake) { c.ask(0, 1<<20, 1) },
	"reads before the beginning": func(c fake) { c.ask(0, 1<<63, 1) },
	"reads too much":             func(c fake) { c.ask(0, 0, wire.MaxRead+1) },
	"reads another image":        func(c fake) { c.ask(7, 0, 1) },
	"hints beyond the end": func(c fake) {
		c.send(wire.Prefetch, func(e *wire.Encoder) { e.Num(0); e.Num(1 << 19); e.Num(1 << 62) })
	},
	"kind":        func(c fake) { c.send(99, func(*wire.Encoder) {}) },
	"empty":       func(c fake) { c.send(wire.Item, func(*wire.Encoder) {}) },
	"data":        func(c fake) { c.send(wire.Data, func(e *wire.Encoder) { e.Num(0); e.B = append(e.B, 1) }) },
	"parent":      func(c fake) { c.file(regular("..")) },
	"slash":       func(c fake) { c.file(regular("a/b")) },
	"nul":         func(c fake) { c.file(regular("a\x00b")) },
	"no name":     func(c fake) { c.file(regular("")) },
	"long name":   func(c fake) { c.file(regular(strings.Repeat("x", wire.MaxName+1))) },
	"type":        func(c fake) { f := regular("x"); f.Type = 99; c.file(f) },
	"size":        func(c fake) { f := regular("x"); f.Size = -1; c.file(f) },
	"not stated":  func(c fake) { c.file(wire.File{Name: "x"}) },
	"more fields": func(c fake) { c.item(func(e *wire.Encoder) { f := regular("x"); e.File(&f); e.Num(1) }) },
	"end":         func(c fake) { c.send(wire.Done, func(*wire.Encoder) {}) },
	"end code":    func(c fake) { c.end(200) },
	"dies":        func(fake) { os.Exit(0) },
	"crashes":     func(fake) { panic("a guest's words") },
	"hangs": func(fake) {
		for n := 1; n > 0; n ^= 2 {
		}
	},
	"slow": func(c fake) { // reads now and then, and gets nowhere
		for {
			for end := time.Now().Add(10 * time.Millisecond); time.Now().Before(end); {
			}
			c.ask(0, 0, 1)
		}
	},
	"not there": func(c fake) { c.end(wire.NotFound) },
	"fails":     func(c fake) { c.ask(0, 500_000, 10); c.end(wire.ImageFailed) },
	"lies":      func(c fake) { c.end(wire.ImageFailed) }, // no read has failed
	"one file":  func(c fake) { c.file(regular("x")); c.end(wire.OK) },
	"no end":    func(c fake) { c.file(regular("x")); c.file(regular("y")); time.Sleep(time.Hour) },
}

// few are limits that a test reaches soon.
var few = Options{
	Sandbox: sandbox.Options{Patience: 2 * time.Second},
	limits:  limits{frames: 1000, bytes: 64 << 20, time: 200 * time.Millisecond, items: 1000},
}

func open(t *testing.T, ctx context.Context, m *memory) *FS {
	t.Helper()
	s, err := Open(ctx, Image{Reader: m}, few)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f, err := s.FS(1, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func names(f *FS) (all []string, err error) {
	err = f.List(f.Root, true, func(file File) error {
		all = append(all, file.Name)
		return nil
	})
	return all, err
}

// TestMisbehaves has a child do all that it must not: the call ends with
// ErrMisbehaved, in bounded time, and so do those that follow.
func TestMisbehaves(t *testing.T) {
	t.Parallel()
	fine := map[string]bool{"not there": true, "fails": true, "lies": true, "one file": true, "no end": true}
	for what := range misbehaviours {
		if fine[what] {
			continue
		}
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := open(t, t.Context(), image(what))
			all, err := names(f)
			if !errors.Is(err, ErrMisbehaved) {
				t.Fatalf("%d names, %v", len(all), err)
			}
			if strings.ContainsAny(err.Error(), "\n\x00") || strings.Contains(err.Error(), "guest's words") {
				t.Errorf("the error is %q", err)
			}
			if _, err := names(f); !errors.Is(err, ErrMisbehaved) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	if _, err := names(open(t, t.Context(), image("not there"))); !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrMisbehaved) {
		t.Error(err)
	}
	// What the image's reader says is the cause, whatever the child says.
	m := image("fails")
	m.fails = errors.New("the registry is away")
	if _, err := names(open(t, t.Context(), m)); !errors.Is(err, m.fails) {
		t.Error(err)
	}
	if _, err := names(open(t, t.Context(), image("lies"))); err == nil || errors.Is(err, m.fails) {
		t.Error(err)
	}
	// An error of the caller's own ends the call, and the session.
	f := open(t, t.Context(), image("no end"))
	mine := errors.New("enough")
	if err := f.List(f.Root, true, func(File) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
	if _, err := names(f); !errors.Is(err, ErrMisbehaved) {
		t.Error(err)
	}
	if all, err := names(open(t, t.Context(), image("one file"))); err != nil || len(all) != 1 {
		t.Errorf("%q, %v", all, err)
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := open(t, ctx, image("no end"))
	err := f.List(f.Root, true, func(file File) error {
		if file.Name == "y" {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// FuzzAnswers has a child's frames be anything.
func FuzzAnswers(f *testing.F) {
	for _, file := range []wire.File{regular("x"), {Name: "d", Type: byte(vfs.Directory), Target: "t", Broken: "b"}} {
		e := wire.Encoder{}
		e.File(&file)
		f.Add(e.B)
	}
	f.Add(binary.AppendUvarint(nil, 1<<63))
	f.Fuzz(func(t *testing.T, data []byte) {
		d := wire.Decoder{B: data}
		file := d.File()
		if d.Ok() {
			e := wire.Encoder{}
			e.File(&file)
			again := wire.Decoder{B: e.B}
			if same := again.File(); !again.Ok() || same != file {
				t.Fatalf("%+v became %+v", file, same)
			}
		}
		for _, take := range []func(d *wire.Decoder){
			func(d *wire.Decoder) { d.Volume() }, func(d *wire.Decoder) { d.Description() }, func(d *wire.Decoder) { d.Time() },
		} {
			take(&wire.Decoder{B: data})
		}
	})
}
