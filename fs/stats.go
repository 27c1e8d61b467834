package fs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// opcodes is one more than the highest opcode that is counted by itself; the
// slot of 0, which is no opcode, counts the rest.
const opcodes = 64

// slowReads is how many of the slowest reads are kept, and slowFloor the time
// below which a read is not worth keeping.
const (
	slowReads = 32
	slowFloor = time.Millisecond
)

// Stats counts what one or more sessions were asked. It is safe for concurrent
// use, and a nil *Stats counts nothing.
type Stats struct {
	requests  [opcodes]atomic.Uint64
	readBytes atomic.Uint64

	floor atomic.Int64 // a read must take longer (ns) to be kept
	mu    sync.Mutex   // guards slow
	slow  []SlowRead   // unordered, at most slowReads
}

// SlowRead is one READ request that took long.
type SlowRead struct {
	Node   uint64        `json:"node"`   // FUSE node id: the index's nid, or 1 for the root
	Offset int64         `json:"offset"` // in the file, in bytes
	Bytes  int           `json:"bytes"`  // asked for
	Took   time.Duration `json:"took"`   // in nanoseconds
	When   time.Time     `json:"when"`   // it began
	Failed bool          `json:"failed"` // it was answered with an error
}

// Snapshot is the state of Stats at one moment.
type Snapshot struct {
	Requests  map[string]uint64 `json:"requests"`  // by FUSE operation; those never asked are absent
	ReadBytes uint64            `json:"readBytes"` // bytes handed to the kernel by READ
	Slowest   []SlowRead        `json:"slowest"`   // slowest first, at most 32
}

func (s *Stats) count(op uint32) {
	if s == nil {
		return
	}
	if op >= opcodes {
		op = 0
	}
	s.requests[op].Add(1)
}

func (s *Stats) read(r SlowRead, n int) {
	if s == nil {
		return
	}
	s.readBytes.Add(uint64(n))
	if r.Took < slowFloor || int64(r.Took) <= s.floor.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.slow) < slowReads {
		s.slow = append(s.slow, r)
		return
	}
	least := 0
	for i := range s.slow {
		if s.slow[i].Took < s.slow[least].Took {
			least = i
		}
	}
	if s.slow[least].Took < r.Took {
		s.slow[least] = r
	}
	s.floor.Store(int64(slices.MinFunc(s.slow, bySlowness).Took))
}

// Snapshot returns the counts so far.
func (s *Stats) Snapshot() Snapshot {
	out := Snapshot{Requests: map[string]uint64{}}
	if s == nil {
		return out
	}
	for op := range s.requests {
		if n := s.requests[op].Load(); n > 0 {
			out.Requests[opName(op)] += n
		}
	}
	out.ReadBytes = s.readBytes.Load()
	s.mu.Lock()
	out.Slowest = slices.Clone(s.slow)
	s.mu.Unlock()
	slices.SortFunc(out.Slowest, func(a, b SlowRead) int { return bySlowness(b, a) })
	return out
}

func bySlowness(a, b SlowRead) int { return int(a.Took - b.Took) }

// opName is the kernel's name of an opcode, in lower case.
func opName(op int) string {
	names := [opcodes]string{
		1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink",
		8: "mknod", 9: "mkdir", 10: "unlink", 11: "rmdir", 12: "rename", 13: "link",
		14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release", 20: "fsync",
		21: "setxattr", 22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush",
		26: "init", 27: "opendir", 28: "readdir", 29: "releasedir", 30: "fsyncdir",
		31: "getlk", 32: "setlk", 33: "setlkw", 34: "access", 35: "create", 36: "interrupt",
		37: "bmap", 38: "destroy", 39: "ioctl", 40: "poll", 41: "notify_reply",
		42: "batch_forget", 43: "fallocate", 44: "readdirplus", 45: "rename2", 46: "lseek",
		47: "copy_file_range", 50: "syncfs", 51: "tmpfile", 52: "statx", 53: "copy_file_range_64",
	}
	if n := names[op]; n != "" {
		return n
	}
	return "other"
}
