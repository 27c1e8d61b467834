package fetch

import (
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
)

// Origin returns ref's repository and a transport, by which
// go-containerregistry's remote reaches the registry itself, never a mirror, as
// this Client does: by the same hosts.toml and certificates, plain HTTP where the
// Client takes it, with the Client's credentials and tokens, for pulling and
// pushing. The repository's name has the host that is asked, which need not be
// ref's domain.
//
// Requests must carry no authorisation of their own; so remote is to be given no
// keychain. They wait for a place as Readers do and have it until the answer comes,
// but for those that send parts of blobs (PATCH), and are bounded by their contexts
// only. A registry without the
// referrers API answers requests to it with 404, whatever it says in truth: that
// is the one answer that remote always understands.
//
// from are other repositories of the same registry that requests may concern, such as
// those that blobs are mounted from: tokens are asked for to pull from them, too. What
// is of another registry among them does not count.
func (c *Client) Origin(ref reference.Named, from ...reference.Named) (name.Repository, http.RoundTripper, error) {
	h, err := c.pushHost(reference.Domain(ref))
	if err != nil {
		return name.Repository{}, nil, fmt.Errorf("push to %s: %w", ref.Name(), err)
	}
	registry, err := name.NewRegistry(h.rh.Host)
	if err != nil {
		return name.Repository{}, nil, fmt.Errorf("push to %s: %w", ref.Name(), err)
	}
	t := &originTransport{client: c, host: h, domain: reference.Domain(ref), repo: reference.Path(ref)}
	t.scopes = []string{"repository:" + t.repo + ":pull,push"}
	for _, f := range from {
		if scope := "repository:" + reference.Path(f) + ":pull"; reference.Domain(f) == t.domain && !slices.Contains(t.scopes, scope) {
			t.scopes = append(t.scopes, scope)
		}
	}
	return registry.Repo(t.repo), t, nil
}

// pushHost returns the host of a domain that is the registry itself and may be
// pushed to. It may be listed among the mirrors, with settings that the last one,
// the server, lacks.
func (c *Client) pushHost(domain string) (*host, error) {
	r, err := c.registry(domain)
	if err != nil {
		return nil, err
	}
	for _, h := range r.hosts {
		if (!h.proxy || h.is(r.server())) && h.rh.Capabilities.Has(docker.HostCapabilityPush) {
			return h, nil
		}
	}
	return nil, fmt.Errorf("%w: hosts.toml has no host with the capability push", ErrUnavailable)
}

// originTransport sends requests of one repository to its registry.
type originTransport struct {
	client       *Client
	host         *host
	domain, repo string
	scopes       []string // of tokens
}

// RoundTrip implements http.RoundTripper.
func (t *originTransport) RoundTrip(in *http.Request) (*http.Response, error) {
	resp, err := t.roundTrip(in)
	if err != nil {
		return nil, err
	}
	// Relative locations are resolved against what was asked for, so that what
	// they lead to comes back here.
	resp.Request = in
	if path.Base(path.Dir(in.URL.Path)) == "referrers" && lacksReferrers(resp) {
		resp.StatusCode, resp.Status = http.StatusNotFound, "404 Not Found"
	}
	return resp, nil
}

func (t *originTransport) roundTrip(in *http.Request) (*http.Response, error) {
	if in.URL.Host != t.host.rh.Host { // where the registry redirects to
		return t.send(in.Clone(in.Context()))
	}
	s := t.host.session(t.client, t.repo)
	ctx := in.Context()
	for _, scope := range t.scopes {
		ctx = docker.WithScope(ctx, scope)
	}
	body := in.Body
	for renewed := false; ; {
		out := in.Clone(in.Context())
		out.Body, out.URL = body, t.url(in.URL)
		for k, vs := range t.host.header {
			out.Header[k] = vs
		}
		generation, err := s.authorize(ctx, out)
		if err != nil {
			if body != nil {
				_ = body.Close()
			}
			return nil, err
		}
		resp, err := t.send(out)
		if err != nil || in.Body != nil && in.Body != http.NoBody && in.GetBody == nil {
			return resp, err
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized && !renewed:
			renewed = true
			drain(resp)
			if err := s.renew(ctx, generation, resp); err != nil {
				return nil, err
			}
		case s.withdraw(ctx, resp):
			drain(resp)
		default:
			return resp, nil
		}
		if in.GetBody != nil {
			if body, err = in.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}

// url returns where a request for u goes: go-containerregistry knows neither
// hosts.toml's schemes nor its paths.
func (t *originTransport) url(u *url.URL) *url.URL {
	v := *u
	v.Scheme = t.host.rh.Scheme
	rest, ok := strings.CutPrefix(v.Path, "/v2/")
	if at := t.host.rh.Path; at != "/v2" && ok && (rest == "" || strings.HasPrefix(rest, t.repo+"/")) {
		v.Path = at + "/" + rest
		// Where a path is escaped in its own way, as upload locations are, that is
		// kept. Of another beginning, URL makes it anew.
		if raw, ok := strings.CutPrefix(v.RawPath, "/v2/"); ok {
			v.RawPath = (&url.URL{Path: at}).EscapedPath() + "/" + raw
		}
	}
	if t.host.proxy {
		q := v.Query()
		q.Set("ns", t.domain)
		v.RawQuery = q.Encode()
	}
	return &v
}

// send sends a request, which is the transport's own, as it is.
func (t *originTransport) send(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodPatch { // of a blob, which may have to be read from a registry meanwhile
		if err := t.client.queue.acquire(req.Context(), Reader); err != nil {
			if req.Body != nil {
				_ = req.Body.Close()
			}
			return nil, err
		}
		defer t.client.queue.release(Reader)
	}
	if t.host.header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", t.client.o.UserAgent)
	}
	t.client.stats.requests.Add(1)
	t.host.stats.requests.Add(1)
	return t.host.client.Transport.RoundTrip(req)
}
