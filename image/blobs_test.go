package image_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/laminafs/lamina/fetch"
	"github.com/laminafs/lamina/image"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// blobServer serves one blob as registries do, by ranges, and notes what was
// asked for.
type blobServer struct {
	raw  []byte
	desc ocispec.Descriptor
	url  string

	mu     sync.Mutex
	ranges []string // the Range headers so far
	answer func(w http.ResponseWriter, from []byte)
}

func newBlobServer(t testing.TB, alg digest.Algorithm, size int) *blobServer {
	t.Helper()
	s := &blobServer{raw: make([]byte, size)}
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(s.raw)
	s.desc = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: alg.FromBytes(s.raw), Size: int64(size)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return
		}
		asked := r.Header.Get("Range")
		s.mu.Lock()
		s.ranges = append(s.ranges, asked)
		answer := s.answer
		s.mu.Unlock()
		from := 0
		if asked != "" {
			_, _ = fmt.Sscanf(asked, "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
		}
		w.Header().Set("Content-Length", fmt.Sprint(size-from))
		if answer != nil {
			answer(w, s.raw[from:])
			return
		}
		if asked != "" {
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(s.raw[from:])
	}))
	t.Cleanup(server.Close)
	s.url = strings.TrimPrefix(server.URL, "http://")
	return s
}

// blob reads the blob through a client of its own.
func (s *blobServer) blob(t testing.TB) fetch.Blob {
	t.Helper()
	repo, err := reference.ParseNormalizedNamed(s.url + "/blobs")
	check(t, err)
	return newClient(t).Blob(repo, s.desc)
}

// answers sets how requests are answered, nil for well, and returns the ranges
// asked for until now.
func (s *blobServer) answers(f func(w http.ResponseWriter, from []byte)) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
	defer func() { s.ranges = nil }()
	return s.ranges
}

// cutAt sends n bytes and breaks the connection; later requests find nothing.
func (s *blobServer) cutAt(n int) {
	first := true
	s.answers(func(w http.ResponseWriter, from []byte) {
		if !first {
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusNotFound)
			return
		}
		first = false
		_, _ = w.Write(from[:n])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
}

func blobFile(s *image.Store, d digest.Digest) string {
	return filepath.Join(s.Dir(), "blobs", d.Algorithm().String(), d.Encoded())
}

func partialFile(s *image.Store, d digest.Digest) string {
	return filepath.Join(filepath.Dir(s.Dir()), "partial", d.Algorithm().String()+"-"+d.Encoded())
}

// stored checks that a blob is in the layout, and nothing else of it.
func stored(t testing.TB, s *image.Store, desc ocispec.Descriptor, raw []byte) {
	t.Helper()
	got, err := os.ReadFile(blobFile(s, desc.Digest))
	check(t, err)
	if !bytes.Equal(got, raw) || !s.HasBlob(desc) {
		t.Errorf("%s: wrong bytes", desc.Digest)
	}
	if left, err := os.ReadDir(filepath.Join(filepath.Dir(s.Dir()), "partial")); err != nil || len(left) > 0 {
		t.Errorf("partial files: %v, %v", left, err)
	}
}

func TestFetch(t *testing.T) {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		for _, size := range []int{0, 1, 1 << 20} {
			t.Run(fmt.Sprint(alg, size), func(t *testing.T) {
				server, s := newBlobServer(t, alg, size), newStore(t)
				if s.HasBlob(server.desc) {
					t.Fatal("the blob is there before")
				}
				var done, total int64
				for range 2 {
					check(t, s.Fetch(t.Context(), server.desc, server.blob(t), func(d, n int64) { done, total = d, n }))
					stored(t, s, server.desc, server.raw)
					if done != int64(size) || total != int64(size) {
						t.Errorf("progress ended at %d of %d", done, total)
					}
					done = 0
				}
				if asked := server.answers(nil); len(asked) > 1 {
					t.Errorf("asked %d times", len(asked))
				}
				check(t, s.Fetch(t.Context(), server.desc, nil, nil))
				st, err := os.Stat(blobFile(s, server.desc.Digest))
				check(t, err)
				if st.Mode().Perm() != 0o644 {
					t.Errorf("mode %v", st.Mode())
				}
			})
		}
	}
}

