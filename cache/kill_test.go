package cache_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// childEnv makes the test binary a process that reads a layer: see child.
const childEnv = "LAMINA_CACHE_TEST_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println("done")
		return
	}
	os.Exit(m.Run())
}

// job is what a child is told.
type job struct {
	Store, Blob, Data, Log string
	MediaType, Annotations string
	Digest, DiffID         digest.Digest
	Seed                   uint64
	Limit                  int64
	MaxFile                uint64        // RLIMIT_FSIZE; 0: none
	Pause                  time.Duration // before every 16 KiB of the blob
	Most                   int64         // bytes of one read
}

// slowFile is a blob in a file that does not say so. It logs the ranges that
// were delivered.
type slowFile struct {
	fetch.Blob
	job *job
}

func (b *slowFile) ReadRange(ctx context.Context, off, n int64) (fetch.Stream, error) {
	s, err := b.Blob.ReadRange(ctx, off, n)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(b.job.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	return &slowStream{Stream: s, ctx: ctx, log: log, pause: b.job.Pause, off: off}, err
}

type slowStream struct {
	fetch.Stream
	ctx   context.Context
	log   *os.File
	pause time.Duration
	off   int64
}

func (s *slowStream) Read(p []byte) (int, error) {
	if err := pause(s.ctx, s.pause); err != nil {
		return 0, err
	}
	n, err := s.Stream.Read(p[:min(len(p), 16<<10)])
	if n > 0 {
		if _, err := fmt.Fprintf(s.log, "%d %d\n", s.off, n); err != nil {
			return 0, err
		}
		s.off += int64(n)
	}
	return n, err
}

func (s *slowStream) Close() error { return errors.Join(s.Stream.Close(), s.log.Close()) }

func (j *job) source() layer.Source {
	var src layer.Source
	src.Desc.MediaType, src.Desc.Digest, src.DiffID = j.MediaType, j.Digest, j.DiffID
	if j.Annotations != "" {
		_ = json.Unmarshal([]byte(j.Annotations), &src.Desc.Annotations)
	}
	fi, err := os.Stat(j.Blob)
	if err != nil {
		panic(err)
	}
	src.Desc.Size = fi.Size()
	src.Blob = &slowFile{fetch.OpenFile(j.Blob, 0, fi.Size(), j.Digest), j}
	return src
}

// child reads a layer from a random place on to its end and around, compares
// every byte, and prints "open" once it could begin.
func child(spec string) (err error) {
	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	want, err := os.ReadFile(j.Data)
	if err != nil {
		return err
	}
	if j.MaxFile > 0 {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: j.MaxFile, Max: j.MaxFile}); err != nil {
			return err
		}
	}
	s, err := cache.Open(j.Store, cache.Options{Limit: j.Limit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ctx := context.Background()
	l, err := s.Layer(ctx, j.source(), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	fmt.Println("open")
	rnd := rand.New(rand.NewPCG(j.Seed, 0))
	size := int64(len(want))
	at, p := rnd.Int64N(size), make([]byte, j.Most)
	for done := int64(0); done < size; {
		n := min(1+rnd.Int64N(int64(len(p))), size-at)
		if err := l.ReadAt(ctx, p[:n], at); err != nil {
			return err
		}
		if !bytes.Equal(p[:n], want[at:at+n]) {
			return fmt.Errorf("wrong bytes in %d at %d", n, at)
		}
		done += n
		if at += n; at == size {
			at = 0
		}
	}
	return nil
}

// jobOf puts f into files, for children.
func jobOf(t *testing.T, f *fixture) *job {
	t.Helper()
	dir := t.TempDir()
	j := &job{
		Store: filepath.Join(dir, "store"), Blob: filepath.Join(dir, "blob"), Data: filepath.Join(dir, "data"), Log: filepath.Join(dir, "log"),
		MediaType: f.src.Desc.MediaType, Digest: f.src.Desc.Digest, DiffID: f.src.DiffID, Most: 40_000,
	}
	if f.src.Desc.Annotations != nil {
		p, err := json.Marshal(f.src.Desc.Annotations)
		if err != nil {
			t.Fatal(err)
		}
		j.Annotations = string(p)
	}
	if f.data == nil {
		_ = openLayer(t, t.TempDir(), cache.Options{}, f)
	}
	for path, p := range map[string][]byte{j.Blob: f.blob.data, j.Data: f.data} {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return j
}

type process struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

func (j *job) start(t *testing.T, seed uint64) *process {
	t.Helper()
	j.Seed = seed
	spec, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &process{cmd, bufio.NewReader(out)}
}

// wait waits for the process to end, and reports what it found.
func (p *process) wait(t *testing.T) {
	t.Helper()
	out, err := io.ReadAll(p.out)
	if werr := p.cmd.Wait(); err != nil || werr != nil || !strings.HasSuffix(string(out), "done\n") {
		t.Errorf("child: %v, %v: %s", err, werr, out)
	}
}

// kill ends the process at once.
func (p *process) kill() string {
	_ = p.cmd.Process.Kill()
	out, _ := io.ReadAll(p.out)
	_ = p.cmd.Wait()
	return string(out)
}

// delivered returns the bytes of the blob that all children got.
func (j *job) delivered(t *testing.T) (total int64, times map[int64]int) {
	t.Helper()
	p, err := os.ReadFile(j.Log)
	if err != nil {
		t.Fatal(err)
	}
	times = make(map[int64]int)
	for line := range strings.Lines(string(p)) {
		var off, n int64
		if _, err := fmt.Sscan(line, &off, &n); err != nil {
			t.Fatal(err)
		}
		total += n
		for b := off / 4096; b < (off+n)/4096; b++ {
			times[b]++
		}
	}
	return total, times
}

func TestKill(t *testing.T) {
	const kills = 8
	for name, f := range map[string]*fixture{
		"gzip":    gzipFixture(t, files(30, 60, 40<<10)),
		"estargz": estargzFixture(t, files(30, 60, 40<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := jobOf(t, f)
			j.Pause = 500 * time.Microsecond
			rnd := rand.New(rand.NewPCG(5, 5))
			for i := range uint64(kills) {
				other := j.start(t, 2*i) // lives on, half of the time
				victim := j.start(t, 2*i+1)
				time.Sleep(time.Duration(rnd.Int64N(int64(120 * time.Millisecond))))
				if out := victim.kill(); strings.Contains(out, "error") {
					t.Errorf("victim: %s", out)
				}
				if i%2 == 0 {
					other.wait(t)
					if i%4 == 0 { // from the start again
						if err := os.RemoveAll(j.Store); err != nil {
							t.Fatal(err)
						}
					}
				} else if out := other.kill(); strings.Contains(out, "error") {
					t.Errorf("other: %s", out)
				}
			}
			j.start(t, 99).wait(t)
		})
	}
}

// TestKillDownloadsOnce: a first mount that is killed again and again downloads
// every byte once, but for what was under way.
func TestKillDownloadsOnce(t *testing.T) {
	f := gzipFixture(t, files(31, 100, 40<<10))
	j := jobOf(t, f)
	j.Pause = 2 * time.Millisecond
	kills := 0
	for range 20 {
		p := j.start(t, 1)
		time.Sleep(60 * time.Millisecond)
		if out := p.kill(); strings.Contains(out, "open") {
			break
		}
		kills++
	}
	j.start(t, 1).wait(t)
	total, _ := j.delivered(t)
	// Each kill loses what was read but not written: one buffer of 16 KiB.
	if most := f.blob.Size() + int64(kills+1)*32<<10; total > most {
		t.Errorf("%d bytes downloaded of %d in %d attempts", total, f.blob.Size(), kills+1)
	}
	t.Logf("%d bytes downloaded of %d in %d attempts", total, f.blob.Size(), kills+1)
}

// TestProcessesShare: processes that read the same at the same time download
// it once.
func TestProcessesShare(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":    gzipFixture(t, files(32, 100, 40<<10)),
		"estargz": estargzFixture(t, files(32, 100, 40<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := jobOf(t, f)
			j.Pause = 500 * time.Microsecond
			var all []*process
			for range 4 {
				all = append(all, j.start(t, 7))
			}
			for _, p := range all {
				p.wait(t)
			}
			total, times := j.delivered(t)
			more := 0
			for _, n := range times {
				if n > 1 {
					more++
				}
			}
			t.Logf("%d bytes of %d; %d pages of %d more than once", total, f.blob.Size(), more, len(times))
			if total > f.blob.Size()*21/20+128<<10 {
				t.Errorf("%d bytes downloaded of %d", total, f.blob.Size())
			}
		})
	}
}

// TestFileTooBig: a process that may not write files beyond some size reads all
// the same, as on a full disk.
func TestFileTooBig(t *testing.T) {
	for name, f := range map[string]*fixture{
		"gzip":    gzipFixture(t, files(33, 80, 64<<10)),
		"estargz": estargzFixture(t, files(33, 80, 64<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			j := jobOf(t, f)
			// Of about 5 MiB of data the first chunk of gzip has room, the second
			// has not, nor has the compressed blob. A read of what has no room
			// fetches its chunk anew, so there are few.
			j.MaxFile, j.Most = 9<<18, 1_000_000
			j.start(t, 1).wait(t)
			// Without the limit, what is missing is fetched and kept.
			j.MaxFile = 0
			j.start(t, 2).wait(t)
			before, _ := j.delivered(t)
			j.start(t, 3).wait(t)
			if after, _ := j.delivered(t); after != before {
				t.Errorf("%d more bytes were fetched", after-before)
			}
		})
	}
}
