package image

import "errors"

// Sentinels on which callers decide. The errors of this package wrap at most
// one of them, say what was done to which object, and are one line long.
var (
	// ErrName says that a string is no image name. The error names what to
	// write instead where that can be guessed.
	ErrName = errors.New("invalid image name")

	// ErrNotFound says that the named image is not there: no such file, tag or
	// digest, or not in the store while the policy forbids the registry. What a
	// registry does not have is fetch.ErrNotFound.
	ErrNotFound = errors.New("image not found")

	// ErrPlatform says that the image exists, but not for the wanted platform.
	// The error lists the platforms there are.
	ErrPlatform = errors.New("no such platform")

	// ErrBadPlatform says that a string is no platform.
	ErrBadPlatform = errors.New("invalid platform")

	// ErrNotImage says that what was found is intact but no container image
	// that can be mounted: an artifact, a schema 1 manifest, encrypted layers.
	ErrNotImage = errors.New("not a container image")

	// ErrCorrupt says that bytes do not have the promised digest or size, or
	// contradict themselves.
	ErrCorrupt = errors.New("corrupt image")

	// ErrAlgorithm says that something intact has a digest of an algorithm that
	// is not known here, so that it cannot be verified.
	ErrAlgorithm = errors.New("unknown digest algorithm")
)
