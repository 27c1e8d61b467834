package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

const (
	dialTimeout     = 10 * time.Second
	idleConnTimeout = 90 * time.Second
	tlsSessions     = 32

	// maxPenalty bounds how long an unreachable host is asked last.
	maxPenalty = 30 * time.Second
)

// registry is what a reference's domain stands for: its mirrors in order, then
// itself.
type registry struct {
	hosts []*host
}

// host is one place to ask, with its connections and what is known of it.
type host struct {
	name     string // host:port, as in URLs
	rh       docker.RegistryHost
	header   http.Header  // to be sent, canonical
	client   *http.Client // follows no redirects
	tokens   *http.Client // for token servers; same connections
	proxy    bool         // for another registry: requests name that in ?ns=
	loopback bool
	stats    counters

	ignoresRanges atomic.Bool

	mu        sync.Mutex          // guards the fields below
	sessions  map[string]*session // by repository
	notBefore time.Time           // the host asked to be left alone until then
	penalty   time.Duration       // doubles while the host is of no use
	avoid     time.Time           // ask others first until then
}

// hostsOf returns the hosts of a domain that have all capabilities of want.
func (c *Client) hostsOf(domain string, want docker.HostCapabilities) ([]candidate, error) {
	r, err := c.registry(domain)
	if err != nil {
		return nil, err
	}
	var cs []candidate
	for _, h := range r.hosts {
		if h.rh.Capabilities.Has(want) && !slices.ContainsFunc(cs, func(c candidate) bool { return c.host.is(h) }) {
			cs = append(cs, candidate{host: h, origin: h.is(r.server())})
		}
	}
	return cs, nil
}

// registry returns what is configured for a domain.
func (c *Client) registry(domain string) (*registry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.registries[domain]
	if r == nil {
		var err error
		if r, err = c.configure(domain); err != nil {
			return nil, fmt.Errorf("configure registry %s: %w", domain, err)
		}
		c.registries[domain] = r
	}
	return r, nil
}

// server returns the registry itself; r must have hosts. It may also be listed
// among the mirrors, with other settings.
func (r *registry) server() *host { return r.hosts[len(r.hosts)-1] }

// is tells whether h and o are one host. A hosts.toml often lists the server
// itself, with its certificate, and the server comes again behind that list,
// without: a second try there would only hide what the first one said.
func (h *host) is(o *host) bool {
	return h.rh.Scheme == o.rh.Scheme && h.rh.Host == o.rh.Host && h.rh.Path == o.rh.Path
}

// configure reads what the certs.d directories say of a domain. c.mu is held.
func (c *Client) configure(domain string) (*registry, error) {
	ctx, problems := captureLog()
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second, FallbackDelay: 300 * time.Millisecond}
	base := true
	o := config.HostOptions{
		HostDir: c.hostDir,
		UpdateClient: func(hc *http.Client) error {
			t, ok := hc.Transport.(*http.Transport)
			if !ok {
				return fmt.Errorf("unexpected transport %T", hc.Transport)
			}
			if base { // the transports of single hosts are copies and may have their own dial_timeout
				t.DialContext, base = dialer.DialContext, false
			}
			c.tune(t)
			return nil
		},
	}
	if c.o.PlainHTTP {
		o.DefaultScheme = "http"
	}
	if c.o.Insecure {
		o.DefaultTLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // what the option is for
	}
	rhs, err := config.ConfigureHosts(ctx, o)(domain)
	if err == nil {
		err = problems.err
	}
	if err != nil {
		return nil, err
	}
	r := &registry{}
	for _, rh := range rhs {
		r.hosts = append(r.hosts, c.newHost(domain, rh))
	}
	return r, nil
}

// tune sets what ranged reads need. HTTP/2 stays off, as containerd has it:
// parallel ranges then have a connection and a TCP window each.
func (c *Client) tune(t *http.Transport) {
	t.DisableCompression = true // ranges are of the blob, not of an encoding
	t.MaxIdleConns = 0
	t.MaxIdleConnsPerHost = c.o.Parallel
	t.IdleConnTimeout = idleConnTimeout
	// The idle timeout of attempts covers these two. The handshake's own
	// would make the loopback fallback take a slow TLS server for plain HTTP.
	t.TLSHandshakeTimeout = 0
	t.ResponseHeaderTimeout = 0
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{}
	}
	t.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(tlsSessions)
	c.transports[t] = true
}

