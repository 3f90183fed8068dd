package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cocoonstack/epochfs/test/tier"
)

// terminal makes a terminal of a size, and its other end.
func terminal(t *testing.T, width, height uint16) (tty, other *os.File) {
	t.Helper()
	other, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	t.Cleanup(func() { other.Close() })
	fd := int(other.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, other
}

// On a terminal each text takes the place of the one before: no line is
// wider and no text is higher than it.
func TestScreen(t *testing.T) {
	tty, other := terminal(t, 10, 4)
	t.Setenv("COLUMNS", "")
	if n := columns(tty); n != 10 {
		t.Errorf("it is %d wide", n)
	}
	s := newScreen(tty)
	for i, c := range []struct{ text, want string }{
		{"one\n█████████████\nthree\nfour\nfive\n", "\x1b[2J\x1b[Hone\x1b[K\r\n██████████\x1b[K\r\nthree\x1b[K\r\n\x1b[J"},
		{"less\n", "\x1b[Hless\x1b[K\r\n\x1b[J"},
	} {
		if err := s.show(c.text); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(patience, func() { tty.Close() }) // ends a Read
		buf := make([]byte, 1000)
		n, err := io.ReadAtLeast(other, buf, len(c.want)) // it may come in pieces
		late.Stop()
		if got := string(buf[:n]); err != nil || got != c.want {
			t.Errorf("%d: %q, %v; want %q", i, got, err, c.want)
		}
	}
}

// Elsewhere an empty line stands between them.
func TestScreenOnPipe(t *testing.T) {
	var out strings.Builder
	s := newScreen(&out)
	for range 3 {
		if err := s.show("a\nb\n"); err != nil {
			t.Fatal(err)
		}
	}
	if got := out.String(); got != "a\nb\n\na\nb\n\na\nb\n" {
		t.Errorf("%q", got)
	}
	for value, want := range map[string]int{"": 80, "0": 80, "x": 80, "-1": 80, "123": 123, "99999999": 80} {
		t.Setenv("COLUMNS", value)
		if got := columns(&out); got != want {
			t.Errorf("COLUMNS=%s: %d", value, got)
		}
	}
}

func TestLocale(t *testing.T) {
	for _, c := range []struct {
		all, ctype, lang string
		want             bool
	}{
		{"", "", "", false},
		{"", "", "C.UTF-8", true},
		{"", "", "en_US.utf8", true},
		{"C", "", "C.UTF-8", false},
		{"", "POSIX", "C.UTF-8", false},
	} {
		t.Setenv("LC_ALL", c.all)
		t.Setenv("LC_CTYPE", c.ctype)
		t.Setenv("LANG", c.lang)
		if got := utf8Terminal(); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// A terminal gets a bar: bytes, rate and time left, or how long an answer is
// waited for, and it is gone when the work is done.
func TestBar(t *testing.T) {
	tier.Long(t, "waits for a bar to be drawn")
	for _, c := range []struct {
		m    *meter
		want []string
	}{
		{&meter{label: "push vm", of: bytesOfIt, total: 64 << 20}, []string{"push vm  50% |", "(32/64 MiB, ", "iB/s) ["}},
		{&meter{label: "push stdin", of: bytesOfIt}, []string{"push stdin", "32 MiB, ", "iB/s)"}},
		{&meter{label: "prune", of: filesOfIt, total: 64 << 20}, []string{"prune  50% |", "(33554432/67108864) ["}},
		{&meter{label: "asking for vm"}, []string{"asking for vm", "s]"}},
	} {
		tty, other := terminal(t, 100, 10)
		late := time.AfterFunc(patience, func() { tty.Close() }) // ends a Read
		m := c.m
		m.out, m.begun = tty, time.Now().Add(-showWaitIn)
		m.stop, m.gone = make(chan struct{}), make(chan struct{})
		m.bar = m.newBar()
		m.add(32 << 20)
		go m.run()
		var got string
		buf := make([]byte, 4096)
		for slices.ContainsFunc(c.want, func(w string) bool { return !strings.Contains(got, w) }) {
			n, err := other.Read(buf)
			got += string(buf[:n])
			if err != nil {
				t.Errorf("%s: %q", m.label, got)
				break
			}
		}
		m.finish()
		late.Stop()
		tty.Close()                  // or what it ends with would not have an end
		rest, _ := io.ReadAll(other) // until there is nobody at the other end: EIO
		end := strings.TrimSuffix(got+string(rest), "\r")
		if end = end[strings.LastIndex(end, "\r")+1:]; strings.TrimSpace(end) != "" {
			t.Errorf("%s: it ends with %q", m.label, end)
		}
	}
}
