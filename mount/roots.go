package mount

import (
	"os"
	"path/filepath"
	"time"
)

// Where Go's crypto/x509 looks for the system's certificates on Debian and its
// kin: in the bundle, and then in every file of its folder besides.
const (
	rootsBundle = "/etc/ssl/certs/ca-certificates.crt"
	rootsDirEnv = "SSL_CERT_DIR"
	rootsSlack  = time.Minute
)

// rootsEnv returns what to add to the environment of a server so that it reads
// the system's certificates from their bundle alone. The bundle holds what the
// folder's 300 files hold, and reading those takes 50 to 90 ms of a first
// mount's 400 when they are not cached. Where the folder was changed after the
// bundle was made, somebody has put a certificate there by hand: nothing is
// added then, nor when the user has set the variable.
func rootsEnv(environ []string) []string {
	for _, name := range []string{rootsDirEnv, "SSL_CERT_FILE"} {
		if os.Getenv(name) != "" {
			return environ
		}
	}
	bundle, err := os.Stat(rootsBundle)
	if err != nil {
		return environ
	}
	dir, err := os.Stat(filepath.Dir(rootsBundle))
	if err != nil || dir.ModTime().After(bundle.ModTime().Add(rootsSlack)) {
		return environ
	}
	return append(environ, rootsDirEnv+"=/nonexistent")
}
