//go:build integration

package integration_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// git runs git in a directory, with no settings but these.
func git(t testing.TB, dir string, words ...string) string {
	t.Helper()
	return execute(t, append([]string{
		"env", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"git", "-C", dir, "-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "gc.auto=0",
		// With FUSE the kernel keeps a time of the inode's change of its own, until it
		// forgets the file: the upper's may be a tick later.
		"-c", "core.trustctime=false",
	}, words...)...)
}

// gitClean holds that git finds no changes in the work tree at dir.
func gitClean(t testing.TB, dir string) {
	t.Helper()
	if out := git(t, dir, "status", "--porcelain"); out != "" {
		t.Errorf("git status in %s: %d lines:\n%.1000s", dir, strings.Count(out, "\n"), out)
	}
}

// gitBranches makes a second branch in the work tree at dir, which changes, deletes,
// moves and adds much of what is in its directories, and goes to and fro.
func gitBranches(t testing.TB, dir string, rng *rand.Rand) {
	t.Helper()
	git(t, dir, "checkout", "-q", "-b", "other")
	for i, name := range strings.Split(strings.Trim(git(t, dir, "ls-files", "-z"), "\x00"), "\x00") {
		p := filepath.Join(dir, name)
		var err error
		switch rng.IntN(6) {
		case 0:
			err = os.Remove(p)
		case 1:
			err = os.Remove(p)
			fatal(t, os.MkdirAll(filepath.Join(p, "now a folder"), 0o755))
			fatal(t, os.WriteFile(filepath.Join(p, "now a folder", "file"), []byte(name), 0o644))
		case 2:
			err = os.Rename(p, fmt.Sprintf("%s.moved%d", p, i))
		case 3:
			err = os.WriteFile(fmt.Sprintf("%s.new%d", p, i), []byte(name), 0o755)
		}
		fatal(t, err)
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "other")
	for _, to := range []string{"main", "other", "main"} {
		git(t, dir, "checkout", "-q", to)
		gitClean(t, dir)
	}
}

// gitInit makes a repository of everything in dir.
func gitInit(t testing.TB, dir string) {
	t.Helper()
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "main")
	gitClean(t, dir)
}

// TestProgramGit: git keeps what was in the image and what was made in the workspace,
// and finds after a remount every file as it knows it: its number and its time too.
func TestProgramGit(t *testing.T) {
	t.Parallel()
	eachEngine(t, func(t *testing.T, engine string) {
		rng := rand.New(rand.NewPCG(3, 1))
		w := newWorkspace(t, engine, "debian")
		made, lower := "srv/git/made", "usr/share/zoneinfo"
		for i := range 700 {
			w.write(t, fmt.Sprintf("%s/%d/%d/file%d", made, i%7, i%41, i), strings.Repeat(fmt.Sprintln(i), rng.IntN(500)))
		}
		for _, dir := range []string{made, lower} {
			gitInit(t, w.path(dir))
			gitBranches(t, w.path(dir), rng)
		}
		git(t, w.path("srv/git"), "clone", "-q", "made", "links")
		git(t, w.path("srv/git"), "clone", "-q", "--no-local", w.path(lower), "copy")
		git(t, w.path(lower), "gc", "-q", "--prune=now")
		git(t, w.path(made), "gc", "-q", "--prune=now")
		repositories := []string{made, lower, "srv/git/links", "srv/git/copy"}
		for _, dir := range repositories {
			git(t, w.path(dir), "update-index", "--refresh")
		}
		w.settled(t, "srv/git")
		w.settled(t, lower)
		for _, dir := range repositories {
			if out := git(t, w.path(dir), "diff-files", "--name-only"); out != "" {
				t.Errorf("%s: git takes %d files for others after a remount: %.300q", dir, strings.Count(out, "\n"), out)
			}
			gitClean(t, w.path(dir))
			git(t, w.path(dir), "fsck", "--full", "--strict")
		}
		git(t, w.path("srv/git/links"), "checkout", "-q", "other")
		gitClean(t, w.path("srv/git/links"))
	})
}

// sources are those of a C program of many files.
func sources(parts int) map[string]string {
	files := map[string]string{
		"Makefile": `CFLAGS = -O1 -g -MMD -Wall -Werror
parts := $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o libparts.a
	$(CC) -o $@ $^
libparts.a: $(parts)
	rm -f $@ && ar rcs $@ $^
-include *.d
`,
		"step.h": "#define STEP 1\n",
	}
	var calls, declared strings.Builder
	for i := range parts {
		fmt.Fprintf(&calls, "\tsum += part%d();\n", i)
		fmt.Fprintf(&declared, "int part%d(void);\n", i)
		include := ""
		if i%2 == 0 {
			include = "#include \"step.h\"\n"
		} else {
			include = "#define STEP 1\n"
		}
		files[fmt.Sprintf("part%d.c", i)] = fmt.Sprintf("%s#include \"parts.h\"\nint part%d(void) { return STEP; }\n", include, i)
	}
	files["parts.h"] = declared.String()
	files["main.c"] = "#include <stdio.h>\n#include \"parts.h\"\nint main(void) {\n\tint sum = 0;\n" +
		calls.String() + "\tprintf(\"%d\\n\", sum);\n\treturn 0;\n}\n"
	return files
}

// TestProgramMake: make and gcc build a program that runs, know after a remount that
// there is nothing to be done, and after a change what there is.
func TestProgramMake(t *testing.T) {
	t.Parallel()
	const parts = 20
	eachEngine(t, func(t *testing.T, engine string) {
		w := newWorkspace(t, engine, "debian")
		dir := w.path("srv/c")
		for name, text := range sources(parts) {
			w.write(t, "srv/c/"+name, text)
		}
		build := func(want int) {
			t.Helper()
			execute(t, "make", "-C", dir, "-j4", "program")
			if got := execute(t, dir+"/program"); got != fmt.Sprintln(want) {
				t.Errorf("the program prints %q, want %d", got, want)
			}
		}
		build(parts)
		// Large files, which the kernel passes on in several pieces, have one time too.
		for i := range 40 {
			w.write(t, fmt.Sprintf("srv/c/asset%d", i), strings.Repeat("asset\n", 200_000))
		}
		w.settled(t, "srv/c")
		if out, err := tryExecute("make", "-q", "-C", dir, "program"); err != nil {
			t.Errorf("after a remount make would build again: %v\n%s", err, out)
		}
		w.write(t, "srv/c/step.h", "#define STEP 3\n")
		if out := execute(t, "make", "-n", "-C", dir, "program"); strings.Count(out, "-MMD") != parts/2 {
			t.Errorf("make would compile other than the %d files that have changed:\n%s", parts/2, out)
		}
		build(parts/2 + parts/2*3)
		// The program is in the workspace alone, its libraries in the image.
		if got := w.inside(t, "/srv/c/program"); got != fmt.Sprintln(parts*2) {
			t.Errorf("inside, the program prints %q", got)
		}
		w.settled(t, "srv/c")
	})
}
