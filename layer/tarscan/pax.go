package tarscan

import (
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
)

var errRecord = errors.New("malformed record")

const (
	schilyXattr     = "SCHILY.xattr."
	libarchiveXattr = "LIBARCHIVE.xattr."
)

// records are the PAX records of one file that have a meaning here. Of several
// records with one key the last counts. Empty means not given.
type records struct {
	path, linkpath        string
	size, uid, gid, mtime string
	xattrs                []Xattr // SCHILY's: as they are
	encoded               []Xattr // LIBARCHIVE's, already decoded; SCHILY's win

	major, minor    string // GNU.sparse.*
	name            string
	rsize, realsize string
	numblocks, smap string
	pairs           []string // format 0.0: offset, numbytes, offset, ...
	parts           []part   // the map of formats 0.0 and 0.1
}

// parseRecords reads the payload of an x or g entry: "length key=value\n" each.
func parseRecords(b []byte) (records, error) {
	var r records
	s := string(b)
	for len(s) > 0 {
		length, rest, ok := strings.Cut(s, " ")
		n, err := strconv.Atoi(length)
		if !ok || err != nil || n < 5 || n > len(s) {
			return r, errRecord
		}
		if n -= len(length) + 1; n <= 0 || rest[n-1] != '\n' {
			return r, errRecord
		}
		key, value, ok := strings.Cut(rest[:n-1], "=")
		if !ok || key == "" {
			return r, errRecord
		}
		if err := r.set(key, value); err != nil {
			return r, err
		}
		s = rest[n:]
	}
	return r, nil
}

func (r *records) set(key, value string) error {
	switch key {
	case "path", "linkpath", "uname", "gname":
		if strings.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("NUL in %s", key)
		}
	default:
		if strings.IndexByte(key, 0) >= 0 {
			return errRecord
		}
	}
	switch key {
	case "path":
		r.path = value
	case "linkpath":
		r.linkpath = value
	case "size":
		r.size = value
	case "uid":
		r.uid = value
	case "gid":
		r.gid = value
	case "mtime":
		r.mtime = value
	case "GNU.sparse.major":
		r.major = value
	case "GNU.sparse.minor":
		r.minor = value
	case "GNU.sparse.name":
		r.name = value
	case "GNU.sparse.size":
		r.rsize = value
	case "GNU.sparse.realsize":
		r.realsize = value
	case "GNU.sparse.numblocks":
		r.numblocks = value
	case "GNU.sparse.map":
		r.smap = value
	case "GNU.sparse.offset", "GNU.sparse.numbytes":
		if (len(r.pairs)%2 == 0) != (key == "GNU.sparse.offset") || strings.Contains(value, ",") {
			return errSparse
		}
		r.pairs = append(r.pairs, value)
	default:
		return r.setXattr(key, value)
	}
	return nil
}

func (r *records) setXattr(key, value string) error {
	if name, ok := strings.CutPrefix(key, schilyXattr); ok {
		r.xattrs = append(r.xattrs, Xattr{name, value})
		return nil
	}
	name, ok := strings.CutPrefix(key, libarchiveXattr)
	if !ok {
		return nil
	}
	name, err := url.PathUnescape(name)
	if err != nil || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: %q", errRecord, key)
	}
	p, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return fmt.Errorf("%w: %q is not base64", errRecord, key)
	}
	r.encoded = append(r.encoded, Xattr{name, string(p)})
	return nil
}

// Xattrs returns the extended attributes that PAX records, by their keys, give to a
// file, and whether they speak of a sparse one, whose data is then not as long as
// the file. Errors wrap ErrTar.
func Xattrs(pax iter.Seq2[string, string]) (list []Xattr, sparse bool, err error) {
	var r records
	for key, value := range pax {
		if strings.HasPrefix(key, "GNU.sparse.") {
			sparse = true
		} else if err := r.setXattr(key, value); err != nil {
			return nil, false, fmt.Errorf("%w: %w", ErrTar, err)
		}
	}
	return mergeXattrs(r.encoded, r.xattrs), sparse, nil
}

// merge applies the records to a header.
func (r *records) merge(h *Header) error {
	if r.path != "" {
		h.Name = r.path
	}
	if r.linkpath != "" {
		h.Link = r.linkpath
	}
	for _, f := range []struct {
		text string
		to   *int64
	}{{r.size, &h.Size}, {r.uid, &h.UID}, {r.gid, &h.GID}} {
		if f.text == "" {
			continue
		}
		n, err := strconv.ParseInt(f.text, 10, 64)
		if err != nil {
			return fmt.Errorf("%w: number %q", errRecord, f.text)
		}
		*f.to = n
	}
	h.Stored = h.Size
	if r.mtime != "" {
		sec, nsec, err := parseTime(r.mtime)
		if err != nil {
			return err
		}
		h.Mtime, h.MtimeNsec = sec, nsec
	}
	h.Xattrs = mergeXattrs(r.encoded, r.xattrs)
	return nil
}

// mergeXattrs returns the attributes of all lists, each name once: a later one
// replaces an earlier one.
func mergeXattrs(lists ...[]Xattr) []Xattr {
	var out []Xattr
	var at map[string]int
	for _, list := range lists {
		for _, x := range list {
			if at == nil {
				at = make(map[string]int)
			}
			if i, ok := at[x.Name]; ok {
				out[i].Value = x.Value
				continue
			}
			at[x.Name] = len(out)
			out = append(out, x)
		}
	}
	return out
}

// parseTime reads decimal seconds with a fraction. Digits past the nanosecond
// are dropped.
func parseTime(s string) (sec int64, nsec uint32, err error) {
	whole, frac, _ := strings.Cut(s, ".")
	if sec, err = strconv.ParseInt(whole, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("%w: time %q", errRecord, s)
	}
	for i := range max(len(frac), 9) {
		c := byte('0')
		if i < len(frac) {
			c = frac[i]
		}
		if c < '0' || c > '9' {
			return 0, 0, fmt.Errorf("%w: time %q", errRecord, s)
		}
		if i < 9 {
			nsec = nsec*10 + uint32(c-'0')
		}
	}
	if nsec > 0 && whole[0] == '-' { // -1.25 is 0.75 after -2
		if sec == -1<<63 {
			return 0, 0, fmt.Errorf("%w: time %q", errRecord, s)
		}
		sec, nsec = sec-1, 1e9-nsec
	}
	return sec, nsec, nil
}
