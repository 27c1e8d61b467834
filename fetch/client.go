package fetch

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"
)

// What a zero Options means.
const (
	defaultParallel    = 32
	defaultRetries     = 5
	defaultIdleTimeout = 10 * time.Second
	defaultSlowReader  = time.Second
	defaultUserAgent   = "lamina"
)

// Options are the settings of a Client. The zero value is good for use.
type Options struct {
	// HostsDirs are the directories searched, in order, for a registry's
	// folder with a hosts.toml or *.crt, *.cert and *.key files. Nil means
	// /etc/containerd/certs.d and /etc/docker/certs.d.
	HostsDirs []string

	// PlainHTTP speaks HTTP, not HTTPS, to registries that have no hosts.toml
	// saying otherwise. Loopback registries need no option: HTTPS is tried
	// and left when the other side does not speak it.
	PlainHTTP bool

	// Insecure accepts any server certificate where no hosts.toml decides.
	Insecure bool

	// Keychain finds credentials by registry; nil means Keychain(), which
	// reads docker's and podman's files.
	Keychain authn.Keychain

	// Parallel bounds the requests under way, of all kinds together; one whose
	// reader pauses for a second does not count meanwhile. Prefetch and
	// Background get half of it, so that Readers do not wait for those, unless
	// it is 1. 0 means 32.
	Parallel int

	// FillRate bounds the bytes per second of all Background reads together;
	// 0 means no bound.
	FillRate rate.Limit

	// IdleTimeout is how long an attempt may go without receiving a byte
	// before it is given up and made again. 0 means 10 s.
	IdleTimeout time.Duration

	// Retries bounds the rounds over all hosts that bring no byte, for a
	// context without a deadline. With a deadline there is no other bound.
	// 0 means 5, some 4 s of waiting in all.
	Retries int

	// UserAgent is sent with every request; "" means "lamina".
	UserAgent string
}

// A Client reads from registries. Connections, tokens, what is known of hosts,
// the queue and the estimates are shared by everything read through it, so a
// process should have one. Its methods may be called concurrently.
type Client struct {
	o       Options
	queue   *queue
	link    *link
	limiter *rate.Limiter // of Background reads; nil without a bound
	stats   counters
	warming sync.WaitGroup // connections of Warm under way

	mu         sync.Mutex               // guards the fields below
	warm       context.Context          // of Warm; ends with the next Close
	cool       context.CancelFunc       // ends it
	registries map[string]*registry     // by the domain of the reference
	transports map[*http.Transport]bool // to close their idle connections
}

// New returns a client. It opens and reads nothing.
func New(o Options) *Client {
	if o.HostsDirs == nil {
		o.HostsDirs = []string{"/etc/containerd/certs.d", "/etc/docker/certs.d"}
	}
	if o.Keychain == nil {
		o.Keychain = Keychain()
	}
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = defaultIdleTimeout
	}
	if o.Retries <= 0 {
		o.Retries = defaultRetries
	}
	if o.UserAgent == "" {
		o.UserAgent = defaultUserAgent
	}
	c := &Client{
		o:          o,
		queue:      newQueue(o.Parallel),
		link:       newLink(time.Now),
		registries: make(map[string]*registry),
		transports: make(map[*http.Transport]bool),
	}
	c.warm, c.cool = context.WithCancel(context.Background())
	if o.FillRate > 0 && o.FillRate != rate.Inf {
		c.limiter = rate.NewLimiter(o.FillRate, fillBurst)
	}
	return c
}

// Close gives up what Warm has under way and closes the connections that no stream
// uses. Streams under way go on, and the client stays usable.
func (c *Client) Close() {
	c.mu.Lock()
	c.cool()
	c.warm, c.cool = context.WithCancel(context.Background())
	c.mu.Unlock()
	c.warming.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.transports {
		t.CloseIdleConnections()
	}
}

// Blob returns the blob that desc describes, in ref's repository. It asks
// nobody: a blob that does not exist shows at the first read. The result keeps
// what it learns of the hosts (redirects, bad copies), so make it once.
func (c *Client) Blob(ref reference.Named, desc ocispec.Descriptor) Blob {
	return &remoteBlob{
		client: c,
		domain: reference.Domain(ref),
		repo:   reference.Path(ref),
		dgst:   desc.Digest,
		size:   desc.Size,
		hosts:  make(map[*host]*blobHost),
	}
}

// Manifest gets a manifest or index: the one of dgst if it is not empty, else
// of ref's digest, else of ref's tag, else of the tag "latest". It returns the
// bytes as served, verified against the digest, and their descriptor. A
// manifest over 8 MiB gives ErrTooBig. ref's name must be complete, with a
// domain, as reference.ParseNormalizedNamed makes it.
func (c *Client) Manifest(ctx context.Context, ref reference.Reference, dgst digest.Digest) (ocispec.Descriptor, []byte, error) {
	return c.manifest(ctx, ref, dgst)
}

// Link estimates the way to the registry: the time from request to first byte,
// and the bytes per second that all parallel transfers reach together. Before
// anything was measured it says 20 ms and 25 MB/s. It is cheap.
func (c *Client) Link() (rtt time.Duration, bytesPerSecond float64) {
	return c.link.estimate()
}
