// Package registry runs Debian's docker-registry on loopback, with TLS and a
// password, holding the images of a Set.
//
// A Registry is one running server. Its storage lies beside the Set and is made
// of hard links to the Set's blobs, in the layout that the registry itself
// writes, so that starting one costs no time and no disk; everything that
// clients see is the registry's own doing.
//
// The certificates come from an Authority made for the process, which also
// serves the proxies in front.
package registry
