package images

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// recipe is how one image is made. Every image but the base stands on the base.
type recipe struct {
	name     string
	packages []string
	config   ocispec.ImageConfig
	// first lists the files that the image's program reads first: eStargz
	// writers put such files in front, for clients to prefetch.
	first []string
}

const base = "debian"

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func recipes() []recipe {
	return []recipe{
		{
			name:   base,
			config: ocispec.ImageConfig{Env: []string{path}, Cmd: []string{"bash"}},
		},
		{
			name:     "nginx",
			packages: []string{"nginx"},
			config: ocispec.ImageConfig{
				Env: []string{path}, Cmd: []string{"nginx", "-g", "daemon off;"},
				ExposedPorts: map[string]struct{}{"80/tcp": {}},
			},
			first: []string{"usr/sbin/nginx", "etc/nginx/nginx.conf"},
		},
		{
			name:     "httpd",
			packages: []string{"apache2"},
			config:   ocispec.ImageConfig{Env: []string{path}, Cmd: []string{"apache2ctl", "-D", "FOREGROUND"}},
		},
		{
			name:     "python",
			packages: []string{"python3", "python3-numpy"},
			config:   ocispec.ImageConfig{Env: []string{path}, Cmd: []string{"python3"}},
		},
		{
			name:     "node",
			packages: []string{"nodejs", "node-typescript"},
			// Debian keeps its modules where Debian's node looks only if told.
			config: ocispec.ImageConfig{Env: []string{path, "NODE_PATH=/usr/share/nodejs"}, Cmd: []string{"node"}},
		},
	}
}

// Format is how the layers of an image are stored.
type Format string

// The formats of a Set. Mixed has an eStargz base under gzip layers; Podman and
// Stargz are the two dialects of zstd:chunked, Skopeo the first one's ancestor.
const (
	Gzip    Format = "gzip"
	Zstd    Format = "zstd"
	EStargz Format = "estargz"
	Podman  Format = "zstd-chunked"
	Stargz  Format = "zstd-chunked-stargz"
	Skopeo  Format = "zstd-chunked-skopeo" // of the base only
	Mixed   Format = "mixed"
	Tar     Format = "tar"
)

// Formats returns the formats in which a registry holds every image.
func Formats() []Format { return []Format{Gzip, Zstd, EStargz, Podman, Stargz, Mixed} }

// Names returns the names of the images, the base first.
func Names() []string {
	var names []string
	for _, r := range recipes() {
		names = append(names, r.name)
	}
	return names
}
