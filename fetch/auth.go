package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

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
