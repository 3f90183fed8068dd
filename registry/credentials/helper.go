package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/cocoonstack/epochfs/internal/text"
)

const (
	helperPrefix = "docker-credential-"

	// helperTries is how often a failing helper is run: the service behind
	// it may be temporarily away.
	helperTries = 4
	// helperPatience bounds the run time of a helper, which may have to ask
	// the user.
	helperPatience = time.Minute
	// leftBehind bounds the reading of a helper's output after its exit,
	// when a child that it left behind keeps the pipe open.
	leftBehind = 500 * time.Millisecond

	maxHelperOutput = 64 << 10
	maxSearched     = 4 << 10 // bytes of it that are searched for secrets
	maxShown        = 200     // bytes of it in an error
)

// notFound is the helper protocol's message for an unknown server.
const notFound = "credentials not found in native keychain"

// HelperError is the error of a credential helper that returned no
// credentials.
type HelperError struct {
	Helper  string // program
	File    string // file that names the helper
	Server  string // server that the helper was asked for
	Missing bool   // the helper is not in the PATH
	Exit    int    // exit code; -1 if killed, 0 on success
	Reason  string
	Output  string // output without possible secrets, or ""
	Err     error
}

// Error returns which helper of which file failed, and how.
func (e *HelperError) Error() string {
	if e.Missing {
		return fmt.Sprintf("%s names the credential helper %s, which is not in the PATH", text.Line(e.File), e.Helper)
	}
	s := fmt.Sprintf("the credential helper %s, which %s names, %s for %s", e.Helper, text.Line(e.File), e.Reason, text.Line(e.Server))
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

// Unwrap returns the cause.
func (e *HelperError) Unwrap() error { return e.Err }

// ask runs a helper, and once more after a pause if it fails.
func (s *Store) ask(ctx context.Context, f *file, suffix, server string) (Credentials, error) {
	fail := HelperError{Helper: helperPrefix + text.Line(suffix), File: f.path, Server: server}
	if strings.ContainsAny(suffix, "/\x00") {
		fail.Reason = "cannot be in the PATH by that name and was not asked"
		return Credentials{}, &fail
	}
	program, err := exec.LookPath(helperPrefix + suffix)
	if err != nil {
		fail.Missing, fail.Err = true, err
		return Credentials{}, &fail
	}
	pause := s.Pause
	if pause == 0 {
		pause = 200 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, helperPatience)
	defer cancel()
	for try := 1; ; try++ {
		c, err := run(ctx, program, fail)
		if err == nil {
			c.Source = fail.Helper + ", which " + text.Line(f.path) + " names"
			return c, nil
		}
		if try == helperTries {
			return Credentials{}, err
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return Credentials{}, err
		}
	}
}

// run runs a helper once. Empty credentials mean that the helper has none.
func run(ctx context.Context, program string, fail HelperError) (Credentials, error) {
	var stdout, stderr bounded
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(fail.Server)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = leftBehind
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // success, with a child left behind
		return stdout.credentials(fail)
	case strings.TrimSpace(stdout.String()) == notFound:
		return Credentials{}, nil
	case ctx.Err() != nil:
		fail.Reason = "did not answer in time"
	case errors.As(err, &exit) && exit.Exited():
		fail.Reason = fmt.Sprintf("exited with code %d", exit.ExitCode())
	case errors.As(err, &exit):
		fail.Reason = "was ended by a signal (" + exit.ProcessState.String() + ")"
	default:
		fail.Reason = "could not be run (" + text.Line(reason(err)) + ")"
	}
	fail.Err = err
	if exit != nil {
		fail.Exit = exit.ExitCode()
	}
	fail.Output = shown(stdout.String(), stderr.String())
	return Credentials{}, &fail
}

// credentials parses the output of a helper. Its errors quote nothing.
func (b *bounded) credentials(fail HelperError) (Credentials, error) {
	var doc struct{ Username, Secret string }
	if err := json.NewDecoder(strings.NewReader(b.String())).Decode(&doc); err != nil {
		fail.Reason = "ended well and printed no JSON object with Username and Secret"
		return Credentials{}, &fail
	}
	return Credentials{Username: doc.Username, Password: doc.Secret}.withToken(), nil
}

// bounded keeps the first bytes written to it.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxHelperOutput-len(b.kept))]...)
	return len(p), nil
}

func (b *bounded) String() string { return string(b.kept) }

// shown returns the part of a helper's output that an error may repeat: its
// text for people, as one short line. Helpers print errors to stdout too;
// JSON there is an answer and holds the secret.
func shown(stdout, stderr string) string {
	var parts []string
	for _, s := range []string{stderr, stdout} {
		if s = strings.TrimSpace(s); s != "" && !strings.ContainsAny(s, "{}") {
			parts = append(parts, s)
		}
	}
	s := strings.Join(parts, "; ")
	if len(s) > maxSearched {
		// Cut between words: half a secret matches no form.
		s = s[:max(0, strings.LastIndexAny(s[:maxSearched], " \n"))]
	}
	for _, m := range secretOf().FindAllStringSubmatch(stdout, -1) {
		if secret := m[1]; secret != "" {
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	for _, form := range secretForms() {
		s = form.ReplaceAllString(s, "${1}***")
	}
	s = text.Line(s)
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}

// secretOf matches the secret in an answer, even an incomplete one.
var secretOf = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)"secret"\s*:\s*"([^"]*)`) })

// secretForms match possible secrets: the text after a word for one, the
// part of a URL before the @ or after the question mark, and long runs of
// letters and digits.
var secretForms = sync.OnceValue(func() []*regexp.Regexp {
	return []*regexp.Regexp{
		regexp.MustCompile(`(?i)(passw(?:or)?d["']?\s*[:=]\s*)\S+`),
		regexp.MustCompile(`(?i)((?:secret|token|key|authorization)["']?\s*[:=]\s*)(?:\S*[0-9]\S*|\S{16,})`),
		regexp.MustCompile(`(?i)((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}`),
		regexp.MustCompile(`(://)[^\s/@]+@`),
		regexp.MustCompile(`(://[^\s?]*\?)\S+`),
		regexp.MustCompile(`()[A-Za-z0-9+=_]{24,}(?:[A-Za-z0-9+/=_.-]*)`),
	}
})
