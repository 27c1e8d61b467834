package image

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archived is an image in an archive.
type Archived struct {
	// Name is the full reference that the archive gives it, empty if it gives none.
	Name string
	// In is the name by which Open and OpenAll find it in the archive.
	In Name
}

// Archives returns the images in the archive at path, a tar of an OCI image layout or
// what docker save wrote, in its order; one that is both is taken for a layout. An image
// with several names comes several times, one for several platforms once. Errors wrap
// ErrNotFound, also when there is no image, ErrNotImage or ErrCorrupt, or come from the
// system.
func Archives(ctx context.Context, path string) ([]Archived, error) {
	a, err := openArchive(ctx, Name{Transport: OCIArchive, Path: path})
	if err != nil {
		return nil, err
	}
	list := a.dockerImages
	switch {
	case a.has(ocispec.ImageLayoutFile):
		list = a.layoutImages
	case !a.has(dockerArchiveManifest) && !a.has(dockerArchiveLegacy):
		return nil, fmt.Errorf("%w: it is neither a tar of an OCI image layout nor what docker save writes", ErrNotFound)
	}
	found, err := list(path)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%w: the archive is empty", ErrNotFound)
	}
	return found, err
}

// layoutImages lists what index.json does.
func (a *archive) layoutImages(path string) ([]Archived, error) {
	x, err := layoutSource{tree: a}.index()
	if err != nil {
		return nil, err
	}
	var found []Archived
	for _, d := range x.Manifests {
		if isAttachment(d) {
			continue
		}
		one := Archived{In: Name{Transport: OCIArchive, Path: path, Digest: d.Digest}}
		name := d.Annotations[annotationName]
		if tag := d.Annotations[ocispec.AnnotationRefName]; name == "" && strings.ContainsAny(tag, "/:@") {
			name = tag // else it is no more than a tag
		}
		if ref, err := reference.ParseDockerRef(name); name != "" && err == nil {
			one.Name = ref.String()
		}
		// The platforms of one image without an image index have one name.
		if i := slices.IndexFunc(found, func(o Archived) bool { return o.Name == one.Name }); one.Name != "" && i >= 0 {
			found[i].In = Name{Transport: OCIArchive, Path: path, Tag: one.Name}
			continue
		}
		found = append(found, one)
	}
	return found, nil
}

// dockerImages lists what manifest.json does.
func (a *archive) dockerImages(path string) ([]Archived, error) {
	list, err := a.images()
	if err != nil {
		return nil, err
	}
	var found []Archived
	for _, e := range list {
		if len(e.RepoTags) == 0 {
			if len(list) > 1 {
				return nil, fmt.Errorf("%w: an image without a name among %d images; save it alone", ErrNotFound, len(list))
			}
			found = append(found, Archived{In: Name{Transport: DockerArchive, Path: path}})
		}
		for _, tag := range e.RepoTags {
			ref, err := reference.ParseDockerRef(tag)
			if err != nil {
				return nil, fmt.Errorf("%w: the name %.200q: %w", ErrCorrupt, tag, err)
			}
			one := Archived{Name: ref.String(), In: Name{Transport: DockerArchive, Path: path, Tag: ref.String()}}
			if !slices.Contains(found, one) {
				found = append(found, one)
			}
		}
	}
	return found, nil
}
