package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Authority is a certificate authority that lives as long as its directory. It
// is immutable.
type Authority struct {
	dir  string
	pair tls.Certificate // for 127.0.0.1 and localhost
	pool *x509.CertPool
}

// NewAuthority makes an authority and a server certificate in dir.
func NewAuthority(dir string) (*Authority, error) {
	a := &Authority{dir: dir, pool: x509.NewCertPool()}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "lamina test CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(30 * 24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, &leafKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, err
	}
	for name, block := range map[string]*pem.Block{
		a.CA(): {Type: "CERTIFICATE", Bytes: caDER}, a.cert(): {Type: "CERTIFICATE", Bytes: leafDER},
		a.key(): {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, fmt.Errorf("authority: %w", err)
		}
	}
	a.pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}))
	a.pair, err = tls.LoadX509KeyPair(a.cert(), a.key())
	return a, err
}

// CA returns the path of the authority's own certificate, as PEM.
func (a *Authority) CA() string   { return filepath.Join(a.dir, "ca.crt") }
func (a *Authority) cert() string { return filepath.Join(a.dir, "server.crt") }
func (a *Authority) key() string  { return filepath.Join(a.dir, "server.key") }

// Certificate returns a certificate for loopback servers.
func (a *Authority) Certificate() *tls.Certificate { return &a.pair }

// Client returns a TLS configuration that trusts the authority alone.
func (a *Authority) Client() *tls.Config { return &tls.Config{RootCAs: a.pool} }