// A broken connection, and a cancelled context, cost nothing of what is there.
func TestFetchResumes(t *testing.T) {
	const size, cut = 1 << 20, 300_000
	for _, how := range []string{"cut", "cancel"} {
		t.Run(how, func(t *testing.T) {
			server, s := newBlobServer(t, digest.SHA256, size), newStore(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			server.cutAt(cut)
			want := fetch.ErrNotFound
			if how == "cancel" {
				want = context.Canceled
				server.answers(func(w http.ResponseWriter, from []byte) {
					_, _ = w.Write(from[:cut])
					_ = http.NewResponseController(w).Flush()
					<-ctx.Done()
				})
			}
			err := s.Fetch(ctx, server.desc, server.blob(t), func(done, _ int64) {
				if done == cut && how == "cancel" {
					cancel()
				}
			})
			oneLine(t, err, want, "fetch blob "+server.desc.Digest.String())
			if st, err := os.Stat(partialFile(s, server.desc.Digest)); err != nil || st.Size() != cut {
				t.Fatalf("partial: %v, %v", st, err)
			}
			if s.HasBlob(server.desc) {
				t.Error("half a blob is there")
			}
			server.answers(nil)
			first := int64(-1)
			check(t, s.Fetch(t.Context(), server.desc, server.blob(t), func(done, _ int64) {
				if first < 0 {
					first = done
				}
			}))
			stored(t, s, server.desc, server.raw)
			if asked := server.answers(nil); !slices.Equal(asked, []string{fmt.Sprintf("bytes=%d-%d", cut, size-1)}) || first != cut {
				t.Errorf("asked for %q, progress from %d", asked, first)
			}
		})
	}
}

// What a killed process has fetched is gone on from, and its lock is free.
func TestFetchAfterKill(t *testing.T) {
	const size, sent = 1 << 20, 600_000
	server, s := newBlobServer(t, digest.SHA512, size), newStore(t)
	killed := make(chan struct{})
	server.answers(func(w http.ResponseWriter, from []byte) {
		_, _ = w.Write(from[:sent])
		_ = http.NewResponseController(w).Flush()
		<-killed
	})
	cmd := exec.Command(os.Args[0], "-test.run=^TestFetchChild$")
	cmd.Env = append(os.Environ(), "LAMINA_TEST_STORE="+s.Dir(), "LAMINA_TEST_BLOB="+server.url)
	check(t, cmd.Start())
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if st, err := os.Stat(partialFile(s, server.desc.Digest)); err == nil && st.Size() == sent {
			break
		}
		if time.Now().After(deadline) {
			t.Error("the child fetches nothing")
			break
		}
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	close(killed)
	server.answers(nil)
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil))
	stored(t, s, server.desc, server.raw)
	if asked := server.answers(nil); !slices.Equal(asked, []string{fmt.Sprintf("bytes=%d-%d", sent, size-1)}) {
		t.Errorf("asked for %q", asked)
	}
}

// TestFetchChild is the process that TestFetchAfterKill kills.
func TestFetchChild(t *testing.T) {
	dir := os.Getenv("LAMINA_TEST_STORE")
	if dir == "" || os.Getenv("LAMINA_TEST_BLOB") == "" {
		return
	}
	s, err := image.OpenStore(dir)
	check(t, err)
	server := newBlobServer(t, digest.SHA512, 1<<20) // the same bytes
	server.url = os.Getenv("LAMINA_TEST_BLOB")
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil))
}

// Wrong bytes, wherever they come from, are fetched once more and then given
// up; they are never in the layout, and not in the way of the next Fetch.
func TestFetchWrongBytes(t *testing.T) {
	const size = 1 << 20
	partials := map[string][]byte{
		"none":     nil,
		"zeros":    make([]byte, 1000),
		"all":      make([]byte, size),
		"too long": make([]byte, size+1),
	}
	for name, partial := range partials {
		for _, bad := range []bool{false, true} {
			t.Run(fmt.Sprint(name, bad), func(t *testing.T) {
				server, s := newBlobServer(t, digest.SHA256, size), newStore(t)
				if partial != nil {
					check(t, os.MkdirAll(filepath.Dir(partialFile(s, server.desc.Digest)), 0o755))
					check(t, os.WriteFile(partialFile(s, server.desc.Digest), partial, 0o600))
				}
				if bad {
					server.answers(func(w http.ResponseWriter, from []byte) {
						if w.Header().Get("Content-Range") != "" {
							w.WriteHeader(http.StatusPartialContent)
						}
						_, _ = w.Write(make([]byte, len(from)))
					})
				}
				err := s.Fetch(t.Context(), server.desc, server.blob(t), nil)
				if bad {
					oneLine(t, err, image.ErrCorrupt, "wrong digest")
					if _, err := os.Stat(partialFile(s, server.desc.Digest)); err == nil || s.HasBlob(server.desc) {
						t.Error("wrong bytes are kept")
					}
					server.answers(nil)
					err = s.Fetch(t.Context(), server.desc, server.blob(t), nil)
				}
				check(t, err)
				stored(t, s, server.desc, server.raw)
				want := []string{""}
				if !bad && name == "zeros" {
					want = []string{fmt.Sprintf("bytes=1000-%d", size-1), ""}
				}
				if asked := server.answers(nil); !slices.Equal(asked, want) {
					t.Errorf("asked for %q, want %q", asked, want)
				}
			})
		}
	}
}

