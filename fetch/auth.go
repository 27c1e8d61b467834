package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/sirupsen/logrus"
)

// A session is the authorisation at one host for one repository: nothing until
// the host has challenged a request, from then on an authorizer that makes and
// renews tokens.
type session struct {
	client *Client
	host   *host
	repo   string

	// turn holds one token. Who has it may use the fields below, and talks to
	// the token server for all; a channel, so that waiting ends with the
	// context. The authorizer's own waiting does not, and it remembers
	// failures of others for good.
	turn chan struct{}

	generation int // counts authorizers
	authorizer docker.Authorizer
	bearer     string // a token found among the credentials

	// Before the first challenge only: credentials to be sent unasked, and
	// where they come from. See foresee.
	early chan authn.AuthConfig
	basic authn.AuthConfig
}

// patience is how long the first request waits for credentials that are sent
// unasked. A file is read in a millisecond; a helper program may take longer
// than the round trip that is to be spared.
const patience = 10 * time.Millisecond

// foresee has credentials looked up before the host asks for them, for the first
// request to carry: a registry that wants a name and a password then answers
// it at once, where a challenge would cost a round trip. One that wants
// tokens does not mind and challenges as ever. They go nowhere but to the host
// they are kept for, and only where nobody can listen. It returns what does the
// look-up, or nil.
func (s *session) foresee() func(context.Context) {
	if s.host.anybodyMayListen() || s.client.o.Insecure {
		return nil
	}
	select {
	case s.turn <- struct{}{}:
		defer s.unlock()
	default:
		return nil // somebody is at it
	}
	if s.generation > 0 || s.early != nil {
		return nil
	}
	early := make(chan authn.AuthConfig, 1)
	s.early = early
	return func(ctx context.Context) {
		creds, err := s.credentials(ctx)
		if err != nil || creds.IdentityToken != "" || creds.RegistryToken != "" {
			creds = authn.AuthConfig{}
		}
		early <- creds
	}
}

// unasked adds what foresee found to req. turn must be held.
func (s *session) unasked(ctx context.Context, req *http.Request) {
	if s.early != nil {
		select {
		case s.basic = <-s.early:
		case <-time.After(patience):
		case <-ctx.Done():
		}
		s.early = nil
	}
	if s.basic.Username != "" && s.basic.Password != "" {
		req.SetBasicAuth(s.basic.Username, s.basic.Password)
	}
}

// withdraw stops sending credentials unasked. It reports whether resp may be the
// host's way of saying that it did not like them.
func (s *session) withdraw(ctx context.Context, resp *http.Response) bool {
	if resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusForbidden || s.lock(ctx) != nil {
		return false
	}
	defer s.unlock()
	_, _, sent := resp.Request.BasicAuth()
	if s.generation > 0 || !sent {
		return false
	}
	s.basic = authn.AuthConfig{}
	return true
}

// session returns the host's session for a repository.
func (h *host) session(c *Client, repo string) *session {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions[repo]
	if s == nil {
		s = &session{client: c, host: h, repo: repo, turn: make(chan struct{}, 1)}
		h.sessions[repo] = s
	}
	return s
}

