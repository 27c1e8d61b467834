package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Login asks the registry of domain, such as docker.io or host:5000, whether it accepts
// the client's credentials. ErrDenied: it does not. A registry that lets everybody in
// accepts all.
func (c *Client) Login(ctx context.Context, domain string) error {
	if err := c.login(ctx, domain); err != nil {
		return fmt.Errorf("log in to %s: %w", domain, err)
	}
	return nil
}

func (c *Client) login(ctx context.Context, domain string) error {
	h, err := c.pushHost(domain)
	if err != nil {
		return err
	}
	t := &originTransport{client: c, host: h, domain: domain}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.rh.Scheme+"://"+h.rh.Host+"/v2/", nil)
	if err != nil {
		return err
	}
	_, err = Do(t, req, http.StatusOK)
	return err
}

// Credentials are a Keychain of one user name and password, for any registry.
func Credentials(user, password string) authn.Keychain {
	return fixed{authn.AuthConfig{Username: user, Password: password}}
}

type fixed struct{ config authn.AuthConfig }

// Resolve implements authn.Keychain.
func (f fixed) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(f.config), nil
}

// ErrNoCredentials: there are none for the registry.
var ErrNoCredentials = errors.New("not logged in")

// SaveCredentials keeps a user name and a password for the registry of domain where
// docker does: in the credential helper that its config.json names, or in that file,
// which then is readable by its owner only. It returns where that is.
func SaveCredentials(domain, user, password string) (where string, err error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return "", fmt.Errorf("save credentials for %s: %w", domain, err)
	}
	key := credentialsKey(domain)
	where = file.Filename
	if helper := file.CredentialsStore; helper != "" {
		where = "docker-credential-" + helper
	}
	if helper := file.CredentialHelpers[key]; helper != "" {
		where = "docker-credential-" + helper
	}
	if where == file.Filename {
		// It gets a secret, and keeps the mode that it has.
		if err := os.Chmod(where, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("save credentials for %s: %w", domain, err)
		}
	}
	err = file.GetCredentialsStore(key).Store(types.AuthConfig{Username: user, Password: password, ServerAddress: key})
	if err != nil {
		return "", fmt.Errorf("save credentials for %s in %s: %w", domain, where, err)
	}
	return where, nil
}

// RemoveCredentials removes what SaveCredentials, or docker, has kept for the registry of
// domain. ErrNoCredentials: nothing is.
func RemoveCredentials(domain string) error {
	file, err := config.Load(config.Dir())
	if err != nil {
		return fmt.Errorf("remove credentials of %s: %w", domain, err)
	}
	key := credentialsKey(domain)
	store := file.GetCredentialsStore(key)
	have, err := store.Get(key)
	if err == nil && have.Username == "" && have.Password == "" && have.IdentityToken == "" && have.RegistryToken == "" {
		err = ErrNoCredentials
	}
	if err == nil {
		err = store.Erase(key)
	}
	if err != nil {
		return fmt.Errorf("remove credentials of %s: %w", domain, err)
	}
	return nil
}

// credentialsKey is the name that docker keeps the credentials of a registry under.
func credentialsKey(domain string) string {
	if domain == "docker.io" || domain == name.DefaultRegistry {
		return authn.DefaultAuthKey
	}
	return domain
}