// Many who want the same blob, in several stores on one directory: one fetches,
// the others wait and see how far it is.
func TestFetchTogether(t *testing.T) {
	const size, half = 1 << 20, 1 << 19
	server, s := newBlobServer(t, digest.SHA256, size), newStore(t)
	const all = 8
	var seen sync.WaitGroup
	seen.Add(all)
	server.answers(func(w http.ResponseWriter, from []byte) {
		_, _ = w.Write(from[:half])
		_ = http.NewResponseController(w).Flush()
		seen.Wait()
		_, _ = w.Write(from[half:])
	})
	var wait sync.WaitGroup
	for range all {
		wait.Go(func() {
			other, err := image.OpenStore(s.Dir())
			if err != nil {
				t.Error(err)
			}
			var once sync.Once
			last := int64(0)
			err = other.Fetch(t.Context(), server.desc, server.blob(t), func(done, _ int64) {
				if last = done; done == half {
					once.Do(seen.Done)
				}
			})
			if err != nil || last != size {
				t.Errorf("at %d: %v", last, err)
			}
		})
	}
	wait.Wait()
	stored(t, s, server.desc, server.raw)
	if asked := server.answers(nil); len(asked) != 1 {
		t.Errorf("asked %d times", len(asked))
	}
}

// One who waits for another's download can give up, and goes on with it when
// the other does.
func TestFetchWaiting(t *testing.T) {
	const size = 1 << 20
	server, s := newBlobServer(t, digest.SHA256, size), newStore(t)
	path := partialFile(s, server.desc.Digest)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, server.raw[:1000], 0o600))
	f, err := os.Open(path)
	check(t, err)
	check(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	ctx, cancel := context.WithCancel(t.Context())
	err = s.Fetch(ctx, server.desc, server.blob(t), func(done, _ int64) {
		if done == 1000 {
			cancel()
		}
	})
	oneLine(t, err, context.Canceled)
	var once sync.Once
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), func(int64, int64) { once.Do(func() { _ = f.Close() }) }))
	stored(t, s, server.desc, server.raw)
	if asked := server.answers(nil); !slices.Equal(asked, []string{fmt.Sprintf("bytes=1000-%d", size-1)}) {
		t.Errorf("asked for %q", asked)
	}
}

// Of a local file the bytes are copied, from where they are in it.
func TestFetchLocal(t *testing.T) {
	const size, off = 40 << 20, 512
	raw := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		raw[i] = byte(i >> 12)
	}
	desc := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: size}
	file := filepath.Join(t.TempDir(), "archive")
	check(t, os.WriteFile(file, append(make([]byte, off), raw...), 0o600))
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Fetch(ctx, desc, fetch.OpenFile(file, off, size, desc.Digest), func(done, _ int64) {
		if done > 0 {
			cancel()
		}
	})
	oneLine(t, err, context.Canceled)
	if st, err := os.Stat(partialFile(s, desc.Digest)); err != nil || st.Size() == 0 || st.Size() == size {
		t.Errorf("partial: %v, %v", st, err)
	}
	check(t, s.Fetch(t.Context(), desc, fetch.OpenFile(file, off, size, desc.Digest), nil))
	stored(t, s, desc, raw)

	s = newStore(t)
	oneLine(t, s.Fetch(t.Context(), desc, fetch.OpenFile(file, 0, size, desc.Digest), nil), image.ErrCorrupt, "wrong digest")
	oneLine(t, s.Fetch(t.Context(), desc, fetch.OpenFile(file, off+1, size, desc.Digest), nil), fetch.ErrShort, file)
	oneLine(t, s.Fetch(t.Context(), desc, fetch.OpenFile(file+"x", 0, size, desc.Digest), nil), os.ErrNotExist)
	check(t, s.Fetch(t.Context(), desc, fetch.OpenFile(file, off, size, desc.Digest), nil))
}

