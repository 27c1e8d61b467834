package overlay

import (
	"errors"
	"io"
	"os"
)

// frozenFile reads the data of a stub: see Upper.Data. Who replaces it by a copy does
// so before he changes it. So what was read is right if the file is still in its
// place afterwards.
type frozenFile struct {
	path string
	size int64
	off  int64
	f    *os.File
	info os.FileInfo
}

func openFrozen(path string, size int64) (io.ReadCloser, error) {
	r := &frozenFile{path: path, size: size}
	if size == 0 {
		return r, nil // there is no file for it
	}
	return r, r.open()
}

func (r *frozenFile) open() (err error) {
	if r.f, err = os.Open(r.path); err != nil {
		return err
	}
	r.info, err = r.f.Stat()
	return err
}

// moved tells whether there is another file in the place now, and opens that.
func (r *frozenFile) moved() (bool, error) {
	now, err := os.Lstat(r.path)
	if err != nil || os.SameFile(now, r.info) {
		return false, err
	}
	return true, errors.Join(r.f.Close(), r.open())
}

func (r *frozenFile) Read(p []byte) (int, error) {
	if r.off == r.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.off)]
	for {
		n, err := r.f.ReadAt(p, r.off)
		moved, lost := r.moved()
		switch {
		case lost != nil:
			return 0, lost
		case moved:
			continue
		case n > 0:
			r.off += int64(n)
			return n, nil
		}
		return 0, err
	}
}

func (r *frozenFile) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}
