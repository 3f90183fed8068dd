package deptest

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const top = "../.."

// docs are the texts for people, by their paths from the top.
func docs(t *testing.T) map[string]string {
	t.Helper()
	names := []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
	more, err := filepath.Glob(filepath.Join(top, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range more {
		names = append(names, filepath.Join("docs", filepath.Base(name)))
	}
	all := map[string]string{}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = string(text)
	}
	return all
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
)

// anchors are the names under which a text's headings can be linked to.
func anchors(text string) (all []string) {
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		name := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case strings.ContainsRune("`.,:;()'\"/!?", r):
				return -1
			}
			return r
		}, strings.ToLower(strings.TrimSpace(m[1])))
		all = append(all, name)
	}
	return all
}

// TestLinks follows every relative link of the documentation.
func TestLinks(t *testing.T) {
	all := docs(t)
	for name, text := range all {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, anchored := strings.Cut(m[1], "#")
			target := name
			if path != "" {
				target = filepath.Join(filepath.Dir(name), path)
			}
			if _, err := os.Stat(filepath.Join(top, target)); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
				continue
			}
			if anchored && !slices.Contains(anchors(all[target]), anchor) {
				t.Errorf("%s links to %s: there is no such heading", name, m[1])
			}
		}
	}
}

// TestDependenciesHaveReasons compares the table of dependencies with the
// modules in go.mod that this one imports, or runs as a tool.
func TestDependenciesHaveReasons(t *testing.T) {
	out, err := exec.Command("go", "mod", "edit", "-json", filepath.Join(top, "go.mod")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require, Tool []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	source := goSource(t, ".", true) + goSource(t, ".", false)
	var want []string
	for _, r := range mod.Require {
		used := regexp.MustCompile(`"` + regexp.QuoteMeta(r.Path) + `(/[^"\n]*)?"\n`).MatchString(source)
		for _, tool := range mod.Tool {
			used = used || strings.HasPrefix(tool.Path, r.Path+"/")
		}
		if used {
			want = append(want, r.Path)
		}
	}
	_, section, ok := strings.Cut(docs(t)["docs/architecture.md"], "\n## Dependencies\n")
	if !ok {
		t.Fatal("docs/architecture.md has no section on dependencies")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| \\S").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	for _, path := range want {
		if !slices.Contains(got, path) {
			t.Errorf("docs/architecture.md gives no reason for %s", path)
		}
	}
	for _, path := range got {
		if !slices.Contains(want, path) {
			t.Errorf("docs/architecture.md has %s, which is no direct dependency", path)
		}
	}
}

// TestNamedTestsExist looks for the tests and scripts that the
// documentation names.
func TestNamedTestsExist(t *testing.T) {
	sources := goSource(t, ".", true)
	text := strings.Join(values(docs(t)), "\n")
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(sources, "\nfunc "+m[1]+"(") {
			t.Errorf("the documentation names %s, which is not there", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`\bscript/([a-z]{2,})\b`).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join(top, "cmd/epochfs/testdata/script", m[1]+".txtar")); err != nil {
			t.Errorf("the documentation names script/%s: %v", m[1], err)
		}
	}
}

// TestReadmeHasTheCommands looks for every command of the program in the
// README.
func TestReadmeHasTheCommands(t *testing.T) {
	readme := docs(t)["README.md"]
	source := goSource(t, "cmd/epochfs", false)
	for _, m := range regexp.MustCompile(`\bUse:\s+"([a-z]+)`).FindAllStringSubmatch(source, -1) {
		if m[1] != "epochfs" && !strings.Contains(readme, "| `epochfs "+m[1]) {
			t.Errorf("README.md has no line for the command %s", m[1])
		}
	}
}

// TestReadmeHasTheTargets compares the targets that the Makefile declares
// with those that the README names.
func TestReadmeHasTheTargets(t *testing.T) {
	makefile, err := os.ReadFile(filepath.Join(top, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	readme := docs(t)["README.md"]
	_, line, _ := strings.Cut(string(makefile), "\n.PHONY:")
	line, _, _ = strings.Cut(line, "\n")
	targets := strings.Fields(line)
	for _, name := range []string{"build", "demo", "test", "lint", "bench", "fuzz", "soak", "install", "clean"} {
		if !slices.Contains(targets, name) {
			t.Errorf("the Makefile has no target %s", name)
		}
	}
	for _, name := range targets {
		if name != "all" && !strings.HasSuffix(name, "-needs") && !strings.Contains(readme, "`"+name+"`") {
			t.Errorf("README.md does not name the target %s", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)(?:^    |^\$ |`+"`"+`)make ([a-z-]+)`).FindAllStringSubmatch(readme, -1) {
		if !slices.Contains(targets, m[1]) {
			t.Errorf("README.md has make %s, which the Makefile has not", m[1])
		}
	}
}

// goSource is the text of the module's Go files below a directory, tests
// or others.
func goSource(t *testing.T, dir string, tests bool) string {
	t.Helper()
	var text strings.Builder
	err := filepath.WalkDir(filepath.Join(top, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") != tests {
			return err
		}
		raw, err := os.ReadFile(path)
		text.Write(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func values(m map[string]string) (all []string) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

var goFile = regexp.MustCompile("`([a-z/]+/)?([a-z_]+\\.go)`")

// TestFilesToRead looks for the files that CONTRIBUTING.md tells to read. A
// file without a directory is in that of the one before.
func TestFilesToRead(t *testing.T) {
	dir, found := "", 0
	for _, m := range goFile.FindAllStringSubmatch(docs(t)["CONTRIBUTING.md"], -1) {
		if m[1] != "" {
			dir = m[1]
		}
		if _, err := os.Stat(filepath.Join(top, dir, m[2])); err != nil {
			t.Error(err)
		}
		found++
	}
	if found < 10 {
		t.Errorf("%d files are named", found)
	}
}