// A full disk is called that. (What fitted stays, as with any other error; on
// this one nothing fits.)
func TestFetchFullDisk(t *testing.T) {
	server, s := newBlobServer(t, digest.SHA256, 1000), newStore(t)
	path := partialFile(s, server.desc.Digest)
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, server.raw, 0o600))
	for _, b := range []fetch.Blob{server.blob(t), fetch.OpenFile(file, 0, 1000, server.desc.Digest)} {
		check(t, os.Symlink("/dev/full", path))
		err := s.Fetch(t.Context(), server.desc, b, nil)
		oneLine(t, err, unix.ENOSPC, server.desc.Digest.String(), "no room in "+filepath.Dir(path), "lamina prune")
	}
}

func TestFetchRefuses(t *testing.T) {
	server, s := newBlobServer(t, digest.SHA256, 1000), newStore(t)
	desc := server.desc
	oneLine(t, s.Fetch(t.Context(), desc, nil, nil), image.ErrNotFound, "nowhere to fetch")
	desc.Size++
	oneLine(t, s.Fetch(t.Context(), desc, server.blob(t), nil), image.ErrCorrupt, "1000 bytes")
	desc.Digest = "blake3:" + hex64
	oneLine(t, s.Fetch(t.Context(), desc, server.blob(t), nil), image.ErrAlgorithm, `"blake3"`, "sha256, sha384 and sha512")
	desc.Digest = "sha256:../../../etc/passwd"
	oneLine(t, s.Fetch(t.Context(), desc, server.blob(t), nil), image.ErrCorrupt)
	if s.HasBlob(desc) {
		t.Error("there is such a blob")
	}
}

// fetchLayers fetches all layers of an image into a store.
func fetchLayers(t testing.TB, s *image.Store, img *image.Image) {
	t.Helper()
	for _, l := range img.Layers {
		check(t, s.Fetch(t.Context(), l.Desc, l.Blob, nil))
	}
}

// With all blobs here nothing is asked for, but the manifest of a tag if it is
// wanted every time.
func TestStoredBlobsArePreferred(t *testing.T) {
	r := newRegistry(t)
	index, images := platformIndex(t, true, "linux/amd64", "linux/arm64")
	ref := r.pushIndex(t, "all/local:1", index)
	img, s := opened(t, r, ref, "linux/arm64")
	fetchLayers(t, s, img)
	r.took()
	var pings atomic.Int32
	r.setTamper(func(_ http.ResponseWriter, req *http.Request) bool {
		pings.Add(1) // of pings too
		return false
	})
	read := func(name string, o image.Options) {
		t.Helper()
		o.Store, o.Platform = s, "linux/arm64"
		got, err := image.Open(t.Context(), name, o)
		check(t, err)
		same(t, got, images["linux/arm64"])
		for i, l := range got.Layers {
			local, ok := l.Blob.(fetch.Local)
			if !ok {
				t.Fatalf("%s, pull %s: layer %d is not local", name, o.Pull, i)
			}
			if path, _ := local.File(); path != blobFile(s, l.Desc.Digest) {
				t.Errorf("layer %d is read from %s", i, path)
			}
		}
	}
	byDigest := r.host + "/all/local@" + img.Index.String()
	c := newClient(t)
	read(ref, image.Options{Client: c})
	read(ref, image.Options{})
	read(ref, image.Options{Client: c, Pull: image.PullNever})
	read(byDigest, image.Options{Client: c})
	read(byDigest, image.Options{Client: c, Pull: image.PullAlways})
	read("oci:"+s.Dir()+":"+ref, image.Options{Client: c})
	got, err := s.Lookup(t.Context(), ref, "linux/arm64", c)
	check(t, err)
	same(t, got, images["linux/arm64"])
	c.Close()
	if n := pings.Load(); n > 0 {
		t.Errorf("%d requests: %v", n, r.took())
	}
	c = newClient(t)
	read(ref, image.Options{Client: c, Pull: image.PullAlways})
	c.Close()
	if asked := r.took(); !slices.Equal(asked, []string{"GET /v2/all/local/manifests/1"}) {
		t.Errorf("with pull always: asked %v", asked)
	}

	// A blob that was cut off, or that is gone, is read from the registry.
	check(t, os.Truncate(blobFile(s, img.Layers[0].Desc.Digest), 10))
	check(t, os.Remove(blobFile(s, img.Layers[1].Desc.Digest)))
	got, err = s.Lookup(t.Context(), ref, "linux/arm64", newClient(t))
	check(t, err)
	same(t, got, images["linux/arm64"])
	fetchLayers(t, s, got)
	r.setTamper(nil)
	r.took()
	read(ref, image.Options{})
}

