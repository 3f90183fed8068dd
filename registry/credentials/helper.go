package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/cocoonstack/epochfs/internal/text"
)

const (
	helperPrefix = "docker-credential-"

	// helperTries is how often a helper that fails is run: it may have to
	// ask somebody itself.
	helperTries = 4
	// helperPatience is how long a helper may run. It may have to ask the
	// user.
	helperPatience = time.Minute
	// leftBehind is how long a helper's output is read after its end, where
	// a child that it has left keeps the pipe open.
	leftBehind = 500 * time.Millisecond

	maxHelperOutput = 64 << 10
	maxSearched     = 4 << 10 // bytes of it that are searched for secrets
	maxShown        = 200     // bytes of it in an error
)

// notFound is what helpers print, by their protocol, for a server that they
// have nothing for.
const notFound = "credentials not found in native keychain"

// HelperError is a credential helper that gave no credentials.
type HelperError struct {
	Helper  string // program
	File    string // that names it
	Server  string // that it was asked for
	Missing bool   // it is not in the PATH
	Exit    int    // exit code; -1 where it was killed, 0 where it ended well
	Reason  string
	Output  string // what it printed, without what may be a secret; or ""
	Err     error
}

// Error says which helper of which file failed, and how.
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

// ask runs a helper, again after a pause if it fails.
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

// run runs a helper once. Empty credentials are its word that it has none.
func run(ctx context.Context, program string, fail HelperError) (Credentials, error) {
	var stdout, stderr bounded
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(fail.Server)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = leftBehind
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it ended well, and left a child
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

// credentials reads what a helper printed. Nothing of it is repeated.
func (b *bounded) credentials(fail HelperError) (Credentials, error) {
	var doc struct{ Username, Secret string }
	if err := json.NewDecoder(strings.NewReader(b.String())).Decode(&doc); err != nil {
		fail.Reason = "ended well and printed no JSON object with Username and Secret"
		return Credentials{}, &fail
	}
	return Credentials{Username: doc.Username, Password: doc.Secret}.withToken(), nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxHelperOutput-len(b.kept))]...)
	return len(p), nil
}

func (b *bounded) String() string { return string(b.kept) }

// shown is what an error repeats of a helper's output: what it printed for
// people, in one short line. Helpers print errors to stdout; JSON there is
// an answer, and holds the secret.
func shown(stdout, stderr string) string {
	var parts []string
	for _, s := range []string{stderr, stdout} {
		if s = strings.TrimSpace(s); s != "" && !strings.ContainsAny(s, "{}") {
			parts = append(parts, s)
		}
	}
	s := strings.Join(parts, "; ")
	if len(s) > maxSearched {
		// Not in the middle of a word: half a secret has no form.
		s = s[:max(0, strings.LastIndexAny(s[:maxSearched], " \n"))]
	}
	for _, m := range secretOf.FindAllStringSubmatch(stdout, -1) {
		if secret := m[1]; secret != "" {
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	for _, form := range secretForms {
		s = form.ReplaceAllString(s, "${1}***")
	}
	s = text.Line(s)
	if len(s) > maxShown {
		s = strings.ToValidUTF8(s[:maxShown], "") + "…"
	}
	return s
}

// secretOf finds the secret in an answer, also in one that broke off.
var secretOf = regexp.MustCompile(`(?i)"secret"\s*:\s*"([^"]*)`)

// secretForms are texts that are, or may be, secrets: what stands after a
// word for one, in a URL before the @ or after the question mark, and long
// runs of letters and digits.
var secretForms = []*regexp.Regexp{
	regexp.MustCompile(`(?i)(passw(?:or)?d["']?\s*[:=]\s*)\S+`),
	regexp.MustCompile(`(?i)((?:secret|token|key|authorization)["']?\s*[:=]\s*)(?:\S*[0-9]\S*|\S{16,})`),
	regexp.MustCompile(`(?i)((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{6,}`),
	regexp.MustCompile(`(://)[^\s/@]+@`),
	regexp.MustCompile(`(://[^\s?]*\?)\S+`),
	regexp.MustCompile(`()[A-Za-z0-9+=_]{24,}(?:[A-Za-z0-9+/=_.-]*)`),
}
