//go:build integration

package integration_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/integration/faultproxy"
	"github.com/laminafs/lamina/integration/images"
	"github.com/laminafs/lamina/integration/tree"
)

// stressEnv lengthens TestStoreStress: a duration such as 10m.
const stressEnv = "LAMINA_STRESS"

// stress is what the workers of TestStoreStress share.
type stress struct {
	t     *testing.T
	s     store
	host  string
	files map[string][]string // by image: the regular files
	ops   sync.Map            // of *atomic.Int64, by name
}

// TestStoreStress has eight users of one store pull, mount, read, prune, remove,
// tag and check at once, and kills commands and servers among them. No byte that
// was read may be wrong, no mount may be lost, and in the end everything in the
// store is as it should be.
func TestStoreStress(t *testing.T) {
	length := 40 * time.Second
	if v := os.Getenv(stressEnv); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	p := shared.proxy(t, faultproxy.Config{HTTP2: true})
	x := &stress{t: t, s: newStore(t, p.Host()), host: p.Host(), files: map[string][]string{}}
	for _, n := range []string{"debian", "nginx", "httpd"} {
		for name, e := range shared.truth(t, n) {
			if e.Mode&unix.S_IFMT == unix.S_IFREG {
				x.files[n] = append(x.files[n], name)
			}
		}
		slices.Sort(x.files[n])
	}
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { x.work(rand.New(rand.NewPCG(uint64(i), uint64(time.Now().UnixNano()))), end) })
	}
	wg.Wait()
	var said []string
	x.ops.Range(func(k, v any) bool {
		said = append(said, fmt.Sprintf("%s %d", k, v.(*atomic.Int64).Load()))
		return true
	})
	slices.Sort(said)
	t.Logf("%v: %s", length, strings.Join(said, ", "))
	all, err := x.s.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range all {
		if _, err := x.s.Run("umount", "--lazy", m.Options.Dir); err != nil {
			t.Error(err)
		}
	}
	if out, err := x.s.Run("check"); err != nil {
		t.Errorf("check: %v\n%s", err, out)
	}
	x.s.run(t, "prune", "--all")
	var u usage
	x.s.parse(t, &u, "df", "--json")
	if u.Disk != 0 {
		t.Errorf("left after prune --all: %+v", u)
	}
}

func (x *stress) count(op string) {
	n, _ := x.ops.LoadOrStore(op, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

// image chooses an image and returns its short and its full name.
func (x *stress) image(rng *rand.Rand) (short, name string) {
	names := []string{"debian", "nginx", "httpd"}
	formats := []images.Format{images.Gzip, images.Zstd, images.EStargz, images.Podman}
	short = names[rng.IntN(len(names))]
	return short, x.host + "/lamina/" + short + ":" + string(formats[rng.IntN(len(formats))])
}

// work does one thing after the other until end.
func (x *stress) work(rng *rand.Rand, end time.Time) {
	for time.Now().Before(end) && !x.t.Failed() {
		short, name := x.image(rng)
		switch rng.IntN(12) {
		case 0, 1:
			x.command(rng, "pull", "-q", name)
		case 2, 3, 4, 5, 6:
			x.mounted(rng, short, name)
		case 7:
			x.command(rng, "prune")
		case 8:
			x.command(rng, "prune", "--all")
		case 9:
			x.command(rng, "rmi", name)
		case 10:
			x.command(rng, "tag", name, fmt.Sprintf("tagged:%d", rng.IntN(4)))
		case 11:
			x.cat(short, name, rng)
		}
	}
}

// command runs lamina, and kills it in one of three cases. That it fails is no
// failure: others remove what it needs.
func (x *stress) command(rng *rand.Rand, words ...string) bool {
	x.count(words[0])
	cmd := x.s.Command(words...)
	if err := cmd.Start(); err != nil {
		x.t.Error(err)
		return false
	}
	if rng.IntN(3) == 0 {
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		_ = cmd.Process.Kill()
		x.count("killed")
	}
	return cmd.Wait() == nil
}

// cat reads a file without a mount.
func (x *stress) cat(short, name string, rng *rand.Rand) {
	x.count("cat")
	file := x.files[short][rng.IntN(len(x.files[short]))]
	out, err := x.s.Command("cat", "-q", name, "/"+file).Output()
	if err == nil && sha256.Sum256(out) != shared.truth(x.t, short)[file].Sum {
		x.t.Errorf("cat %s %s: wrong bytes", name, file)
	}
}

// mounted mounts an image, reads of it, and unmounts it.
func (x *stress) mounted(rng *rand.Rand, short, name string) {
	x.count("mount")
	dir, err := os.MkdirTemp(shared.dir, "stress-")
	if err != nil {
		x.t.Error(err)
		return
	}
	engine := engines()[rng.IntN(2)]
	cmd := x.s.MountCommand(dir, name, "--engine", engine)
	if out, err := cmd.CombinedOutput(); err != nil {
		x.t.Errorf("mount %s: %v\n%s", name, err, out)
		return
	}
	truth := shared.truth(x.t, short)
	for range rng.IntN(60) {
		file := x.files[short][rng.IntN(len(x.files[short]))]
		got, err := tree.Sum(filepath.Join(dir, file))
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTCONN):
			x.t.Errorf("%s at %s is lost: %v\n%s", name, dir, err, x.log(dir))
			return
		case err != nil:
			x.t.Errorf("read %s of %s: %v\n%s", file, name, err, x.log(dir))
		case got != truth[file].Sum:
			x.t.Errorf("read %s of %s by %s: %s\n%s", file, name, engine, wrong(dir, shared.set.Tree(short), file), x.log(dir))
		}
		x.count("read")
		if rng.IntN(40) == 0 {
			x.killServer(rng)
		}
	}
	if _, err := x.s.Run("umount", dir); err != nil {
		x.t.Errorf("umount %s: %v", dir, err)
	}
	_ = os.Remove(dir)
}

// wrong says in what a file that was read wrong differs from the truth when it is read
// again.
func wrong(dir, truth, file string) string {
	got, err := os.ReadFile(filepath.Join(dir, file))
	want, err2 := os.ReadFile(filepath.Join(truth, file))
	if err := errors.Join(err, err2); err != nil {
		return "wrong bytes; then: " + err.Error()
	}
	bad, zeros, first := 0, 0, -1
	for i := range want {
		if i < len(got) && got[i] == want[i] {
			continue
		}
		if bad++; first < 0 {
			first = i
		}
		if i < len(got) && got[i] == 0 {
			zeros++
		}
	}
	return fmt.Sprintf("wrong bytes; of %d read again, %d of %d differ, from %d on, %d of them zero", len(got), bad, len(want), first, zeros)
}

// log returns the last lines that the server of the mount at dir has logged.
func (x *stress) log(dir string) string {
	m, err := x.s.At(dir)
	if err != nil {
		return err.Error()
	}
	b, err := os.ReadFile(filepath.Join(x.s.Root, "mounts", m.Name, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// killServer kills the server of a mount that serves; its holder starts another.
func (x *stress) killServer(rng *rand.Rand) {
	all, err := x.s.Mounts()
	if err != nil || len(all) == 0 {
		return
	}
	if m := all[rng.IntN(len(all))]; m.Server.PID != 0 && m.Holder.PID != 0 {
		_ = unix.Kill(m.Server.PID, unix.SIGKILL)
		x.count("server killed")
	}
}
