// Package faultproxy puts a slow and unreliable link in front of a registry.
//
// A Proxy is an HTTP reverse proxy on a loopback port. Underneath HTTP, at the
// level of bytes, it models a link: every direction takes half a round trip,
// setting a connection up takes a whole one, and all connections share one
// capped bandwidth. TLS is ended above that, so a TLS handshake costs the round
// trips it would cost. Above it, at the level of responses, Faults make a share
// of responses go wrong in ways that registries in the wild do: cut, short,
// corrupted, late, refused, or whole where a range was asked for.
//
// Every exchange is recorded, so a test can say how many requests, bytes and
// sequential round trips something took, and whether a byte was sent twice.
//
// What it does not model: packet loss, TCP's slow start and competing traffic.
// The random choices come from a seed, but which request meets which fault also
// depends on the order in which requests arrive.
package faultproxy
