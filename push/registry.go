package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// Registry is one repository of a registry, to be pushed to. Its methods may be
// called concurrently.
type Registry struct {
	client *fetch.Client
	repo   reference.Named
	base   url.URL // of the repository, with a slash at the end
	rt     http.RoundTripper
}

// NewRegistry returns ref's repository, which is reached by c, as Client.Origin says:
// never by a mirror. from are repositories of the same registry from which blobs may
// be mounted; others among them are left out. Nothing is asked yet.
func NewRegistry(c *fetch.Client, ref reference.Named, from ...reference.Named) (*Registry, error) {
	repo, rt, err := c.Origin(ref, from...)
	if err != nil {
		return nil, err
	}
	return &Registry{
		client: c, repo: reference.TrimNamed(ref), rt: rt,
		base: url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr() + "/"},
	}, nil
}

// at returns the address of something in the repository.
func (r *Registry) at(path string, query url.Values) *url.URL {
	u := r.base
	u.Path += path
	u.RawQuery = query.Encode()
	return &u
}

// request is what is sent.
type request struct {
	method string
	at     *url.URL
	header map[string]string
	length int64
	body   func() (io.ReadCloser, error) // nil: none
}

// do sends a request and returns the answer, as fetch.Do does.
func (r *Registry) do(ctx context.Context, q request, ok ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, q.method, q.at.String(), nil)
	if err != nil {
		return nil, err
	}
	for k, v := range q.header {
		req.Header.Set(k, v)
	}
	if q.body != nil && q.length > 0 {
		if req.Body, err = q.body(); err != nil {
			return nil, err
		}
		req.ContentLength, req.GetBody = q.length, q.body
	}
	return fetch.Do(r.rt, req, ok...)
}

// has reports whether the repository has the blob.
func (r *Registry) has(ctx context.Context, d digest.Digest) (bool, error) {
	_, err := r.do(ctx, request{method: http.MethodHead, at: r.at("blobs/"+d.String(), nil)}, http.StatusOK)
	if errors.Is(err, fetch.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Manifest sends a manifest or an image index as tag, or by its digest alone if tag is
// empty. What it leads to must be there.
func (r *Registry) Manifest(ctx context.Context, desc ocispec.Descriptor, raw []byte, tag string) error {
	where := tag
	if where == "" {
		where = desc.Digest.String()
	}
	q := request{
		method: http.MethodPut, at: r.at("manifests/"+where, nil), length: int64(len(raw)),
		header: map[string]string{"Content-Type": desc.MediaType},
		body:   func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil },
	}
	err := retry(ctx, func() error {
		_, err := r.do(ctx, q, http.StatusCreated, http.StatusOK, http.StatusAccepted)
		return err
	})
	if err != nil {
		return fmt.Errorf("push manifest %s: %w", desc.Digest, err)
	}
	return nil
}
