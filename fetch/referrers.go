package fetch

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Referrers asks the referrers API which manifests of ref's repository refer to
// the manifest subject, and for those of artifactType only. It is one request.
// Nothing of the answer is verified, and a registry may give others besides. Of
// a list in several pages it is the first.
//
// ErrNotFound: the registry does not have the API. Its list, if there is one, is
// then an image index with a tag that is made of the subject's digest.
func (c *Client) Referrers(ctx context.Context, ref reference.Named, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	what := "get referrers of " + ref.Name() + "@" + subject.String()
	if err := subject.Validate(); err != nil { // it becomes part of a URL
		return nil, fmt.Errorf("%s: %w: %w", what, ErrDigest, err)
	}
	// Few files say "referrers": who resolves names can be asked, and may not know.
	cs, err := c.hostsOf(reference.Domain(ref), docker.HostCapabilityPull|docker.HostCapabilityResolve)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case len(cs) == 0:
		return nil, fmt.Errorf("%s: %w: hosts.toml has no host with that capability", what, ErrNotFound)
	}
	var list []ocispec.Descriptor
	cl := &call{client: c, what: what, candidates: cs}
	err = cl.ask(ctx, func(h *host) (err error) {
		list, err = c.referrersFrom(ctx, h, ref, subject, artifactType)
		return err
	})
	return list, err
}

// referrersFrom makes one attempt at h.
func (c *Client) referrersFrom(ctx context.Context, h *host, ref reference.Named, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	a := c.newAttempt(ctx, h)
	defer a.end()
	u := h.url(reference.Domain(ref), reference.Path(ref), "referrers", subject.String())
	q := u.Query()
	q.Set("artifactType", artifactType)
	u.RawQuery = q.Encode()
	resp, final, err := c.get(a.ctx, h, request{
		repo: reference.Path(ref), url: u, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	}, a.alive)
	if err != nil {
		return nil, err
	}
	a.body, a.url = resp.Body, final
	switch {
	case lacksReferrers(resp):
		e := responseError(resp, false)
		e.Err, e.fate = ErrNotFound, permanent
		return nil, e
	case resp.StatusCode != http.StatusOK:
		return nil, responseError(resp, false)
	}
	body, err := a.all(resp.ContentLength, maxManifest)
	if err != nil {
		return nil, err
	}
	var list ocispec.Index
	if err := json.Unmarshal(body, &list); err != nil {
		e := protocolError(resp, ErrUnavailable, "list of referrers: %v", err)
		e.fate = permanent // it was received whole; nobody waits for this list long
		return nil, e
	}
	return list.Manifests, nil
}

// lacksReferrers tells whether resp to a request to the referrers API comes from
// a registry that does not have it. The specification knows 404; others take the
// path for a malformed one, or serve their web pages on it.
func lacksReferrers(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusOK:
		t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
		return err != nil || t != ocispec.MediaTypeImageIndex
	case http.StatusNotFound, http.StatusGone, http.StatusBadRequest, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}
