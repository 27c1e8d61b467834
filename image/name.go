package image

import (
	"fmt"
	"os"
	"path"
	"regexp"
	"strings"
	"unicode"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Transport says what kind of place a Name points to.
type Transport uint8

// The transports of ParseName.
const (
	Registry      Transport = iota // a registry speaking the distribution protocol
	Layout                         // oci: a directory in the OCI image layout
	OCIArchive                     // oci-archive: a tar of an OCI image layout
	DockerArchive                  // docker-archive: what docker save writes
)

// String returns the prefix that names the transport, without its colon.
func (t Transport) String() string {
	switch t {
	case Layout:
		return "oci"
	case OCIArchive:
		return "oci-archive"
	case DockerArchive:
		return "docker-archive"
	default:
		return "docker"
	}
}

// Name is a parsed image name. The zero Name is not valid. Names are values and
// may be compared by their String.
type Name struct {
	Transport Transport

	// Ref is the normalised reference of a Registry name: it has a tag or a
	// digest, never both. Nil for the other transports.
	Ref reference.Named

	// Path is the directory or file of the other transports, without the
	// backslashes of its name.
	Path string

	// Tag chooses an image inside Path: a tag or full name in a layout, a
	// reference in a docker archive. Empty for the only image there.
	Tag string

	// Digest chooses a manifest or index inside a layout and goes before Tag.
	Digest digest.Digest
}

// String returns the name in the form ParseName reads, which gives n again; for a
// registry the full reference, such as docker.io/library/nginx:1.27.
func (n Name) String() string {
	if n.Transport == Registry {
		if n.Ref == nil {
			return ""
		}
		return n.Ref.String()
	}
	s := n.Transport.String() + ":" + escapePath.Replace(n.Path)
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest.String()
	}
	return s
}

