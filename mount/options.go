package mount

import (
	"fmt"
	"time"
)

// Engine names what shows the tree.
type Engine string

// The engines. Auto takes Kernel where it works, and FUSE otherwise.
const (
	Auto   Engine = "auto"
	FUSE   Engine = "fuse"
	Kernel Engine = "kernel"
)

// ParseEngine returns the engine named s.
func ParseEngine(s string) (Engine, error) {
	switch e := Engine(s); e {
	case Auto, FUSE, Kernel:
		return e, nil
	}
	return "", fmt.Errorf("engine %q: write auto, fuse or kernel", s)
}

// Options say what to mount, where and how. They travel as JSON from the
// command to its server and are kept in State.
type Options struct {
	// Root is the store's directory.
	Root string `json:"root"`
	// Image is the name of the image as the user wrote it.
	Image string `json:"image"`
	// Dir is the mountpoint, absolute and free of symbolic links.
	Dir string `json:"dir"`
	// Engine is what was asked for.
	Engine Engine `json:"engine"`
	// RW makes the mount writable: a workspace, called Name, whose changes are in
	// Upper, or in the store if that is empty. Upper is absolute. A workspace that
	// exists is gone on with.
	RW    bool   `json:"rw,omitempty"`
	Name  string `json:"name,omitempty"`
	Upper string `json:"upper,omitempty"`
	// Platform is os/arch[/variant]; empty means the host's.
	Platform string `json:"platform,omitempty"`
	// Pull is missing (default), always or never, as docker has it.
	Pull string `json:"pull,omitempty"`
	// Index is auto (default), never or require: whether an index that was
	// published beside the image is used for layers that have none.
	Index string `json:"index,omitempty"`
	// PlainHTTP speaks HTTP to registries that are not on loopback.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// Insecure skips the verification of TLS certificates.
	Insecure bool `json:"insecure,omitempty"`
	// HostsDirs are certs.d directories; empty means the default ones.
	HostsDirs []string `json:"hostsDirs,omitempty"`
	// Fill fetches, in the background, everything that is missing.
	Fill bool `json:"fill,omitempty"`
	// FillRate bounds the background fill, in bytes per second; 0 is no bound.
	FillRate int64 `json:"fillRate,omitempty"`
	// CacheLimit bounds the data kept in the store, in bytes; 0 is no bound.
	CacheLimit int64 `json:"cacheLimit,omitempty"`
	// Parallel bounds the requests in flight to registries; 0 is the default.
	Parallel int `json:"parallel,omitempty"`
	// Deadline bounds one read of the tree; 0 is the default of package fs.
	Deadline time.Duration `json:"deadline,omitempty"`
}
