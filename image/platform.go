package image

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// target is the platform an image is wanted for.
type target struct {
	spec     ocispec.Platform
	matcher  platforms.MatchComparer
	explicit bool // asked for by the user, not the host's
}

// parseTarget parses a platform such as "linux/arm64/v8", "arm64" or "" for
// this host's.
//
// The host also runs what is older (arm/v7 on arm64, 386 on amd64), so for it
// such an image is taken where the exact one is missing. A platform that was
// asked for is taken at its word: older variants of the architecture will do,
// another architecture will not.
func parseTarget(s string) (target, error) {
	if s == "" {
		p := platforms.DefaultSpec()
		p.OS = "linux" // what is mounted here; on other systems, tests run
		return target{spec: p, matcher: platforms.Only(p)}, nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return target{}, fmt.Errorf("%w %.100q: write OS/ARCH[/VARIANT], as in linux/arm64/v8", ErrBadPlatform, s)
	}
	p = platforms.Normalize(p)
	return target{spec: p, matcher: sameArch{platforms.Only(p), p.Architecture}, explicit: true}, nil
}

// CheckPlatform returns an error that wraps ErrBadPlatform if Options.Platform must not
// be s. Whether an image is for it is another matter.
func CheckPlatform(s string) error {
	_, err := parseTarget(s)
	return err
}

// sameArch restricts a matcher to one architecture.
type sameArch struct {
	platforms.MatchComparer
	arch string
}

func (m sameArch) Match(p ocispec.Platform) bool {
	return platforms.Normalize(p).Architecture == m.arch && m.MatchComparer.Match(p)
}

// String returns the platform as the user writes it.
func (t target) String() string { return platforms.Format(t.spec) }

// accepts says whether an image that was not chosen from several by platform
// will do. It will if nobody asked for a platform: there is no other to give.
func (t target) accepts(p ocispec.Platform) bool {
	return !t.explicit || p.OS == "" && p.Architecture == "" || t.matcher.Match(p)
}

// pick chooses from the descriptors of an index: the best match for the target
// if there is any; else, where no descriptor names a platform and only one
// image is there, that one. ok is false when nothing fits.
func (t target) pick(list []ocispec.Descriptor) (best ocispec.Descriptor, ok bool) {
	images := slices.DeleteFunc(slices.Clone(list), isAttachment)
	for _, d := range images {
		if d.Platform != nil && t.matcher.Match(*d.Platform) && (!ok || t.matcher.Less(*d.Platform, *best.Platform)) {
			best, ok = d, true
		}
	}
	if !ok && len(images) == 1 && images[0].Platform == nil && !isIndexType(images[0].MediaType) {
		return images[0], true
	}
	return best, ok
}

// isAttachment says whether an entry of an index is no image but something
// said about one: a signature, an SBOM, buildkit's attestations.
func isAttachment(d ocispec.Descriptor) bool {
	if d.Annotations["vnd.docker.reference.type"] != "" {
		return true
	}
	// go-containerregistry gives images their config's type here.
	if t := d.ArtifactType; t != "" && t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		return true
	}
	if d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown" {
		return true
	}
	return d.MediaType != "" && !isManifestType(d.MediaType) && !isIndexType(d.MediaType)
}

// maxListed bounds how many foreign names one error message repeats.
const maxListed = 20

// unavailable is the error for a target that none of the platforms matches.
func (t target) unavailable(have []ocispec.Platform) error {
	var names []string
	for _, p := range have {
		names = append(names, platforms.Format(p))
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: wanted %s, the index names none", ErrPlatform, t)
	}
	return fmt.Errorf("%w: wanted %s, there is %s; choose with --platform", ErrPlatform, t, list(names))
}

// list joins foreign names for a message of one line: sorted, each once,
// printable, not too many.
func list(names []string) string {
	slices.Sort(names)
	names = slices.Compact(names)
	more := ""
	if len(names) > maxListed {
		more = fmt.Sprintf(" and %d more", len(names)-maxListed)
		names = names[:maxListed]
	}
	printable := func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}
	return strings.Map(printable, strings.Join(names, ", ")) + more
}
