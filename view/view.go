package view

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/index"
	"github.com/laminafs/lamina/overlay"
)

// Image is an image that is looked at. Who made it keeps the tree and the layers'
// indexes open for as long as it is used.
type Image struct {
	Name   string        // how to call it in what is printed
	Tree   *overlay.Tree // the merged tree; device i of it is Layers[i-1]
	Layers []Layer       // the bottom one first
	Config ocispec.Image // for the history
}

// Layer is a layer of an Image.
type Layer struct {
	Desc   ocispec.Descriptor // of the blob
	DiffID digest.Digest      // of its uncompressed data, as the config claims
	// Key is what the layer's data was verified against, such as the cache's name of
	// it: layers of equal keys have equal data at equal places. Empty: not known.
	Key   string
	Index *index.Index // the layer's own tree, with its whiteouts and opaque directories
}

// History returns the entry of the config's history that belongs to layer i: the
// entries of empty layers left out, they are the layers in order. ok is false if
// the history has no entry for the layer.
func (m *Image) History(i int) (h ocispec.History, ok bool) {
	for _, h := range m.Config.History {
		if h.EmptyLayer {
			continue
		}
		if i == 0 {
			return h, true
		}
		i--
	}
	return h, false
}

// LayerRef names a layer for people and programs.
type LayerRef struct {
	Number    int           `json:"number"` // from 0, the bottom one
	Digest    digest.Digest `json:"digest"`
	DiffID    digest.Digest `json:"diffId"`
	CreatedBy string        `json:"createdBy,omitempty"` // of the history, empty if it does not say
}

// Ref returns how to name layer i.
func (m *Image) Ref(i int) LayerRef {
	h, _ := m.History(i)
	l := m.Layers[i]
	return LayerRef{Number: i, Digest: l.Desc.Digest, DiffID: l.DiffID, CreatedBy: h.CreatedBy}
}

// maxLinks is how many symbolic links one path may lead through, as in Linux.
const maxLinks = 40

// spot is a place in the merged tree.
type spot struct {
	path string // from the root, with a slash in front and without links
	nid  index.NID
	attr index.Attr
}

func (s *spot) isDir() bool { return s.attr.Mode&syscall.S_IFMT == syscall.S_IFDIR }

// step is a directory on the way to a spot.
type step struct {
	path string // "" is the root
	nid  index.NID
}

// locate finds name. A symbolic link at its end is followed if follow is set or
// if a slash is behind it. With ENOENT and ENOTDIR the spot has the path that was looked for,
// without links as far as it is there, unless it leads back out of what is not.
func (m *Image) locate(name string, follow bool) (spot, error) {
	rest := strings.Split(name, "/")
	way := []step{{nid: m.Tree.Root()}}
	var end spot
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			way = way[:max(1, len(way)-1)]
			continue
		}
		dir := way[len(way)-1]
		nid, err := m.Tree.Lookup(dir.nid, part)
		if err != nil {
			end.path = missing(dir.path+"/"+part, rest)
			return end, errno(err)
		}
		var a index.Attr
		if err := m.Tree.Attr(nid, &a); err != nil {
			return end, err
		}
		kind := a.Mode & syscall.S_IFMT
		if kind != syscall.S_IFLNK || len(rest) == 0 && !follow {
			if kind != syscall.S_IFDIR && len(rest) > 0 {
				if p := missing(dir.path+"/"+part, rest); p != dir.path+"/"+part {
					end.path = p
				}
				return end, syscall.ENOTDIR
			}
			way = append(way, step{dir.path + "/" + part, nid})
			continue
		}
		target, err := m.Tree.Readlink(nid)
		if err != nil {
			return end, err
		}
		if links++; links > maxLinks {
			return end, syscall.ELOOP
		}
		if len(target) > 0 && target[0] == '/' {
			way = way[:1]
		}
		rest = append(strings.Split(string(target), "/"), rest...)
	}
	last := way[len(way)-1]
	end.path, end.nid = last.path, last.nid
	if end.path == "" {
		end.path = "/"
	}
	return end, m.Tree.Attr(end.nid, &end.attr)
}

// missing is the path of rest at what is no directory; empty if it leads back out
// of that.
func missing(at string, rest []string) string {
	if slices.Contains(rest, "..") {
		return ""
	}
	return path.Clean(at + "/" + strings.Join(rest, "/"))
}

// errno turns the index's errors about names into the system's.
func errno(err error) error {
	switch {
	case errors.Is(err, index.ErrNotExist):
		return syscall.ENOENT
	case errors.Is(err, index.ErrNotDir):
		return syscall.ENOTDIR
	}
	return err
}

// join appends a name to the path of a directory.
func join(dir, name string) string {
	if dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}

// guard ends the walk of a tree whose directories lead back to themselves.
type guard struct{ left uint64 }

func newGuard(x *index.Index) *guard { return &guard{left: x.Inodes()} }

// enter counts a directory that is entered.
func (g *guard) enter(nid index.NID) error {
	if g.left == 0 {
		return fmt.Errorf("directory %d: more directories than inodes: %w", nid, index.ErrCorrupt)
	}
	g.left--
	return nil
}
