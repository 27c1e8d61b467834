package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Keychain returns the keychain that a nil Options.Keychain stands for. The
// first place with credentials for a registry wins:
//
//  1. $REGISTRY_AUTH_FILE;
//  2. docker's config.json, with its helpers, as authn.DefaultKeychain finds it;
//  3. podman's auth.json: $XDG_RUNTIME_DIR/containers or /run/containers/<uid>,
//     then $XDG_CONFIG_HOME/containers or ~/.config/containers.
//
// The files are read, and helpers run, when a registry wants credentials, or
// before that when Client.Warm opens connections to it, and again when it no
// longer accepts them.
func Keychain() authn.Keychain {
	return authn.NewMultiKeychain(
		authFile(func() string { return os.Getenv("REGISTRY_AUTH_FILE") }),
		authn.DefaultKeychain,
		authFile(func() string {
			dir := filepath.Join("/run/containers", strconv.Itoa(os.Getuid()))
			if runtime := os.Getenv("XDG_RUNTIME_DIR"); runtime != "" {
				dir = filepath.Join(runtime, "containers")
			}
			return filepath.Join(dir, "auth.json")
		}),
		authFile(func() string {
			dir, err := os.UserConfigDir()
			if err != nil {
				return ""
			}
			return filepath.Join(dir, "containers", "auth.json")
		}),
	)
}

// authFile is a keychain that reads one file in the format of podman's
// auth.json, which is docker's plus keys that name a repository or a part of
// its path. The function returns the file's path, "" for none.
//
// authn.DefaultKeychain would read these files too, but only where docker's own
// file does not exist at all, and it knows no keys for parts of a path.
type authFile func() string

// Resolve implements authn.Keychain.
func (f authFile) Resolve(target authn.Resource) (authn.Authenticator, error) {
	path := f()
	if path == "" {
		return authn.Anonymous, nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return authn.Anonymous, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cf, err := config.LoadFromReader(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	for _, key := range authKeys(target) {
		creds, err := lookup(cf, key)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if creds != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username:      creds.Username,
				Password:      creds.Password,
				Auth:          creds.Auth,
				IdentityToken: creds.IdentityToken,
				RegistryToken: creds.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// lookup returns the credentials of exactly one key, the zero value for none.
// The file's own lookup takes a key that names a part of a registry for the
// whole of it, so it is used for helpers only.
func lookup(cf *configfile.ConfigFile, key string) (types.AuthConfig, error) {
	creds, ok := cf.AuthConfigs[key]
	_, helper := cf.CredentialHelpers[key]
	whole := key == authn.DefaultAuthKey || !strings.Contains(key, "/") // helpers know registries only
	if helper || whole && !ok && cf.CredentialsStore != "" {
		var err error
		if creds, err = cf.GetCredentialsStore(key).Get(key); err != nil {
			return types.AuthConfig{}, err
		}
	}
	creds.ServerAddress = "" // filled in even where nothing was found
	return creds, nil
}

// authKeys returns the keys under which target's credentials may be, the most
// specific first.
func authKeys(target authn.Resource) []string {
	var keys []string
	registry, full := target.RegistryStr(), target.String()
	for key := full; len(key) > len(registry); key = key[:strings.LastIndexByte(key, '/')] {
		keys = append(keys, key)
		if registry == name.DefaultRegistry {
			keys = append(keys, "docker.io"+strings.TrimPrefix(key, registry))
		}
	}
	keys = append(keys, registry)
	if registry == name.DefaultRegistry {
		keys = append(keys, "docker.io", authn.DefaultAuthKey)
	}
	return keys
}
