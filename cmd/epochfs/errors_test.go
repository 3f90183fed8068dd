package main

import (
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cocoonstack/epochfs/test/shaping"
)

// fails N PATTERN command...: the command exits with N and says why in one
// line, which matches. What cocoon itself says may stand before it.
func fails(ts *testscript.TestScript, neg bool, args []string) {
	code(ts, neg, append([]string{args[0]}, args[2:]...))
	got := regexp.MustCompile(`^Error: .*\n`).ReplaceAllString(ts.ReadFile("stderr"), "")
	line, rest, _ := strings.Cut(got, "\n")
	text, ours := strings.CutPrefix(line, "epochfs: ")
	if !ours || rest != "" {
		ts.Fatalf("stderr is not one line of epochfs: %q", got)
	}
	if !regexp.MustCompile(args[1]).MatchString(strings.TrimSuffix(text, " (see epochfs help)")) {
		ts.Fatalf("the line does not match %s: %s", strconv.Quote(args[1]), text)
	}
}

// slowly VAR RATE DELAY: the variable becomes a way to the registry that
// carries so many bytes per second, and each request so much later.
func (w *world) slowly(ts *testscript.TestScript, _ bool, args []string) {
	rate, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	delay, err := time.ParseDuration(args[2])
	ts.Check(err)
	p, err := shaping.Start(w.front.Host, shaping.Options{Total: rate, Delay: delay})
	ts.Check(err)
	ts.Defer(func() { _ = p.Close() }) // of a listener that has served its purpose
	ts.Setenv(args[0], p.Addr())
}
