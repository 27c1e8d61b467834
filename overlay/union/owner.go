package union

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Owner is who makes a file.
type Owner struct{ UID, GID uint32 }

// isSelf says that o is this process's.
func (o Owner) isSelf() bool { return int(o.UID) == os.Geteuid() && int(o.GID) == os.Getegid() }

// as calls do with o's rights to make files, so that what it makes is o's from the
// first moment. It reports false if o cannot be; what do makes is then this process's.
func (o Owner) as(do func() error) (bool, error) {
	if o.isSelf() {
		return true, do()
	}
	if os.Geteuid() != 0 {
		return false, do()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The group first, while there is the right to change it.
	setfsid(unix.SYS_SETFSGID, o.GID)
	setfsid(unix.SYS_SETFSUID, o.UID)
	err := do()
	setfsid(unix.SYS_SETFSUID, uint32(os.Geteuid()))
	setfsid(unix.SYS_SETFSGID, uint32(os.Getegid()))
	if err == unix.EACCES || err == unix.EPERM {
		// Its rights come from a capability or a group of the caller.
		return false, do()
	}
	return true, err
}

// setfsid changes this thread's id for filesystems; it reports no errors.
func setfsid(call uintptr, id uint32) { _, _, _ = unix.RawSyscall(call, uintptr(id), 0, 0) }
