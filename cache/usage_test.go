package cache_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/cache"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/layer"
)

// oneLayer returns what a new store in dir says of its only layer.
func oneLayer(t *testing.T, dir string, o cache.Options) cache.LayerInfo {
	t.Helper()
	s := openStore(t, dir, o)
	defer func() { _ = s.Close() }()
	all, err := s.Layers()
	if err != nil || len(all) != 1 {
		t.Fatalf("%d layers: %v", len(all), err)
	}
	return all[0]
}

// filesOnDisk is what the files in dir take on the disk.
func filesOnDisk(t *testing.T, dir string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		err = unix.Stat(path, &st)
		sum += st.Blocks * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestMadeFrom: which blobs have a layer is known from the heads of the chunk tables
// alone. Nothing else of the layers is looked at, however large they are.
func TestMadeFrom(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	var blobs []digest.Digest
	for _, f := range []*fixture{estargzFixture(t, files(1, 60, 1<<10)), gzipFixture(t, files(2, 60, 1<<10))} {
		l, err := s.Layer(t.Context(), f.src, nil)
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, f.blob.dgst)
		path := filepath.Join(dir, "layers", l.Key())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		head, err := os.ReadFile(filepath.Join(path, "chunks"))
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{"chunks": head[:256], "index.erofs": nil, "bitmap": nil} {
			if err := os.WriteFile(filepath.Join(path, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		of   []digest.Digest
		want bool
	}{
		{nil, true},
		{blobs[:1], true},
		{blobs, true},
		{append(blobs, blobs...), true},
		{append(blobs, digest.FromString("another")), false},
		{[]digest.Digest{""}, false},
	} {
		if got := s.MadeFrom(c.of...); got != c.want {
			t.Errorf("%v: %v", c.of, got)
		}
	}
	all, err := os.ReadDir(filepath.Join(dir, "layers"))
	if err != nil || len(all) != 2 {
		t.Fatalf("%d layers, %v", len(all), err)
	}
	// One of which there is no more than a part, and one that is no table.
	if err := os.Remove(filepath.Join(dir, "layers", all[0].Name(), "index.erofs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "layers", all[1].Name(), "chunks"), 255); err != nil {
		t.Fatal(err)
	}
	for _, d := range blobs {
		if s.MadeFrom(d) {
			t.Errorf("%s: its layer is no more", d)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.MadeFrom(blobs...) {
		t.Error("a closed store")
	}
}

func TestUsage(t *testing.T) {
	f := estargzFixture(t, files(70, 60, 32<<10))
	var c clock
	dir := t.TempDir()
	o := cache.WithClock(cache.Options{}, c.now)
	l := openLayer(t, dir, o, f)
	got := oneLayer(t, dir, o)
	if got.Key != l.Key() || got.DataSize != l.Size() || got.BlobDigest != f.blob.dgst || got.BlobSize != f.blob.Size() {
		t.Errorf("new: %+v", got)
	}
	if got.Complete || got.Partial || got.InPlace || got.Damaged != nil || got.Present != 0 || got.Fetched != 0 {
		t.Errorf("new: %+v", got)
	}
	if !got.Used.Equal(c.now()) {
		t.Errorf("opened at %v, used at %v", c.now(), got.Used)
	}

	c.sec.Add(1000)
	if err := f.check(t.Context(), l, f.at(t, l, 30), 100); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	got = oneLayer(t, dir, o)
	if n := int64(len(f.list[30].data)); got.Present < n || got.Fetched < n/3 || got.Fetched > got.Present || got.Complete {
		t.Errorf("one file read: %+v", got)
	}
	if !got.Used.Equal(c.now()) {
		t.Errorf("read at %v, used at %v", c.now(), got.Used)
	}

	if err := f.checkAll(t.Context(), l, 50_000); err != nil {
		t.Fatal(err)
	}
	waitIdle(t, l)
	got = oneLayer(t, dir, o)
	if !got.Complete || got.Present > got.DataSize || got.Present < got.DataSize*9/10 ||
		got.Fetched > f.blob.Size() || got.Fetched < f.blob.Size()*8/10 {
		t.Errorf("all read: %+v", got)
	}
	if n := filesOnDisk(t, filepath.Join(dir, "layers", l.Key())); got.Disk != n {
		t.Errorf("%d bytes on the disk, not %d", n, got.Disk)
	}
	// After a restart of the machine it is there, if only to be verified.
	again := oneLayer(t, dir, cache.WithBoot(o, "another"))
	if again.Complete || again.Present != got.Present || again.Fetched != got.Fetched {
		t.Errorf("restarted: %+v", again)
	}
	if err := l.Settle(); err != nil {
		t.Fatal(err)
	}
	if again := oneLayer(t, dir, cache.WithBoot(o, "another")); !again.Complete || again.Present != got.Present {
		t.Errorf("settled, restarted: %+v", again)
	}
}

func TestUsagePartial(t *testing.T) {
	f := gzipFixture(t, files(71, 50, 40<<10))
	f.blob.fail = func(int) (int64, error) { return f.blob.Size() / 2, fetch.ErrUnavailable }
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	if _, err := s.Layer(t.Context(), f.src, nil); !errors.Is(err, fetch.ErrUnavailable) {
		t.Fatal(err)
	}
	got := oneLayer(t, dir, cache.Options{})
	fi, err := os.Stat(filepath.Join(dir, "layers", got.Key, "blob.partial"))
	if err != nil {
		t.Fatal(err)
	}
	if got.Key != layer.DiffKey(f.src) || !got.Partial || got.Fetched != fi.Size() || got.Disk < fi.Size() || got.Damaged != nil {
		t.Errorf("%d bytes: %+v", fi.Size(), got)
	}
	if d := time.Since(got.Used); d < 0 || d > time.Hour {
		t.Errorf("used %v ago", d)
	}
}

func TestUsageInPlace(t *testing.T) {
	f := tarFixture(t, files(72, 20, 20<<10))
	dir := t.TempDir()
	l := openLayer(t, dir, cache.Options{}, f)
	got := oneLayer(t, dir, cache.Options{})
	if !got.InPlace || !got.Complete || got.Damaged != nil || got.Fetched != 0 || got.Disk > l.Size()/2 {
		t.Errorf("%+v", got)
	}
	if d := time.Since(got.Used); d < -time.Minute || d > time.Hour {
		t.Errorf("used %v ago", d)
	}
}

// tarFixture is a layer that is a plain tar in a file.
func tarFixture(t *testing.T, list []file) *fixture {
	t.Helper()
	f := gzipFixture(t, list)
	path := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(path, f.data, 0o600); err != nil {
		t.Fatal(err)
	}
	g := &fixture{data: f.data, list: list, src: f.src}
	g.src.Desc.MediaType = "application/vnd.oci.image.layer.v1.tar"
	g.src.Desc.Digest, g.src.Desc.Size = f.src.DiffID, int64(len(f.data))
	g.src.Blob = fetch.OpenFile(path, 0, int64(len(f.data)), f.src.DiffID)
	return g
}

func TestUsageDamaged(t *testing.T) {
	made := gzipFixture(t, files(73, 20, 20<<10))
	for _, name := range []string{"index.erofs", "chunks", "bitmap"} {
		for how, damage := range map[string]func(path string) error{
			"lost":  os.Remove,
			"short": func(path string) error { return os.Truncate(path, 10) },
			"empty": func(path string) error { return os.Truncate(path, 0) },
		} {
			if name == "index.erofs" && how == "lost" {
				continue // no layer then
			}
			t.Run(name+" "+how, func(t *testing.T) {
				f := made.again()
				dir := t.TempDir()
				key := makeLayer(t, dir, f)
				whole := oneLayer(t, dir, cache.Options{})
				if err := damage(filepath.Join(dir, "layers", key, name)); err != nil {
					t.Fatal(err)
				}
				got := oneLayer(t, dir, cache.Options{})
				if got.Key != key || got.Damaged == nil || got.Partial || got.Disk == 0 || got.Disk > whole.Disk {
					t.Errorf("%+v", got)
				}
				if name != "chunks" && got.BlobDigest != f.blob.dgst {
					t.Errorf("blob %s", got.BlobDigest)
				}
			})
		}
	}
}

// makeLayer makes the layer of f in dir, with all its data, and closes it.
func makeLayer(t *testing.T, dir string, f *fixture) (key string) {
	t.Helper()
	s := openStore(t, dir, cache.Options{})
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.place(t, l)
	if err := s.Fill(t.Context(), []*cache.Layer{l}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	return l.Key()
}

func TestUsageChains(t *testing.T) {
	f := gzipFixture(t, files(74, 10, 1000))
	dir := t.TempDir()
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	l, err := s.Layer(t.Context(), f.src, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := s.Chain(t.Context(), []*cache.Layer{l})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	all, err := s.Chains()
	if err != nil || len(all) != 1 {
		t.Fatalf("%d chains: %v", len(all), err)
	}
	if n := filesOnDisk(t, filepath.Dir(c.Path)); all[0].ID != c.ID || all[0].Disk != n || n == 0 {
		t.Errorf("%+v, %d bytes on the disk", all[0], n)
	}
	if d := time.Since(all[0].Used); d < -time.Minute || d > time.Hour {
		t.Errorf("used %v ago", d)
	}
}

// TestUsageMeanwhile: what is reported while layers come, are read, evicted and
// removed is never called damaged.
func TestUsageMeanwhile(t *testing.T) {
	f := estargzFixture(t, files(75, 20, 20<<10))
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := openReadClose(ctx, dir, f); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() { removeAll(ctx, t, dir) })
	s := openStore(t, dir, cache.Options{})
	defer func() { _ = s.Close() }()
	for ctx.Err() == nil {
		all, err := s.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			if l.Damaged != nil || l.Present > l.DataSize {
				t.Fatalf("%+v", l)
			}
		}
	}
}
