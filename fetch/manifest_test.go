package fetch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

func TestManifest(t *testing.T) {
	ctx := context.Background()
	body := []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
	list := []byte(`{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","manifests":[]}`)
	f := newFake(t, httptest.NewServer)
	dgst := f.put(body, "v1", "latest")
	listDgst := f.put(list, "list")
	c := newClient(t, fetch.Options{})
	other := digest.FromString("other")

	for _, k := range []struct {
		suffix string
		dgst   digest.Digest
		want   digest.Digest
		typ    string
	}{
		{":v1", "", dgst, ocispec.MediaTypeImageManifest},
		{"", "", dgst, ocispec.MediaTypeImageManifest},
		{"@" + dgst.String(), "", dgst, ocispec.MediaTypeImageManifest},
		{":other@" + dgst.String(), "", dgst, ocispec.MediaTypeImageManifest},
		{":other", dgst, dgst, ocispec.MediaTypeImageManifest},
		{":list", "", listDgst, "application/vnd.docker.distribution.manifest.list.v2+json"},
	} {
		n := f.count()
		desc, got, err := c.Manifest(ctx, f.ref(t, k.suffix), k.dgst)
		if err != nil || desc.Digest != k.want || desc.MediaType != k.typ || desc.Size != int64(len(got)) || digest.FromBytes(got) != k.want {
			t.Errorf("%q: %+v, %q, %v", k.suffix, desc, got, err)
		}
		if f.count() != n+1 {
			t.Errorf("%q: %d requests", k.suffix, f.count()-n)
		}
	}
	if _, _, err := c.Manifest(ctx, f.ref(t, ":none"), ""); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("missing tag: %v", err)
	}
	if _, _, err := c.Manifest(ctx, f.ref(t, ""), "sha256:../../x"); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("digest that is a path: %v", err)
	}

	f.objects[other.String()] = body
	if _, _, err := c.Manifest(ctx, f.ref(t, ""), other); !errors.Is(err, fetch.ErrDigest) {
		t.Errorf("content of another digest: %v", err)
	}
}

func TestManifestBad(t *testing.T) {
	for _, k := range []struct {
		name   string
		answer http.HandlerFunc
		want   error
	}{
		{"too big", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 9<<20)) }, fetch.ErrTooBig},
		{"too big and says so", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "9999999999") }, fetch.ErrTooBig},
		{"other digest in the header", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			_, _ = fmt.Fprint(w, "{}")
		}, fetch.ErrDigest},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>") }, fetch.ErrUnavailable},
		{"ambiguous", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, `{"layers":[],"manifests":[]}`) }, fetch.ErrUnavailable},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, fetch.ErrUnavailable},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t, httptest.NewServer)
			f.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool { k.answer(w, r); return true }
			if _, _, err := newClient(t, fetch.Options{Retries: 1}).Manifest(context.Background(), f.ref(t, ":v1"), ""); !errors.Is(err, k.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestManifestMirrors has a mirror that may not resolve tags, and one with an
// altered manifest.
func TestManifestMirrors(t *testing.T) {
	body := []byte(`{"schemaVersion":2,"layers":[]}`)
	origin, mirror := newFake(t, httptest.NewServer), newFake(t, httptest.NewServer)
	dgst := origin.put(body, "v1")
	mirror.put([]byte(`{}`), "v1")
	mirror.objects[dgst.String()] = []byte(`{"schemaVersion":2,"layers":[{}]}`)
	root := hostsFile(t, "origin.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", origin.URL, mirror.URL))
	c := newClient(t, fetch.Options{HostsDirs: []string{root}})
	for _, suffix := range []string{":v1", "@" + dgst.String()} {
		_, got, err := c.Manifest(context.Background(), parseRef(t, "origin.example/"+repo+suffix), "")
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s: %q, %v", suffix, got, err)
		}
	}
	if mirror.count() != 1 {
		t.Errorf("mirror was asked %d times", mirror.count())
	}
}

// TestParseDocument: what is both a manifest and an index is neither.
func TestParseDocument(t *testing.T) {
	for body, want := range map[string]string{
		`{"schemaVersion":2,"config":{},"layers":[]}`: "manifest",
		`{"layers":[]}`:                       "manifest",
		`{"schemaVersion":"2","config":{}}`:   "manifest",
		`{"manifests":[]}`:                    "index",
		`{"manifests":[],"layers":[]}`:        "error",
		`{"config":{},"manifests":[]}`:        "error",
		`{}`:                                  "",
		`[]`:                                  "error",
		``:                                    "error",
		`{"mediaType":1,"schemaVersion":2}`:   "error",
		`{"schemaVersion":1,"fsLayers":[{}]}`: "",
	} {
		got := ""
		switch d, err := fetch.ParseDocument([]byte(body)); {
		case err != nil:
			got = "error"
		case d.IsIndex():
			got = "index"
		case d.IsManifest():
			got = "manifest"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
}
