package fetch_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// pages answers the n-th request with the n-th page of a list without end, with
// one entry each, whose link is made by link.
func pages(link func(n int) string) func(n int, w http.ResponseWriter, r *http.Request) bool {
	return func(n int, w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		if l := link(n); l != "" {
			w.Header().Set("Link", l)
		}
		_ = json.NewEncoder(w).Encode(ocispec.Index{Manifests: []ocispec.Descriptor{{Digest: digest.FromString(fmt.Sprint(n)), Size: 1}}})
		return true
	}
}

// TestReferrersPages follows the links of one host, a few of them.
func TestReferrersPages(t *testing.T) {
	elsewhere := newFake(t, httptest.NewServer)
	elsewhere.fault = pages(func(int) string { return "" })
	subject := digest.FromString("subject")
	for name, c := range map[string]struct {
		link func(n int) string
		want int // entries, and requests
	}{
		"one":         {func(int) string { return "" }, 1},
		"two":         {func(n int) string { return []string{`<?page=a,b>; rel="next"`, ""}[n] }, 2},
		"absolute":    {func(n int) string { return []string{"</v2/x>; rel=\"last\", </v2/y?n=1>;rel=next", ""}[n] }, 2},
		"endless":     {func(int) string { return `</v2/more>; rel="next"` }, 4},
		"other links": {func(int) string { return `<x>; rel="prev"; title="next", y; rel="next", <z` }, 1},
		"other host":  {func(int) string { return "<" + elsewhere.URL + `/v2/>; rel="next"` }, 1},
		"no address":  {func(int) string { return `<http://[>; rel="next"` }, 1},
	} {
		f := newFake(t, httptest.NewServer)
		f.fault = pages(c.link)
		list, err := newClient(t, fetch.Options{}).Referrers(t.Context(), f.ref(t, ""), subject, "application/x")
		if err != nil || len(list) != c.want || f.count() != c.want {
			t.Errorf("%s: %d entries in %d requests, %v", name, len(list), f.count(), err)
		}
		for i, d := range list {
			if d.Digest != digest.FromString(fmt.Sprint(i)) {
				t.Errorf("%s: entry %d is %s", name, i, d.Digest)
			}
		}
	}
	if elsewhere.count() > 0 {
		t.Error("another host was asked")
	}

	// What was promised and is not there ends the list.
	f := newFake(t, httptest.NewServer)
	first := pages(func(int) string { return `</v2/more>; rel="next"` })
	f.fault = func(n int, w http.ResponseWriter, r *http.Request) bool { return n == 0 && first(n, w, r) }
	list, err := newClient(t, fetch.Options{}).Referrers(t.Context(), f.ref(t, ""), subject, "application/x")
	if err != nil || len(list) != 1 {
		t.Errorf("a page that is not there: %d entries, %v", len(list), err)
	}
}

// TestReferrersNotImplemented: a mirror that does not have the API is asked for
// blobs as before.
func TestReferrersNotImplemented(t *testing.T) {
	p := randomBytes(1000)
	origin, mirror := newFake(t, httptest.NewServer), newFake(t, httptest.NewServer)
	origin.put(p)
	mirror.put(p)
	mirror.fault = func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotImplemented)
			return true
		}
		return false
	}
	list := pages(func(int) string { return "" })
	origin.fault = func(n int, w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/referrers/") && list(n, w, r)
	}
	root := hostsFile(t, "origin.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", origin.URL, mirror.URL))
	c := newClient(t, fetch.Options{HostsDirs: []string{root}})
	ref := parseRef(t, "origin.example/"+repo)
	dgst := digest.FromBytes(p)
	if l, err := c.Referrers(t.Context(), ref, dgst, "application/x"); err != nil || len(l) != 1 {
		t.Errorf("%d entries, %v", len(l), err)
	}
	before := origin.count()
	wantRange(t, c.Blob(ref, ocispec.Descriptor{Digest: dgst, Size: int64(len(p))}), p, 0, 100)
	if origin.count() != before {
		t.Error("the mirror is avoided because it lacks the API")
	}
	if _, _, err := c.Manifest(t.Context(), ref, digest.FromString("none")); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
