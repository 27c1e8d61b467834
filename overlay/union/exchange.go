package union

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/laminafs/lamina/index"
)

const (
	// notesDir, in ownDir, has a note for each of the last exchanges: which inode
	// was at the first name before.
	notesDir = "notes"
	maxNotes = 64
)

// Exchange is renameat2(2) with RENAME_EXCHANGE. unique is the number of the request,
// and again says that an earlier process may have done it, which the names do not
// tell.
func (u *Union) Exchange(ctx context.Context, a, b Name, unique uint64, again bool) error {
	u.frozen.RLock()
	defer u.frozen.RUnlock()
	return u.untilRaised(ctx, func() (ID, error) { return u.exchange(a, b, unique, again) })
}

func (u *Union) exchange(from, to Name, unique uint64, again bool) (ID, error) {
	u.names.Lock()
	defer u.names.Unlock()
	a, err := u.end(from)
	if err != nil {
		return 0, err
	}
	defer a.slot.w.close()
	b, err := u.end(to)
	if err != nil {
		return 0, err
	}
	defer b.slot.w.close()
	switch {
	case a.none || b.none:
		return 0, index.ErrNotExist
	case a.c.n == nil:
		return ID(a.c.nid), nil
	case b.c.n == nil:
		return ID(b.c.nid), nil
	case a.c.n == b.c.n:
		return 0, nil
	}
	if again {
		was, err := u.readNote(unique)
		if err == nil && was == b.c.n.ino {
			return 0, nil
		}
	}
	if err := errors.Join(u.travel(&a, &b), u.travel(&b, &a)); err != nil {
		return 0, err
	}
	if err := u.writeNote(unique, a.c.n.ino); err != nil {
		return 0, err
	}
	return 0, u.swap(&a, &b)
}

func (u *Union) swap(a, b *end) error {
	if err := unix.Renameat2(a.slot.w.fd, a.slot.w.path, b.slot.w.fd, b.slot.w.path, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	pa, pb := place{a.d, a.name}, place{b.d, b.name}
	hereA, hereB := a.c.n.at == pa, b.c.n.at == pb
	if hereA {
		u.move(a.c.n, pb)
	}
	if hereB {
		u.move(b.c.n, pa)
	}
	return nil
}

// writeNote notes that the exchange unique is about to take ino away from its first
// name. A symbolic link is made and read at once.
func (u *Union) writeNote(unique, ino uint64) error {
	err := unix.Mkdirat(u.work, notesDir, 0o700)
	if err != nil && err != unix.EEXIST {
		return err
	}
	if len(u.notes) >= maxNotes {
		_ = unix.Unlinkat(u.work, u.notes[0], 0)
		u.notes = u.notes[1:]
	}
	name := noteName(unique)
	_ = unix.Unlinkat(u.work, name, 0)
	if err := unix.Symlinkat(strconv.FormatUint(ino, 10), u.work, name); err != nil {
		return err
	}
	u.notes = append(u.notes, name)
	return nil
}

func (u *Union) readNote(unique uint64) (uint64, error) {
	b := make([]byte, 32)
	n, err := unix.Readlinkat(u.work, noteName(unique), b)
	if err != nil {
		return 0, err
	}
	ino, err := strconv.ParseUint(string(b[:n]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("note of an exchange: %w", err)
	}
	return ino, nil
}

func noteName(unique uint64) string { return notesDir + "/" + strconv.FormatUint(unique, 10) }