// escapePath writes a path so that no colon in it ends it.
var escapePath = strings.NewReplacer(`\`, `\\`, `:`, `\:`)

// cutPath cuts s around the colon that ends the path, and undoes escapePath. A
// backslash before anything else is one, as people write it.
func cutPath(s string) (path, tag string, tagged bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == ':':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == ':' || s[i+1] == '\\'):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), "", false
}

// colonHint goes to the error of a path that is not there, where the colon that ended
// it seems to be part of a file's name.
func (n Name) colonHint() string {
	next := n.Tag
	if i := strings.IndexAny(next, "/:"); i >= 0 {
		next = next[:i]
	}
	if _, err := os.Lstat(n.Path + ":" + next); next == "" || err != nil {
		return ""
	}
	return `; a colon in a path is written \:`
}

// digestSuffix is the @digest at the end of an oci: name.
var digestSuffix = regexp.MustCompile(`@([a-z0-9]+:[0-9a-fA-F]{32,})$`)

// ParseName parses an image name. It looks at the string only: whether a file
// exists is found out by Open. Registry names are normalised by Docker's rules:
// the host defaults to docker.io, the tag to latest, and of tag and digest
// together the digest counts. In names of files the first colon ends the path,
// as in skopeo; one that is part of the path is written \:, and a backslash before
// a colon or another one \\. Errors wrap ErrName.
func ParseName(s string) (Name, error) {
	if s == "" {
		return Name{}, fmt.Errorf("%w: it is empty", ErrName)
	}
	scheme, rest, ok := strings.Cut(s, ":")
	if ok {
		switch scheme {
		case "oci":
			return parseLocal(Layout, rest)
		case "oci-archive":
			return parseLocal(OCIArchive, rest)
		case "docker-archive":
			return parseLocal(DockerArchive, rest)
		case "docker":
			if name, ok := strings.CutPrefix(rest, "//"); ok {
				return parseReference(name)
			}
		case "http", "https":
			if name, ok := strings.CutPrefix(rest, "//"); ok {
				return Name{}, fmt.Errorf("%w %q: write it without the scheme: %s", ErrName, s, name)
			}
		case "docker-daemon", "containers-storage", "ostree", "sif":
			return Name{}, fmt.Errorf("%w %q: %s is not supported; save the image to a file and write docker-archive:FILE", ErrName, s, scheme)
		}
	}
	return parseReference(s)
}

// parseLocal parses what follows the transport's prefix.
func parseLocal(t Transport, rest string) (Name, error) {
	n := Name{Transport: t}
	bad := func(format string, args ...any) (Name, error) {
		return Name{}, fmt.Errorf("%w %q: %s", ErrName, t.String()+":"+rest, fmt.Sprintf(format, args...))
	}
	spec := rest
	if m := digestSuffix.FindStringSubmatchIndex(spec); m != nil {
		if t == DockerArchive {
			return bad("images in a docker archive have no digest; write docker-archive:FILE:NAME:TAG")
		}
		n.Digest = digest.Digest(spec[m[2]:m[3]])
		if err := n.Digest.Validate(); err != nil {
			return bad("%v", err)
		}
		spec = spec[:m[0]]
	}
	var tagged bool
	n.Path, n.Tag, tagged = cutPath(spec)
	switch {
	case n.Path == "":
		return bad("no path; write %s", usage(t))
	case strings.ContainsFunc(rest, unicode.IsControl):
		return bad("it contains control characters")
	case tagged && n.Tag == "":
		return bad("no tag after the colon; write %s", usage(t))
	}
	if t == DockerArchive && tagged {
		ref, err := parseReference(n.Tag)
		if err != nil {
			return Name{}, err
		}
		n.Tag = ref.String()
	}
	return n, nil
}

// usage is the form of a name of the transport.
func usage(t Transport) string {
	switch t {
	case Layout:
		return "oci:DIR[:TAG][@sha256:…]"
	case OCIArchive:
		return "oci-archive:FILE[:TAG]"
	default:
		return "docker-archive:FILE[:NAME:TAG]"
	}
}

// parseReference normalises a registry reference.
func parseReference(s string) (Name, error) {
	ref, err := reference.ParseDockerRef(s)
	if err != nil {
		return Name{}, fmt.Errorf("%w %q: %s", ErrName, s, hint(s, err))
	}
	return Name{Transport: Registry, Ref: ref}, nil
}

// hint says what is wrong with a reference in the user's terms: most that fail
// are files without a transport, or have a capital letter.
func hint(s string, err error) string {
	switch {
	case s == "":
		return "it is empty"
	case strings.ContainsAny(s, " \t\r\n\x00"):
		return "it contains white space"
	case isFileName(s, ".tar"), isFileName(s, ".tar.gz"), isFileName(s, ".tgz"):
		return "for a file write oci-archive:FILE or docker-archive:FILE"
	case strings.HasPrefix(s, "/"), strings.HasPrefix(s, "."), strings.HasPrefix(s, "~"):
		return "for a directory write oci:DIR, for a file oci-archive:FILE or docker-archive:FILE"
	case strings.HasSuffix(s, "@") || strings.Contains(s, "@") && !strings.Contains(s, "@sha256:"):
		return "after @ comes a digest: sha256:… with 64 hex digits"
	case strings.Contains(err.Error(), "64-byte hexadecimal"):
		return "an image ID is no name; write REPOSITORY@sha256:…"
	}
	slash := strings.LastIndexByte(s, '/') + 1
	element, tag, _ := strings.Cut(s[slash:], ":")
	head := s[:slash] + element
	if lower := strings.Map(lowerASCII, head); lower != head {
		return "names are lower case; write " + lower + s[len(head):]
	}
	if strings.HasSuffix(s, ":") {
		return "no tag after the colon"
	}
	if len(tag) > 128 {
		return "the tag is longer than 128 characters"
	}
	return "write [HOST[:PORT]/]REPOSITORY[:TAG][@sha256:…]"
}

// lowerASCII maps A-Z to a-z.
func lowerASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		return r + 'a' - 'A'
	}
	return r
}

// isFileName says whether s looks like a file name with the suffix.
func isFileName(s, suffix string) bool {
	return strings.HasSuffix(s, suffix) && path.Base(s) != suffix
}
