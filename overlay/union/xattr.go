package union

import (
	"bytes"
	"context"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	// escaped stands between the prefix of overlayfs's own xattrs and the rest of
	// the names of those that only look like them, as in the kernel since 6.7.
	escaped = "overlay."
)

// escape turns the name of an xattr of the union into that in the upper directory.
func (u *Union) escape(name string) string {
	if rest, ours := strings.CutPrefix(name, u.upper.Xattr("")); ours {
		return u.upper.Xattr(escaped + rest)
	}
	return name
}

// unescape is the inverse of escape; false: the union does not show it.
func (u *Union) unescape(name []byte) ([]byte, bool) {
	prefix := []byte(u.upper.Xattr(""))
	rest, ours := bytes.CutPrefix(name, prefix)
	if !ours {
		return name, true
	}
	if rest, ours = bytes.CutPrefix(rest, []byte(escaped)); !ours {
		return nil, false
	}
	return append(prefix, rest...), true
}

// Xattr copies the value of the xattr name of id to p and returns its size. If p is
// empty it copies nothing; ERANGE if the value is longer than p.
func (u *Union) Xattr(id ID, name string, p []byte) (int, error) {
	n, err := u.get(id)
	if err != nil {
		return 0, err
	}
	if n == nil || n.isLower() {
		value, err := u.lowerXattr(u.nid(id), name)
		if err != nil {
			return 0, err
		}
		if len(p) > 0 && len(value) > len(p) {
			return 0, unix.ERANGE
		}
		copy(p, value)
		return len(value), nil
	}
	// The kernel asks for them before the first write to a file, and at every chown.
	if name == capability && n.caps.Load() == capsNone {
		return 0, unix.ENODATA
	}
	if err := u.raiseDead(n); err != nil {
		return 0, err
	}
	u.names.RLock()
	defer u.names.RUnlock()
	w, err := u.find(n)
	if err != nil {
		return 0, err
	}
	defer w.close()
	if len(p) == 0 {
		p = nil
	}
	return unix.Lgetxattr(w.x(), u.escape(name), p)
}

// lowerXattr is Xattr of the lower tree, which says of names that no filesystem has
// what others do.
func (u *Union) lowerXattr(nid index.NID, name string) ([]byte, error) {
	value, err := u.lower.Xattr(nid, name)
	if err == index.ErrNoXattr && name != aclAccess && name != aclDefault {
		prefix, rest, _ := strings.Cut(name, ".")
		switch prefix {
		case "user", "trusted", "security":
			if rest == "" {
				return nil, unix.EINVAL
			}
		default:
			return nil, unix.EOPNOTSUPP
		}
	}
	return value, err
}

// Xattrs calls fn with the name of each xattr of id until it returns false.
func (u *Union) Xattrs(id ID, fn func(name []byte) bool) error {
	n, err := u.get(id)
	if err != nil {
		return err
	}
	if n == nil || n.isLower() {
		return u.lower.Xattrs(u.nid(id), func(name string, _ []byte) bool { return fn([]byte(name)) })
	}
	if err := u.raiseDead(n); err != nil {
		return err
	}
	names, err := u.upperXattrs(n)
	if err != nil {
		return err
	}
	for name := range bytes.SplitSeq(names, []byte{0}) {
		if shown, ok := u.unescape(name); len(name) > 0 && ok && !fn(shown) {
			return nil
		}
	}
	return nil
}

func (u *Union) upperXattrs(n *node) ([]byte, error) {
	u.names.RLock()
	defer u.names.RUnlock()
	w, err := u.find(n)
	if err != nil {
		return nil, err
	}
	defer w.close()
	list := make([]byte, 64<<10)
	c, err := unix.Llistxattr(w.x(), list)
	if err != nil {
		return nil, err
	}
	return list[:c], nil
}

// SetXattr is setxattr(2), without following links. With dropSetGID, which the
// kernel asks for with any access control list, the file loses its set-gid bit by one
// that says who has access to it.
func (u *Union) SetXattr(ctx context.Context, id ID, name string, value []byte, flags int, dropSetGID bool) error {
	return u.changeXattr(ctx, id, name, func(path string, w where) error {
		if err := unix.Lsetxattr(path, u.escape(name), value, flags); err != nil || !dropSetGID || name != aclAccess {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(w.fd, w.path, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return unix.Fchmodat(w.fd, w.path, st.Mode&0o7777&^unix.S_ISGID, 0)
	})
}

// RemoveXattr is removexattr(2), without following links.
func (u *Union) RemoveXattr(ctx context.Context, id ID, name string) error {
	if n, err := u.get(id); err == nil && n == nil {
		if _, err := u.lowerXattr(u.nid(id), name); err != nil {
			if err == index.ErrNoXattr && (name == aclAccess || name == aclDefault) {
				return nil // as ext4 has it
			}
			return err
		}
	}
	return u.changeXattr(ctx, id, name, func(path string, _ where) error {
		return unix.Lremovexattr(path, u.escape(name))
	})
}

func (u *Union) changeXattr(ctx context.Context, id ID, name string, do func(path string, w where) error) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	n, err := u.raise(ctx, id, noData)
	if err != nil {
		return err
	}
	u.names.RLock()
	defer u.names.RUnlock()
	w, err := u.find(n)
	if err != nil {
		return err
	}
	defer w.close()
	if name == capability {
		n.caps.Store(capsSome)
	}
	if err := do(w.x(), w); err != nil {
		return err
	}
	if name == aclDefault {
		n.acl.Store(aclUnknown)
	}
	return nil
}
