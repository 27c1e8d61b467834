package mount

import (
	"fmt"
	"os"
)

// keepMapped is how much of files, the program included, a server keeps in its
// memory. What it maps beyond its program are indexes, which the page cache
// holds anyway.
const keepMapped = 16 << 20

// trim gives mapped pages of indexes and chunk tables back when they are many:
// a walk of a million files touches more than a hundred megabytes of them.
func (t *tree) trim() {
	if _, mapped := memory(); mapped <= keepMapped {
		return
	}
	t.Release()
}

// memory returns how many bytes of this process are resident, and how many of
// those belong to files; zeros where /proc does not say.
func memory() (resident, mapped int64) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, 0
	}
	var size int64
	if _, err := fmt.Sscan(string(b), &size, &resident, &mapped); err != nil {
		return 0, 0
	}
	page := int64(os.Getpagesize())
	return resident * page, mapped * page
}
