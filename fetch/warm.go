package fetch

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
)

// warmTime bounds the set-up of connections that nobody waits for.
const warmTime = 5 * time.Second

// Warm opens n connections to the first host that ref's blobs would come from
// and returns at once. Who is about to ask for a manifest, and right after it
// for several blobs, spares the blobs the set-up of their connections, which
// costs two or three round trips. Credentials for the host are looked up
// meanwhile, and the first request carries them if they are a name and a
// password that nobody can listen to. Nothing is kept of the answers, and
// failures are left to the requests that matter. There are fewer connections where
// Options.Parallel has no room for n. Close ends what is under way.
func (c *Client) Warm(ref reference.Named, n int) {
	cs, err := c.hostsOf(reference.Domain(ref), docker.HostCapabilityPull)
	if err != nil || len(cs) == 0 {
		return
	}
	h := cs[0].host
	c.mu.Lock()
	until := c.warm
	c.mu.Unlock()
	if look := h.session(c, reference.Path(ref)).foresee(); look != nil {
		c.warming.Go(func() {
			ctx, cancel := context.WithTimeout(until, warmTime)
			defer cancel()
			look(ctx)
		})
	}
	u := &url.URL{Scheme: h.rh.Scheme, Host: h.rh.Host, Path: h.rh.Path + "/"}
	// The manifest, which is not to wait for these, takes a place too.
	for range min(n, c.o.Parallel-1) {
		if !c.queue.try(Prefetch) {
			return
		}
		c.warming.Go(func() {
			defer c.queue.release(Prefetch)
			ctx, cancel := context.WithTimeout(until, warmTime)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
			if err != nil {
				return
			}
			req.Header.Set("User-Agent", c.o.UserAgent)
			c.stats.requests.Add(1)
			h.stats.requests.Add(1)
			if resp, err := h.client.Do(req); err == nil {
				drain(resp)
			}
		})
	}
}
