package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// errMountinfo is the cause of a line that mountinfo(5) does not describe.
var errMountinfo = errors.New("malformed mountinfo line")

// MountInfo is one line of /proc/self/mountinfo.
type MountInfo struct {
	ID, Parent int
	Device     string // "major:minor" of the superblock
	Root       string // of the mount within its filesystem
	MountPoint string // unescaped, absolute
	Options    string // of the mount, comma-separated
	FSType     string
	Source     string // unescaped
	Super      string // options of the superblock, comma-separated
}

// Mounts returns the mounts this process sees, in mount order.
func Mounts() ([]MountInfo, error) { return mountsOf("self") }

// MountsOf returns the mounts that process pid sees, in mount order.
func MountsOf(pid int) ([]MountInfo, error) { return mountsOf(strconv.Itoa(pid)) }

func mountsOf(process string) ([]MountInfo, error) {
	f, err := os.Open("/proc/" + process + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parseMountinfo(f)
}

// OurMounts returns lamina's mounts: FUSE ones by their type, and EROFS ones by
// their source, an index under the directory store.
func OurMounts(store string) ([]MountInfo, error) {
	all, err := Mounts()
	if err != nil {
		return nil, err
	}
	prefix := filepath.Clean(store) + "/"
	ours := all[:0]
	for _, m := range all {
		if m.FSType == fsType || m.FSType == erofsType && strings.HasPrefix(m.Source, prefix) {
			ours = append(ours, m)
		}
	}
	return ours, nil
}

// topMount returns the mount that covers dir itself: the last one on it.
func topMount(mounts []MountInfo, dir string) (MountInfo, bool) {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].MountPoint == dir {
			return mounts[i], true
		}
	}
	return MountInfo{}, false
}

func parseMountinfo(r io.Reader) ([]MountInfo, error) {
	var mounts []MountInfo
	lines := bufio.NewReader(r) // not a Scanner: overlay options may be of any length
	for {
		line, err := lines.ReadString('\n')
		if line = strings.TrimSuffix(line, "\n"); line != "" {
			m, perr := parseMount(line)
			if perr != nil {
				return nil, fmt.Errorf("list mounts: %w: %q", perr, line)
			}
			mounts = append(mounts, m)
		}
		if err == io.EOF {
			return mounts, nil
		}
		if err != nil {
			return nil, fmt.Errorf("list mounts: %w", err)
		}
	}
}

// parseMount reads
//
//	id parent major:minor root mountpoint options [tag…] - type source super
//
// where the source may be empty.
func parseMount(line string) (MountInfo, error) {
	head, tail, ok := strings.Cut(line, " - ")
	if !ok {
		return MountInfo{}, errMountinfo
	}
	h, t := strings.Split(head, " "), strings.SplitN(tail, " ", 3)
	if len(h) < 6 || len(t) < 2 {
		return MountInfo{}, errMountinfo
	}
	id, err := strconv.Atoi(h[0])
	if err != nil {
		return MountInfo{}, errMountinfo
	}
	parent, err := strconv.Atoi(h[1])
	if err != nil {
		return MountInfo{}, errMountinfo
	}
	m := MountInfo{
		ID: id, Parent: parent, Device: h[2], Root: unescape(h[3]), MountPoint: unescape(h[4]),
		Options: h[5], FSType: unescape(t[0]), Source: unescape(t[1]),
	}
	if len(t) == 3 {
		m.Super = t[2]
	}
	return m, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline, backslash and
// hash. Anything else stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
