package mount

import (
	"os"
	"time"
)

// Where Go's crypto/x509 looks for the system's certificates on Debian and its
// kin: in the bundle, and then in every file of its folder besides.
const (
	rootsDir     = "/etc/ssl/certs"
	rootsBundle  = rootsDir + "/ca-certificates.crt"
	rootsDirEnv  = "SSL_CERT_DIR"
	rootsFileEnv = "SSL_CERT_FILE"
	rootsSlack   = time.Minute
)

// rootsEnv returns what to add to the environment of a server so that it reads
// the system's certificates from their bundle alone. The bundle holds what the
// folder's 300 files hold, and reading those takes 50 to 90 ms of a first
// mount's 400 when they are not cached. Where the folder was changed after the
// bundle was made, somebody has put a certificate there by hand: nothing is
// added then, nor when the user has set the variables to other places.
func rootsEnv(environ []string) []string {
	for name, usual := range map[string]string{rootsDirEnv: rootsDir, rootsFileEnv: rootsBundle} {
		if set := os.Getenv(name); set != "" && set != usual {
			return environ
		}
	}
	bundle, err := os.Stat(rootsBundle)
	if err != nil {
		return environ
	}
	dir, err := os.Stat(rootsDir)
	if err != nil || dir.ModTime().After(bundle.ModTime().Add(rootsSlack)) {
		return environ
	}
	// The last of two settings holds.
	return append(environ, rootsDirEnv+"=/nonexistent")
}
