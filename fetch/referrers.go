package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxPages bounds the pages of a list of referrers that are read.
const maxPages = 4

// Referrers asks the referrers API which manifests of ref's repository refer to
// the manifest subject, and for those of artifactType only if that is not empty. It
// is one request, and one more for each further page that the same host says the
// list has, of four at the most. Nothing of the answer is verified, and a registry
// may give others besides.
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
	u := h.url(reference.Domain(ref), reference.Path(ref), "referrers", subject.String())
	q := u.Query()
	if artifactType != "" {
		q.Set("artifactType", artifactType)
	}
	u.RawQuery = q.Encode()
	all, next, err := c.referrersPage(ctx, h, ref, u)
	for pages := 1; err == nil && next != nil && pages < maxPages; pages++ {
		var page []ocispec.Descriptor
		page, next, err = c.referrersPage(ctx, h, ref, next)
		all = append(all, page...)
		var e *Error
		if errors.As(err, &e) && e.fate == permanent {
			return all, nil // it said that there is more, and does not give it
		}
	}
	return all, err
}

// referrersPage gets one page of a list and the address of the one that follows,
// nil if there is none.
func (c *Client) referrersPage(ctx context.Context, h *host, ref reference.Named, u *url.URL) ([]ocispec.Descriptor, *url.URL, error) {
	a := c.newAttempt(ctx, h)
	defer a.end()
	resp, final, err := c.get(a.ctx, h, request{
		repo: reference.Path(ref), url: u, header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	}, a.alive)
	if err != nil {
		return nil, nil, err
	}
	a.body, a.url = resp.Body, final
	switch {
	case lacksReferrers(resp):
		e := responseError(resp, false)
		e.Err, e.fate = ErrNotFound, permanent
		return nil, nil, e
	case resp.StatusCode != http.StatusOK:
		return nil, nil, responseError(resp, false)
	}
	body, err := a.all(resp.ContentLength, maxManifest)
	if err != nil {
		return nil, nil, err
	}
	var list ocispec.Index
	if err := json.Unmarshal(body, &list); err != nil {
		e := protocolError(resp, ErrUnavailable, "list of referrers: %v", err)
		e.fate = permanent // it was received whole; nobody waits for this list long
		return nil, nil, e
	}
	return list.Manifests, nextPage(h, final, resp.Header), nil
}

// nextPage returns the address that a response from u links to as the next page,
// if it is at h itself: nobody else is asked for what h is to say.
func nextPage(h *host, u *url.URL, header http.Header) *url.URL {
	for _, v := range header.Values("Link") {
		for {
			// A comma within an address does not end the link.
			_, link, _ := strings.Cut(v, "<")
			target, rest, ok := strings.Cut(link, ">")
			if !ok {
				break
			}
			v = rest
			if params, _, _ := strings.Cut(rest, ","); !isNext(params) {
				continue
			}
			next, err := u.Parse(target)
			if err != nil || !h.owns(u) || !h.owns(next) {
				return nil
			}
			next.User, next.Fragment = nil, ""
			if q := next.Query(); h.proxy && !q.Has("ns") {
				q.Set("ns", u.Query().Get("ns"))
				next.RawQuery = q.Encode()
			}
			return next
		}
	}
	return nil
}

// isNext tells whether the parameters of a link name it the next one.
func isNext(params string) bool {
	for _, p := range strings.Split(params, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(strings.TrimSpace(name), "rel") &&
			strings.EqualFold(strings.Trim(strings.TrimSpace(value), `"`), "next") {
			return true
		}
	}
	return false
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
