package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest's size, in bytes. Registries take 4 MiB.
const maxManifest = 8 << 20

// Docker's media types, as its registries use them for what OCI standardised.
const (
	DockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	DockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Document is what image manifests and image indexes are told apart by.
type Document struct {
	SchemaVersion json.RawMessage `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"` // what it says of itself
	Manifests     json.RawMessage `json:"manifests"` // an index has these
	Config        json.RawMessage `json:"config"`    // a manifest has these two
	Layers        json.RawMessage `json:"layers"`
	FSLayers      json.RawMessage `json:"fsLayers"` // a manifest of docker's schema 1
}

// ParseDocument reads raw, which need not be what any media type says. A document
// that can be read as index and as manifest means different things to different
// programs (CVE-2021-41190) and gives an error, as does one that is no JSON.
func ParseDocument(raw []byte) (*Document, error) {
	d := new(Document)
	if err := json.Unmarshal(raw, d); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	if d.IsIndex() && d.IsManifest() {
		return nil, errors.New("a manifest has both manifests and layers")
	}
	return d, nil
}

// IsIndex tells whether d has what an image index has.
func (d *Document) IsIndex() bool { return d.Manifests != nil }

// IsManifest tells whether d has what an image manifest has.
func (d *Document) IsManifest() bool { return d.Config != nil || d.Layers != nil }

// manifest implements Manifest.
func (c *Client) manifest(ctx context.Context, ref reference.Reference, dgst digest.Digest) (ocispec.Descriptor, []byte, error) {
	named, ok := ref.(reference.Named)
	if !ok {
		return ocispec.Descriptor{}, nil, fmt.Errorf("get manifest %q: reference has no name", ref.String())
	}
	if d, ok := ref.(reference.Digested); ok && dgst == "" {
		dgst = d.Digest()
	}
	object, want := dgst.String(), docker.HostCapabilityPull
	if dgst == "" {
		object, want = "latest", docker.HostCapabilityPull|docker.HostCapabilityResolve
		if t, ok := ref.(reference.Tagged); ok {
			object = t.Tag()
		}
	} else if err := dgst.Validate(); err != nil { // it becomes part of a URL
		return ocispec.Descriptor{}, nil, fmt.Errorf("get manifest %s: %w: %w", ref, ErrDigest, err)
	}
	cs, err := c.hostsOf(reference.Domain(named), want)
	if err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("get manifest %s: %w", ref, err)
	}
	var desc ocispec.Descriptor
	var body []byte
	cl := &call{client: c, what: "get manifest " + ref.String(), candidates: cs}
	err = cl.ask(ctx, func(h *host) (err error) {
		desc, body, err = c.manifestFrom(ctx, h, named, object, dgst)
		return err
	})
	return desc, body, err
}

// ask has attempt ask one host after the other until one gives what is wanted.
func (cl *call) ask(ctx context.Context, attempt func(h *host) error) error {
	t := slot{queue: cl.client.queue, class: priorityOf(ctx)}
	defer t.leave()
	for {
		h, err := cl.next(ctx, preferHost)
		if err != nil {
			return err
		}
		if err := t.take(ctx); err != nil {
			return cl.ended(err)
		}
		if err = attempt(h); err == nil {
			h.reached()
			return nil
		}
		t.leave()
		if ctx.Err() != nil {
			return cl.ended(ctx.Err())
		}
		cl.failed(h, err)
	}
}

// manifestFrom makes one attempt at h. dgst is empty if object is a tag.
func (c *Client) manifestFrom(ctx context.Context, h *host, named reference.Named, object string, dgst digest.Digest) (ocispec.Descriptor, []byte, error) {
	a := c.newAttempt(ctx, h)
	defer a.end()
	resp, final, err := c.get(a.ctx, h, request{
		repo: reference.Path(named),
		url:  h.url(reference.Domain(named), reference.Path(named), "manifests", object),
		header: http.Header{"Accept": {strings.Join([]string{
			ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, DockerManifestList, DockerManifest, "*/*;q=0.1",
		}, ", ")}},
	}, a.alive)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	a.body, a.url = resp.Body, final
	if resp.StatusCode != http.StatusOK {
		return ocispec.Descriptor{}, nil, responseError(resp, false)
	}
	body, err := a.all(resp.ContentLength, maxManifest)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if dgst == "" {
		dgst = digest.FromBytes(body)
		if said := resp.Header.Get("Docker-Content-Digest"); said != "" {
			// What the registry says goes, if it is verified: it may use
			// another algorithm than ours.
			if d, err := digest.Parse(said); err == nil {
				dgst = d
			}
		}
	}
	if got := dgst.Algorithm().FromBytes(body); got != dgst {
		return ocispec.Descriptor{}, nil, protocolError(resp, ErrDigest, "content has %s, wanted %s", got, dgst)
	}
	mediaType, err := manifestType(resp.Header.Get("Content-Type"), body)
	if err != nil {
		return ocispec.Descriptor{}, nil, protocolError(resp, ErrUnavailable, "%v", err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(body))}, body, nil
}

// all reads the whole body: length bytes, or to its end if that is negative.
func (a *attempt) all(length, limit int64) ([]byte, error) {
	tooBig := &Error{URL: redact(a.url), Err: fmt.Errorf("%w: over %d bytes", ErrTooBig, limit), fate: permanent, Status: http.StatusOK}
	if length > limit {
		return nil, tooBig
	}
	buf := make([]byte, 0, max(length+1, 4096))
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		a.alive()
		n, err := a.body.Read(buf[len(buf):cap(buf)])
		a.client.countBytes(a.host, n)
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return nil, tooBig
		case err == io.EOF:
			return buf, nil
		case err != nil:
			if cause := context.Cause(a.ctx); cause != nil {
				err = cause
			}
			return nil, &Error{URL: redact(a.url), Err: fmt.Errorf("%w: %w: %w", ErrUnavailable, errBroken, opaque{err})}
		}
	}
}

// manifestType finds the media type of a manifest: what it says of itself, else
// the header's, else what its fields tell.
func manifestType(header string, body []byte) (string, error) {
	d, err := ParseDocument(body)
	if err != nil {
		return "", err
	}
	if d.MediaType != "" {
		return d.MediaType, nil
	}
	if t, _, err := mime.ParseMediaType(header); err == nil {
		switch t {
		case "application/json", "text/plain", "application/octet-stream", "text/html":
		default:
			return t, nil
		}
	}
	if d.IsIndex() {
		return ocispec.MediaTypeImageIndex, nil
	}
	return ocispec.MediaTypeImageManifest, nil
}
