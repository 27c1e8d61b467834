package fs

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The helper's message names the mount point, which may be called busy itself.
func TestSaysBusy(t *testing.T) {
	for said, want := range map[string]bool{
		"fusermount3: failed to unmount /mnt/x: Device or resource busy\n":       true,
		"fusermount3: failed to unmount /mnt/x: Resource busy\n":                 true,
		"fusermount3: failed to unmount /a: b/busybox: Device or resource busy":  true,
		"fusermount3: failed to unmount /mnt/busybox: Operation not permitted\n": false,
		"fusermount3: failed to unmount /mnt/busy: Invalid argument\n":           false,
		"fusermount3: entry for /mnt/busy not found in /etc/mtab":                false,
		"busy": false, "": false, "fusermount3: /mnt/device or resource busy": false,
	} {
		if got := saysBusy(said); got != want {
			t.Errorf("%q: %v", said, got)
		}
	}
}

// The wait for a busy mount ends with the context, and what takes long counts.
func TestRetryBusy(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	err := retryBusy(ctx, func() error { tries++; cancel(); return unix.EBUSY })
	if !errors.Is(err, unix.EBUSY) || tries != 1 {
		t.Errorf("canceled: %v after %d tries", err, tries)
	}
	tries = 0
	if err := retryBusy(t.Context(), func() error {
		if tries++; tries < 3 {
			return unix.EBUSY
		}
		return nil
	}); err != nil || tries != 3 {
		t.Errorf("free in the end: %v after %d tries", err, tries)
	}
	began := time.Now()
	tries = 0
	err = retryBusy(t.Context(), func() error { tries++; time.Sleep(busyWait / 3); return unix.EBUSY })
	if took := time.Since(began); !errors.Is(err, unix.EBUSY) || took > 2*busyWait || tries < 3 {
		t.Errorf("busy: %v after %d tries in %v", err, tries, took)
	}
}

// Of two who count at the same time one may be lost, or both find more than
// enough: it begins all the same.
func TestQuickBegins(t *testing.T) {
	for _, calm := range []int32{calmEnough - 1, calmEnough, calmMost - 1, calmMost} {
		q := new(quick)
		q.calm.Store(calm)
		now := time.Now()
		q.last.Store(now.UnixNano())
		if !q.note(now, now, true) {
			t.Errorf("%d calm requests and one more: no beginning", calm)
		}
		if q.note(now, now, true) {
			t.Errorf("%d calm requests and two more: it begins twice", calm)
		}
	}
}
