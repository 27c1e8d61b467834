// Package ztocfb has the accessors of a ztoc's flatbuffer, as flatc makes them of
// ../ztoc.fbs; a Ztoc is its root. They believe every offset they read and panic on
// malformed input: package soci calls them where it can recover, and nobody else does.
package ztocfb
