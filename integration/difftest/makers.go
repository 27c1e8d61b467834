package difftest

import (
	"encoding/binary"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// makers says how often which operations come.
func makers() []maker {
	return []maker{
		{Open, 60, makeOpen},
		{Close, 12, makeClose},
		{Write, 90, makeWrite},
		{Read, 50, makeRead},
		{Truncate, 20, makeTruncate},
		{MapShared, 12, makeMap},
		{MapOwn, 6, makeMap},
		{Rename, 70, makeRename},
		{Link, 25, makeLink},
		{Unlink, 45, makeUnlink},
		{Rmdir, 18, makeRmdir},
		{Mkdir, 28, makeMkdir},
		{Symlink, 16, makeSymlink},
		{Readlink, 10, makeReadlink},
		{Mknod, 8, makeMknod},
		{Tmpfile, 8, makeTmpfile},
		{Chmod, 25, makeChmod},
		{Chown, 25, makeChown},
		{Utimes, 25, makeUtimes},
		{Setxattr, 40, makeSetxattr},
		{Getxattr, 12, makeGetxattr},
		{Lsxattr, 6, makeLsxattr},
		{Rmxattr, 14, makeRmxattr},
		{Fallocate, 16, makeFallocate},
		{Holes, 8, makeHoles},
		{Copy, 12, makeCopy},
		{Sync, 1, makeSync},
		{Opendir, 8, makeOpendir},
		{Readdir, 30, makeReaddir},
		{Rewind, 3, makeReaddir},
		{Flock, 10, makeFlock},
		{Lock, 10, makeLock},
		{StatFile, 40, makeStat},
		{Access, 15, makeAccess},
		{Statfs, 2, makeStatfs},
		{List, 18, makeList},
	}
}

// onFile names a file by a slot, as often as percent says, or by a path.
func (g *generator) onFile(percent int, of ...class) Op {
	if g.chance(percent) {
		if n, p := g.full(false); n != 0 {
			return Op{Slot: n, Path: p}
		}
	}
	return Op{Path: g.pick(of...)}
}

func (g *generator) fileMode() int64 {
	return some[int64](g, 0o644, 0o666, 0o600, 0o755, 0o777, 0o666, 0o444, 0o400, 0o200, 0o4755, 0o6777, 0o2644, 0o1644, 0)
}

func (g *generator) dirMode() int64 {
	return some[int64](g, 0o755, 0o777, 0o777, 0o700, 0o1777, 0o2775, 0o2777, 0o3777, 0o555, 0o500, 0o711)
}

func makeOpen(g *generator) Op {
	op := Op{Slot: g.free(), Path: g.pick(aFile)}
	op.Flags = some[int64](g, unix.O_RDONLY, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR)
	switch g.IntN(10) {
	case 0, 1, 2:
		op.Path, op.Mode = g.fresh(), g.fileMode()
		op.Flags |= unix.O_CREAT
		if g.chance(40) {
			op.Flags |= unix.O_EXCL
		}
	case 3:
		op.Mode = g.fileMode()
		op.Flags |= unix.O_CREAT
		if g.chance(20) {
			op.Flags |= unix.O_EXCL
		}
	case 4:
		op.Path = g.pick(aFile, aLink, aDir)
		op.Flags |= some[int64](g, unix.O_NOFOLLOW, unix.O_DIRECTORY, 0)
	}
	if g.chance(8) {
		op.Flags |= unix.O_TRUNC
	}
	if g.chance(12) {
		op.Flags |= unix.O_APPEND
	}
	return op
}

func makeClose(g *generator) Op {
	n, _ := g.full(g.chance(20))
	return Op{Slot: n}
}

func makeWrite(g *generator) Op {
	op := g.onFile(50, aFile)
	op.Off, op.Len, op.Seed = g.offset(), g.length(), g.seed()
	if g.chance(15) {
		op.Off = -1
	}
	if op.Slot != 0 {
		return op
	}
	if g.chance(45) {
		op.Path, op.Mode = g.fresh(), g.fileMode()
		op.Flags |= unix.O_CREAT
	}
	if g.chance(10) {
		op.Flags |= unix.O_TRUNC
	}
	if g.chance(10) {
		op.Flags |= unix.O_APPEND
	}
	return op
}

func makeRead(g *generator) Op {
	op := g.onFile(50, aFile, aFile, aFile, aLink)
	op.Off, op.Len = g.offset(), g.length()
	if g.chance(25) {
		op.Off = -1
	}
	return op
}

func makeTruncate(g *generator) Op {
	op := g.onFile(50, aFile)
	op.Len = some(g, 0, g.offset(), g.offset())
	return op
}

func makeMap(g *generator) Op {
	op := g.onFile(50, aFile)
	op.Off, op.Len, op.Seed = int64(g.IntN(9000)), g.length(), g.seed()
	if g.chance(50) {
		op.Off = 0
	}
	return op
}

func makeRename(g *generator) Op {
	op := Op{}
	switch g.IntN(10) {
	case 0, 1, 2:
		op.Path, op.Path2 = g.pick(aFile, aFile, aLink, aNode), g.fresh()
	case 3, 4:
		op.Path, op.Path2 = g.pick(aFile, aLink), g.pick(aFile, aLink, aNode)
	case 5, 6:
		op.Path, op.Path2 = g.pick(aDir), g.fresh()
	case 7:
		op.Path, op.Path2 = g.pick(aDir), g.emptyDir()
	case 8:
		op.Path = g.pick(aDir)
		op.Path2 = op.Path + "/" + g.name()
	case 9:
		op.Path, op.Path2 = g.pick(aFile, aDir, aLink), g.pick(aFile, aDir, aLink, aNode)
		op.Flags = unix.RENAME_EXCHANGE
	}
	if op.Flags == 0 && g.chance(15) {
		op.Flags = unix.RENAME_NOREPLACE
	}
	if g.tooDeep(op) {
		op.Path2 = g.name()
	}
	return op
}

// tooDeep says whether a rename would make paths that get longer and longer.
func (g *generator) tooDeep(op Op) bool {
	a, _, _ := g.m.find(op.Path, false)
	_, dir, _ := g.m.find(op.Path2, false)
	return a != nil && a.class == aDir && dir != nil && !dir.within(a) && a.height()+dir.depth() > maxDepth
}

func (n *node) height() int {
	h := 0
	for _, k := range n.kids {
		h = max(h, k.height())
	}
	return h + 1
}

func makeLink(g *generator) Op {
	op := g.onFile(30, aFile, aFile, aFile, aLink, aNode)
	op.Path2 = g.fresh()
	if op.Slot == 0 {
		op.Flags = some[int64](g, 0, 0, unix.AT_SYMLINK_FOLLOW)
	}
	return op
}

func makeUnlink(g *generator) Op {
	return Op{Path: g.pick(aFile, aFile, aFile, aLink, aNode)}
}

func makeRmdir(g *generator) Op {
	if g.chance(70) {
		return Op{Path: g.emptyDir()}
	}
	return Op{Path: g.pick(aDir)}
}

func makeMkdir(g *generator) Op {
	op := Op{Path: g.fresh(), Mode: g.dirMode()}
	if g.chance(6) {
		op.Path = g.pick(aDir, aFile)
	}
	return op
}

func makeSymlink(g *generator) Op {
	op := Op{Path: g.fresh()}
	switch g.IntN(5) {
	case 0:
		op.Name = "/" + g.pick(aFile, aDir)
	case 1:
		op.Name = g.name()
	case 2:
		op.Name = "../" + g.name()
	case 3:
		op.Name = "nowhere/" + strings.Repeat("x", g.IntN(300))
	case 4:
		if d := g.node(aDir); len(d.kids) > 0 {
			op.Path = join2(d.path(), g.name())
			op.Name = d.kids[g.IntN(len(d.kids))].name
		}
	}
	return op
}

func makeReadlink(g *generator) Op { return Op{Path: g.pick(aLink)} }

func makeMknod(g *generator) Op {
	op := Op{Path: g.fresh(), Mode: g.fileMode()}
	op.Mode |= some[int64](g, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFREG)
	if op.Mode&unix.S_IFMT == unix.S_IFCHR {
		op.Off = int64(unix.Mkdev(1, 3))
	}
	return op
}

func makeTmpfile(g *generator) Op {
	op := Op{Path: g.pick(aDir), Slot: g.free(), Mode: g.fileMode()}
	if g.chance(20) {
		op.Flags = unix.O_EXCL
	}
	return op
}

func makeChmod(g *generator) Op {
	if g.chance(35) {
		return Op{Path: g.pick(aDir), Mode: g.dirMode()}
	}
	op := g.onFile(35, aFile, aFile, aNode, aLink)
	op.Mode = g.fileMode()
	if op.Slot == 0 && g.chance(10) {
		op.Flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return op
}

func makeChown(g *generator) Op {
	op := g.onFile(30, aFile, aFile, aDir, aNode, aLink)
	op.UID = some[int64](g, -1, 0, 1000, 1000, 1001, 65534, 3000000000)
	op.GID = some[int64](g, -1, 0, 1000, 1000, 1001, 65534, 3000000000)
	if op.Slot == 0 && g.chance(50) {
		op.Flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return op
}

func (g *generator) time() int64 {
	switch g.IntN(10) {
	case 0:
		return TimeNow
	case 1:
		return TimeOmit
	case 2:
		return 0
	case 3:
		return -int64(g.IntN(1_000_000_000)) * int64(time.Second)
	case 4:
		return int64(g.IntN(1_000_000_000)) * int64(time.Second)
	}
	return g.Int64N(1_000_000_000_000_000_000)
}

func makeUtimes(g *generator) Op {
	op := g.onFile(30, aFile, aFile, aDir, aNode, aLink)
	op.Off, op.Off2 = g.time(), g.time()
	if op.Slot == 0 && g.chance(50) {
		op.Flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return op
}

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
	capability = "security.capability"
)

func (g *generator) attribute() string {
	return some(g, "user.a", "user.a", "user.b", "user.\xc3\xa4\xff", "trusted.foo", "trusted.foo",
		accessACL, accessACL, defaultACL, defaultACL, capability, "user.", "nosuch.x", "security.foo")
}

func (g *generator) onAttribute() Op {
	op := g.onFile(30, aFile, aFile, aFile, aDir, aDir, aNode, aLink)
	op.Name = g.attribute()
	if op.Name == defaultACL && g.chance(80) {
		op.Slot, op.Path = 0, g.pick(aDir)
	}
	if op.Slot == 0 && g.chance(40) {
		op.Flags = unix.AT_SYMLINK_NOFOLLOW
	}
	return op
}

func makeSetxattr(g *generator) Op {
	op := g.onAttribute()
	op.Mode = some[int64](g, 0, 0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE)
	switch op.Name {
	case accessACL, defaultACL:
		op.Value = g.acl()
		op.Mode = 0
	case capability:
		op.Value = capabilities(uint32(g.IntN(1 << 20)))
	default:
		op.Value = string(fill(g.seed(), int64(g.IntN(100))))
	}
	return op
}

// acl makes an access control list, now and then an invalid one.
func (g *generator) acl() string {
	perm := func() uint16 { return uint16(g.IntN(8)) }
	list := []aclEntry{{aclUserObj, perm(), none}}
	for _, id := range []uint32{1000, 1001} {
		if g.chance(50) {
			list = append(list, aclEntry{aclUser, perm(), id})
		}
	}
	list = append(list, aclEntry{aclGroupObj, perm(), none})
	if g.chance(50) {
		list = append(list, aclEntry{aclGroup, perm(), 1000})
	}
	if len(list) > 2 != g.chance(3) {
		list = append(list, aclEntry{aclMask, perm() | 4, none})
	}
	return packACL(append(list, aclEntry{aclOther, perm(), none}))
}

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// Tags of entries, and the id of those that have none.
const (
	aclUserObj  = 1
	aclUser     = 2
	aclGroupObj = 4
	aclGroup    = 8
	aclMask     = 16
	aclOther    = 32
	none        = ^uint32(0)
)

func packACL(list []aclEntry) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

// capabilities makes the value of security.capability, in its second version.
func capabilities(permitted uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, permitted)
	return string(append(b, make([]byte, 12)...))
}

func makeGetxattr(g *generator) Op {
	op := g.onAttribute()
	op.Len = some[int64](g, 0, 4, 1000, 1000, 1000)
	return op
}

func makeLsxattr(g *generator) Op {
	op := g.onAttribute()
	op.Name = ""
	return op
}

func makeRmxattr(g *generator) Op { return g.onAttribute() }

func makeFallocate(g *generator) Op {
	op := g.onFile(60, aFile)
	op.Off, op.Len = g.offset(), g.length()
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	const zero = unix.FALLOC_FL_ZERO_RANGE
	op.Mode = some[int64](g, 0, unix.FALLOC_FL_KEEP_SIZE, punch, punch, zero, zero|unix.FALLOC_FL_KEEP_SIZE)
	return op
}

func makeHoles(g *generator) Op { return g.onFile(50, aFile) }

func makeCopy(g *generator) Op {
	op := g.onFile(50, aFile)
	op.Off, op.Off2, op.Len = g.offset(), g.offset(), g.length()
	if g.chance(50) {
		op.Slot2, _ = g.full(false)
	}
	if op.Slot2 == 0 {
		op.Path2 = g.pick(aFile)
	}
	return op
}

func makeSync(g *generator) Op {
	op := g.onFile(80, aFile, aDir)
	op.Mode = int64(g.IntN(2))
	return op
}

func makeOpendir(g *generator) Op {
	return Op{Slot: g.free(), Path: g.pick(aDir)}
}

// makeReaddir reads little at once, so that changes come between.
func makeReaddir(g *generator) Op {
	n, p := g.full(true)
	return Op{Slot: n, Path: p, Len: some[int64](g, 300, 300, 600, 2000)}
}

func makeFlock(g *generator) Op {
	n, p := g.full(false)
	return Op{Slot: n, Path: p, Mode: some[int64](g, unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_EX, unix.LOCK_UN)}
}

func makeLock(g *generator) Op {
	n, p := g.full(false)
	op := Op{Slot: n, Path: p, Mode: some[int64](g, unix.F_RDLCK, unix.F_WRLCK, unix.F_WRLCK, unix.F_UNLCK)}
	op.Off, op.Len = int64(g.IntN(100)), int64(g.IntN(50))
	return op
}

func makeStat(g *generator) Op {
	op := g.onFile(30, aFile, aDir, aLink, aNode)
	if op.Slot == 0 {
		op.Flags = some[int64](g, 0, unix.AT_SYMLINK_NOFOLLOW)
	}
	return op
}

func makeAccess(g *generator) Op {
	return Op{
		Path: g.pick(aFile, aDir, aLink, aNode), Mode: int64(g.IntN(8)),
		Flags: some[int64](g, 0, unix.AT_EACCESS),
	}
}

func makeStatfs(g *generator) Op { return g.onFile(30, aFile, aDir) }

func makeList(g *generator) Op { return Op{Path: g.pick(aDir)} }