func (c *Client) newHost(domain string, rh docker.RegistryHost) *host {
	h := &host{name: rh.Host, rh: rh, header: make(http.Header), sessions: make(map[string]*session)}
	for k, vs := range rh.Header {
		k = http.CanonicalHeaderKey(k)
		h.header[k] = append(h.header[k], vs...)
	}
	h.proxy = rh.Host != domain && (domain != "docker.io" || rh.Host != "registry-1.docker.io")
	h.loopback, _ = docker.MatchLocalhost(rh.Host)
	follow, stay := *rh.Client, *rh.Client
	stay.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	h.client, h.tokens = &stay, &follow
	return h
}

// hostDir finds the directory of a domain in the certs.d directories.
func (c *Client) hostDir(domain string) (string, error) {
	for _, root := range c.o.HostsDirs {
		dir, err := config.HostDirFromRoot(root)(domain)
		switch {
		case err == nil:
			return dir, nil
		case !errdefs.IsNotFound(err) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
			return "", err
		}
		// A root that may not be looked into is as good as none: a rootless
		// user cannot change it.
	}
	return "", errdefs.ErrNotFound
}

// url returns the address of an object of the repository; kind is "manifests"
// or "blobs".
func (h *host) url(domain, repo, kind, object string) *url.URL {
	u := &url.URL{Scheme: h.rh.Scheme, Host: h.rh.Host, Path: h.rh.Path + "/" + repo + "/" + kind + "/" + object}
	if h.proxy {
		u.RawQuery = url.Values{"ns": {domain}}.Encode()
	}
	return u
}

// anybodyMayListen tells whether what is sent to h may be read by others than h:
// its connections are not encrypted, or to whoever says that he is h.
func (h *host) anybodyMayListen() bool {
	if h.loopback {
		return false
	}
	// Any other transport may fall back to plain HTTP.
	t, ok := h.client.Transport.(*http.Transport)
	return h.rh.Scheme != "https" || !ok || t.TLSClientConfig != nil && t.TLSClientConfig.InsecureSkipVerify
}

// owns tells whether u is at the host itself, so that it may see credentials.
func (h *host) owns(u *url.URL) bool {
	// On loopback https may turn out to be http.
	return u.Host == h.rh.Host && (u.Scheme == h.rh.Scheme || u.Scheme == "https" || h.loopback)
}

// until is how long the host asked to be left alone.
func (h *host) until(now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(h.notBefore.Sub(now), 0)
}

// postpone leaves the host alone for d.
func (h *host) postpone(d time.Duration) {
	if d <= 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if t := time.Now().Add(d); t.After(h.notBefore) {
		h.notBefore = t
	}
}

// setBack notes that the host gave no response, or none of use to anybody.
func (h *host) setBack() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.penalty = min(max(2*h.penalty, time.Second), maxPenalty)
	h.avoid = time.Now().Add(h.penalty)
}

// reached notes that it gave what was asked for.
func (h *host) reached() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.penalty, h.avoid = 0, time.Time{}
}

// avoided tells whether others should be asked first.
func (h *host) avoided(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.avoid.After(now)
}

// logHook keeps the first error that a library logs instead of returning it.
type logHook struct{ err error }

func (k *logHook) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (k *logHook) Fire(e *logrus.Entry) error {
	if k.err == nil {
		k.err = errors.New(e.Message)
		if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
			k.err = fmt.Errorf("%s: %w", e.Message, cause)
		}
	}
	return nil
}

// captureLog returns a context in which containerd's packages log to nowhere.
// They report a malformed hosts.toml by a log line only, and then go on without
// it; going round a configured mirror in silence is not what its author wants.
func captureLog() (context.Context, *logHook) {
	l, hook := logrus.New(), &logHook{}
	l.SetOutput(io.Discard)
	l.AddHook(hook)
	return log.WithLogger(context.Background(), logrus.NewEntry(l)), hook
}
