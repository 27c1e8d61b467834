// Package fetch reads ranges of blobs, from wherever the blob lives.
//
// Its central type is Blob: an immutable sequence of bytes named by a digest,
// read by ReadRange. OpenFile makes one from a local file, Client.Blob one from
// a registry with its mirrors. Those above see no difference but latency: a
// Stream delivers exactly the range, or an error. Retries, other hosts, tokens
// that expire, redirects that expire, transfers that break off and servers that
// ignore Range are dealt with below it.
//
// # One range
//
//	ReadRange  a call: candidates in order of configuration and experience
//	queue      a place: Reader before Prefetch before Background
//	get        one request, with authorisation and redirects; a cached redirect
//	           goes to the object store at once
//	position   the response is the range that was asked for, of a blob that long
//	Read       bytes; at a break, the next attempt begins at the byte it broke
//
// Failures have a fate. Transient ones (5xx, 429, network, silence) go to the
// next host, then back off, for as long as the context's deadline allows.
// Suspicious ones (another size, another range) are allowed a few times.
// Permanent ones (404, 403) end the host's part in the call; when all hosts have
// said no, the call fails at once, with what the last host, the origin, said.
//
// # Hosts, TLS, credentials
//
// containerd's core/remotes/docker reads hosts.toml and docker's certificate
// folders and talks to token servers; its behaviour is ours. So a loopback
// registry without hosts.toml is tried by TLS, unverified, and then by plain
// HTTP. Connections are HTTP/1.1, one per request under way and kept: parallel
// ranges do not share a flow-control window, and one lost packet does not stop
// all of them. Credentials and configured headers go to the host they are for,
// compared with its port, never to where it redirects. Credentials come from
// Keychain, which Warm asks at once, for the first request to carry a name and a
// password where nobody else can read them, and which is asked at the first 401
// otherwise.
//
// # Pushing
//
// Nothing here writes to a registry. Origin lends the connections, credentials
// and tokens of a Client to go-containerregistry, which does.
//
// # Invariants
//
//   - A Stream never delivers a byte from another offset than it says, as far
//     as headers and lengths can tell, and never ends early with io.EOF.
//   - No error, and nothing else that leaves the package, holds a query string,
//     a token or a password.
//   - The package starts no goroutine of its own that outlives a call, but for
//     those of Warm, which Close ends, and credential helpers that do not
//     answer before the context ends.
//
// # Not promised
//
// Ranges are not verified: who can tell that bytes are wrong says so by
// Stream.Reject, and reads again. Only ReadAll and Manifest verify digests.
// A descriptor's urls, of layers that are kept outside registries, are not
// followed: an image would decide which hosts are asked. Such a layer is read if
// the registry or a mirror has it, and is ErrNotFound otherwise.
// Neighbouring ranges are not put together and nothing is cached; that is the
// cache's work.
package fetch
