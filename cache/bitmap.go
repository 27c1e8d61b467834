package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The bitmap file, little-endian:
//
//	   0  magic           8 bytes
//	   8  version         u32
//	  12  checksum        u32, CRC-32C of bytes 0-11 and 16-63
//	  16  chunk count     u64
//	  24  data size       u64
//	  32  blob            32 bytes, whose chunks these are
//	  64  generation      u64, raised by every eviction
//	  72  whole           u64, every chunk is present, true of this boot only
//	  80  complete        u64, the same, and known to be on the disk
//	  88  last use        u64, Unix seconds
//	4096  marks           u32 per chunk
//	      last uses       u32 per chunk, Unix seconds
//
// A mark is not one bit but 32, derived from the chunk's digest and the boot ID
// of the machine. So one word says present and verified since this boot; any
// other word than that and 0 says that the chunk may be present and must be
// verified first. Bits that an unclean shutdown left behind without their data,
// or that a failing disk turned, are no different: nobody has to clear them.
const (
	bitmapMagic   = "lamina\x00B"
	bitmapVersion = 1
	bitmapHeader  = 4096

	posVersion    = 8
	posChecksum   = 12
	posCount      = 16
	posSize       = 24
	posBlob       = 32
	posGeneration = 64
	posWhole      = 72
	posComplete   = 80
	posUsed       = 88
)

// mark states.
type presence uint8

const (
	absent  presence = iota
	present          // and verified since this boot
	doubted          // perhaps present: to be verified before use
)

// shape is what a bitmap must agree with: the chunk table it belongs to.
type shape struct {
	chunks int
	size   int64
	blob   [32]byte
}

// bitmap is the mapped bitmap file of one layer: which chunks are in the data
// file. All methods are safe for concurrent use, also by other processes. It is
// never truncated while it exists, so the mapping stays valid.
type bitmap struct {
	f      *os.File
	mem    []byte
	marks  []uint32
	used   []uint32
	chunks int
	boot   uint64 // key of this boot
	id     uint64 // key of the shape
	locks  rangeLocks
	// fresh: the file was made, or made anew, by this open.
	fresh bool
}

// openBitmap maps the bitmap file at path, which is made anew when it is
// missing, or not the bitmap of s: then every chunk starts as doubted, if
// doubt, and as absent otherwise. boot is the machine's boot ID.
func openBitmap(path string, s shape, boot string, doubt bool) (b *bitmap, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open bitmap: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			err = fmt.Errorf("open bitmap %s: %w", path, err)
		}
	}()
	b = newBitmap(s, boot)
	b.f, b.locks = f, rangeLocks{f: f}
	want, length := s.header(), s.length()
	if !headerIs(f, want, length) {
		// In place: others may have the file mapped, and all must see one.
		if err := b.remake(want, length, doubt); err != nil {
			return nil, err
		}
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	b.lay(mem)
	return b, nil
}

func newBitmap(s shape, boot string) *bitmap {
	return &bitmap{chunks: s.chunks, boot: keyOf("boot " + boot), id: s.key()}
}

// lay makes mem, the bitmap file's content, b's.
func (b *bitmap) lay(mem []byte) {
	b.mem = mem
	if b.chunks > 0 {
		b.marks = unsafe.Slice((*uint32)(unsafe.Pointer(&mem[bitmapHeader])), b.chunks)
		b.used = unsafe.Slice((*uint32)(unsafe.Pointer(&mem[bitmapHeader+4*b.chunks])), b.chunks)
	}
}

// length is how long the bitmap file is, in bytes.
func (s shape) length() int64 {
	n := int64(bitmapHeader) + 8*int64(s.chunks)
	return (n + bitmapHeader - 1) / bitmapHeader * bitmapHeader
}

// remake writes the file anew, under its exclusive lock.
func (b *bitmap) remake(header []byte, length int64, doubt bool) error {
	if err := unix.Flock(int(b.f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	defer func() { _ = unix.Flock(int(b.f.Fd()), unix.LOCK_UN) }()
	if headerIs(b.f, header, length) {
		return nil // another process was first
	}
	b.fresh = true
	old, err := b.f.Stat()
	if err != nil {
		return err
	}
	if old.Size() > 0 {
		doubt = true // a file that is damaged may have had data behind it
	}
	// A page that the full disk has no room for would be a fatal signal at the
	// first store through the mapping, so the room is taken now.
	body := make([]byte, length)
	if doubt {
		for i := range 4 * b.chunks {
			body[bitmapHeader+i] = 0xff
		}
	}
	var gen [8]byte
	if n, _ := b.f.ReadAt(gen[:], posGeneration); n == len(gen) {
		binary.LittleEndian.PutUint64(body[posGeneration:], binary.LittleEndian.Uint64(gen[:])+1)
	}
	if _, err := b.f.WriteAt(body[64:], 64); err != nil {
		return err
	}
	if old.Size() > length {
		if err := b.f.Truncate(length); err != nil {
			return err
		}
	}
	if err := unix.Fallocate(int(b.f.Fd()), 0, 0, length); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("allocate: %w", err)
	}
	// The header last: until it is right, nobody believes the rest.
	_, err = b.f.WriteAt(header, 0)
	return err
}

func headerIs(f *os.File, want []byte, length int64) bool {
	fi, err := f.Stat()
	if err != nil || fi.Size() != length {
		return false
	}
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	return err == nil && string(got) == string(want)
}

func (s shape) header() []byte {
	h := make([]byte, posGeneration)
	copy(h, bitmapMagic)
	binary.LittleEndian.PutUint32(h[posVersion:], bitmapVersion)
	binary.LittleEndian.PutUint64(h[posCount:], uint64(s.chunks))
	binary.LittleEndian.PutUint64(h[posSize:], uint64(s.size))
	copy(h[posBlob:], s.blob[:])
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(h[:posChecksum], table), table, h[posCount:])
	binary.LittleEndian.PutUint32(h[posChecksum:], sum)
	return h
}

