// Package fetch reads ranges of blobs, from wherever the blob lives.
//
// Its central type is Blob: an immutable sequence of bytes named by a digest,
// read by ReadRange. OpenFile makes one from a local file, Client.Blob one from
// a registry with its mirrors. Those above see no difference but latency.
package fetch