// An image whose digests are all sha512, of an algorithm nobody knows, or whose
// index lists such a one for another platform.
func TestDigestAlgorithms(t *testing.T) {
	blobs := make(map[string][]byte)
	mediaTypes := make(map[string]string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		raw, ok := blobs[name]
		if !ok && r.URL.Path != "/v2/" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", mediaTypes[name])
		_, _ = io.Copy(w, bytes.NewReader(raw))
	}))
	defer server.Close()
	add := func(mediaType, text string) string {
		d := digest.SHA512.FromString(text)
		blobs[d.String()], mediaTypes[d.String()] = []byte(text), mediaType
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, d, len(text))
	}
	layer := add(ocispec.MediaTypeImageLayer, "layer")
	config := add(ocispec.MediaTypeImageConfig, fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.SHA512.FromString("layer")))
	manifest := add(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":`+config+`,"layers":[`+layer+`]}`)
	known := strings.Replace(manifest, "{", `{"platform":{"os":"linux","architecture":"amd64"},`, 1)
	unknown := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"blake3:` + hex64 + `","size":3,"platform":{"os":"linux","architecture":"arm64"}}`
	blobs["1"], mediaTypes["1"] = []byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[`+unknown+`,`+known+`]}`), ocispec.MediaTypeImageIndex

	s, ref := newStore(t), strings.TrimPrefix(server.URL, "http://")+"/algorithms:1"
	o := image.Options{Store: s, Client: newClient(t), Platform: "linux/amd64"}
	img, err := image.Open(t.Context(), ref, o)
	check(t, err)
	fetchLayers(t, s, img)
	_, err = image.Open(t.Context(), ref, image.Options{Store: s, Client: o.Client, Platform: "linux/arm64"})
	oneLine(t, err, image.ErrAlgorithm, `"blake3"`, "sha256, sha384 and sha512 are known")
	l, told := logTo()
	o.Log = l
	all, err := image.OpenAll(t.Context(), ref, o)
	check(t, err)
	if len(all) != 1 || all[0].Digest != img.Digest || !strings.Contains(told.String(), "blake3") {
		t.Errorf("all platforms: %d images, log: %s", len(all), told)
	}
	o.Client, o.Pull = nil, image.PullNever
	img, err = image.Open(t.Context(), ref, o)
	check(t, err)
	raw, err := fetch.ReadAll(t.Context(), img.Layers[0].Blob, 10)
	if err != nil || string(raw) != "layer" || img.Digest.Algorithm() != digest.SHA512 {
		t.Errorf("read %q of %s: %v", raw, img.Digest, err)
	}
	if unused, err := s.Unused(t.Context()); err != nil || len(unused) > 0 {
		t.Errorf("unused: %v, %v", unused, err)
	}
	if problems, err := s.Check(t.Context(), image.CheckOptions{}); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

// A local file that goes, or ends too early, is gone on from at its origin.
func TestFetchLocalGone(t *testing.T) {
	server := newBlobServer(t, digest.SHA256, 1<<20)
	for _, n := range []int{-1, 0, 1000} {
		s, file := newStore(t), filepath.Join(t.TempDir(), "file")
		if n >= 0 {
			check(t, os.WriteFile(file, server.raw[:n], 0o600))
		}
		var b fetch.Blob = fetch.OpenFile(file, 0, server.desc.Size, server.desc.Digest)
		local, ok := b.(fetch.Local)
		if !ok {
			t.Fatal("a file is not local")
		}
		check(t, s.Fetch(t.Context(), server.desc, fetch.Fallback(local, server.blob(t)), nil))
		stored(t, s, server.desc, server.raw)
	}
}

// A blob that is fetched alone makes a layout, and one of a newer version is left
// alone.
func TestFetchLayout(t *testing.T) {
	server, s := newBlobServer(t, digest.SHA256, 1000), newStore(t)
	check(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil))
	_, err := layout.FromPath(s.Dir())
	check(t, err)
	problems, err := s.Check(t.Context(), image.CheckOptions{})
	if err != nil || len(problems) > 0 {
		t.Errorf("%+v, %v", problems, err)
	}
	check(t, write("oci-layout", `{"imageLayoutVersion":"2.0.0"}`)(s.Dir()))
	check(t, s.Fetch(t.Context(), server.desc, nil, nil))
	check(t, os.Remove(blobFile(s, server.desc.Digest)))
	oneLine(t, s.Fetch(t.Context(), server.desc, server.blob(t), nil), image.ErrNotImage, "version \"2.0.0\"")
}