func (s *session) lock(ctx context.Context) error {
	select {
	case s.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *session) unlock() { <-s.turn }

// authorize adds what authorisation there is to req. It returns the generation
// that did, to be given to renew if the host does not accept it.
func (s *session) authorize(ctx context.Context, req *http.Request) (generation int, err error) {
	if err := s.lock(ctx); err != nil {
		return 0, err
	}
	defer s.unlock()
	switch {
	case s.bearer != "":
		req.Header.Set("Authorization", "Bearer "+s.bearer)
	case s.authorizer != nil:
		if err := s.authorizer.Authorize(s.scope(ctx), req); err != nil {
			s.authorizer = nil // it would give the same error for ever
			return 0, s.tokenError(err)
		}
	case s.generation == 0:
		s.unasked(ctx, req)
	}
	return s.generation, nil
}

// renew makes a new authorizer from resp, the host's 401 to a request authorised
// by generation, unless somebody else has done so.
func (s *session) renew(ctx context.Context, generation int, resp *http.Response) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if s.generation != generation {
		return nil
	}
	creds, credsErr := s.credentials(ctx)
	if err := ctx.Err(); err != nil {
		return err
	}
	s.generation++
	s.authorizer, s.bearer = nil, creds.RegistryToken
	if s.bearer != "" {
		return nil
	}
	a := docker.NewDockerAuthorizer(
		docker.WithAuthClient(s.host.tokens),
		docker.WithAuthHeader(s.host.header),
		docker.WithAuthCreds(func(string) (string, string, error) {
			if creds.IdentityToken != "" {
				return "", creds.IdentityToken, nil // goes to the token server as a refresh token
			}
			return creds.Username, creds.Password, nil
		}),
	)
	if err := a.AddResponses(s.scope(ctx), []*http.Response{resp}); err != nil {
		e := &Error{URL: redact(resp.Request.URL), Status: resp.StatusCode, Message: message([]byte(err.Error())), Err: ErrDenied, fate: permanent}
		if credsErr != nil {
			e.Message = message([]byte("credentials: " + credsErr.Error()))
		}
		return e
	}
	s.authorizer = a
	return nil
}

// scope returns ctx with the scope that tokens are asked for, besides the one
// in the host's challenge, and without a place to log to.
func (s *session) scope(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return docker.ContextWithAppendPullRepositoryScope(log.WithLogger(ctx, logrus.NewEntry(l)), s.repo)
}

// credentials asks the keychain. It may run a helper program, which knows no
// context: when ctx ends first, that is left to end by itself. Failing to get
// credentials means having none, as with docker: the registry may not need any.
func (s *session) credentials(ctx context.Context) (authn.AuthConfig, error) {
	type answer struct {
		creds authn.AuthConfig
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		a, err := authn.Resolve(ctx, s.client.o.Keychain, resource{s.host.name, s.repo})
		if err != nil {
			done <- answer{err: err}
			return
		}
		creds, err := authn.Authorization(ctx, a)
		if err != nil || creds == nil {
			done <- answer{err: err}
			return
		}
		done <- answer{creds: *creds}
	}()
	select {
	case a := <-done:
		return a.creds, a.err
	case <-ctx.Done():
		return authn.AuthConfig{}, ctx.Err()
	}
}

// tokenError makes an Error of what the authorizer returned, without the parts
// that may be secret.
func (s *session) tokenError(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	var ue *url.Error
	switch {
	case errors.As(err, &status):
		e := &Error{Status: status.StatusCode, Message: message(status.Body), Err: ErrUnavailable}
		if u, err := url.Parse(status.RequestURL); err == nil {
			e.URL = redact(u)
		}
		if e.Status >= 400 && e.Status < 500 && e.Status != http.StatusTooManyRequests && e.Status != http.StatusRequestTimeout {
			e.Err, e.fate = ErrDenied, permanent
		}
		return e
	case errors.As(err, &ue):
		u, perr := url.Parse(ue.URL)
		if perr != nil {
			u = &url.URL{Host: s.host.name}
		}
		return networkError(u, err)
	}
	return &Error{URL: s.host.name, Err: fmt.Errorf("%w: %w", ErrDenied, err), fate: suspicious}
}

// resource names a repository to a keychain.
type resource struct{ registry, repo string }

// RegistryStr implements authn.Resource. Docker's files know its registry by
// the name it had before there were manifests.
func (r resource) RegistryStr() string {
	switch r.registry {
	case "docker.io", "registry-1.docker.io":
		return "index.docker.io"
	}
	return r.registry
}

// String implements authn.Resource.
func (r resource) String() string { return r.RegistryStr() + "/" + r.repo }