func (s shape) key() uint64 {
	return keyOf(string(s.blob[:]) + fmt.Sprint(s.chunks, s.size))
}

// close unmaps and closes the file. No method may be running or called after.
func (b *bitmap) close() error {
	return errors.Join(unix.Munmap(b.mem), b.f.Close())
}

// word returns the header's 64-bit word at byte pos.
func (b *bitmap) word(pos int) *uint64 { return (*uint64)(unsafe.Pointer(&b.mem[pos])) }

// state tells whether chunk i, of digest d, is in the data file.
func (b *bitmap) state(i int, d *[32]byte) presence {
	switch atomic.LoadUint32(&b.marks[i]) {
	case 0:
		return absent
	case b.mark(i, d):
		return present
	}
	return doubted
}

// has is state(i, d) == present.
func (b *bitmap) has(i int, d *[32]byte) bool {
	return atomic.LoadUint32(&b.marks[i]) == b.mark(i, d)
}

// set marks chunk i, of digest d, as present. Its verified bytes must be in the
// data file, and its range lock held.
func (b *bitmap) set(i int, d *[32]byte) { atomic.StoreUint32(&b.marks[i], b.mark(i, d)) }

// marked reports whether chunk i may be in the data file.
func (b *bitmap) marked(i int) bool { return atomic.LoadUint32(&b.marks[i]) != 0 }

// doubt marks chunk i as one to verify before use.
func (b *bitmap) doubt(i int) { atomic.StoreUint32(&b.marks[i], ^uint32(0)) }

// clear marks chunk i as absent. Before its bytes may go, bump must follow.
func (b *bitmap) clear(i int) { atomic.StoreUint32(&b.marks[i], 0) }

// mark is the word that says that chunk i is present.
func (b *bitmap) mark(i int, d *[32]byte) uint32 {
	w := uint32(mix(binary.LittleEndian.Uint64(d[:8]) ^ b.boot ^ uint64(i)*0x9e3779b97f4a7c15))
	if w == 0 || w == ^uint32(0) {
		w = 1 // 0 is absent, and all ones is what doubt writes
	}
	return w
}

// generation changes whenever bytes may have left the data file. A reader that
// finds the same before it looks at the marks and after it read the data has
// read what the marks promised.
func (b *bitmap) generation() uint64 { return atomic.LoadUint64(b.word(posGeneration)) }

// bump raises the generation: after marks were cleared, before bytes go.
func (b *bitmap) bump() { atomic.AddUint64(b.word(posGeneration), 1) }

// whole reports that every chunk is present, which spares looking at marks.
func (b *bitmap) whole() bool {
	return atomic.LoadUint64(b.word(posWhole)) == mix(b.id^b.boot) || b.complete()
}

// complete reports that every chunk is present and was on the disk before the
// flag: it stays true over a crash of the machine.
func (b *bitmap) complete() bool {
	return atomic.LoadUint64(b.word(posComplete)) == mix(b.id)
}

// setWhole says that every chunk is present, as far as this boot goes.
func (b *bitmap) setWhole() { atomic.StoreUint64(b.word(posWhole), mix(b.id^b.boot)) }

// setComplete says for good that every chunk is present; the data file must
// have been synced before.
func (b *bitmap) setComplete() error {
	atomic.StoreUint64(b.word(posComplete), mix(b.id))
	return b.sync()
}

// clearWhole takes back setWhole and setComplete, on the disk too: it comes
// before any mark is cleared.
func (b *bitmap) clearWhole() error {
	atomic.StoreUint64(b.word(posWhole), 0)
	if atomic.SwapUint64(b.word(posComplete), 0) == 0 {
		return nil
	}
	return b.sync()
}

func (b *bitmap) sync() error {
	if err := unix.Msync(b.mem, unix.MS_SYNC); err != nil {
		return fmt.Errorf("sync bitmap %s: %w", b.f.Name(), err)
	}
	return b.f.Sync()
}

// useGrain is how old, in seconds, a last use must be to be written again:
// readers of one chunk shall not fight for its cache line.
const useGrain = 8

// touch notes that chunk i was used at now, in Unix seconds.
func (b *bitmap) touch(i int, now uint32) {
	if old := atomic.LoadUint32(&b.used[i]); now-old >= useGrain {
		atomic.StoreUint32(&b.used[i], now)
	}
}

// touchAll notes that the layer was used at now, by readers that do not say
// which chunk.
func (b *bitmap) touchAll(now uint32) {
	w := b.word(posUsed)
	if old := uint32(atomic.LoadUint64(w)); now-old >= useGrain {
		atomic.StoreUint64(w, uint64(now))
	}
}

// lastUse is when chunk i was used last, in Unix seconds.
func (b *bitmap) lastUse(i int) uint32 { return atomic.LoadUint32(&b.used[i]) }

// lastUseAll is what touchAll noted.
func (b *bitmap) lastUseAll() uint32 { return uint32(atomic.LoadUint64(b.word(posUsed))) }

// keyOf hashes s to 64 bits (FNV-1a, then mixed).
func keyOf(s string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 0x100000001b3
	}
	return mix(h)
}

// mix spreads every bit of x over all bits of the result.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// bootID is the kernel's name for the time since this machine started.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return string(b), nil
}

// exists reports whether there is a file at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
