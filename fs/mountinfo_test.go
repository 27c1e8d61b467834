package fs

import (
	"errors"
	"strings"
	"testing"
)

const mountinfoSample = `21 26 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 26 0:33 / /mnt/with\040space\011tab\012line\134back rw - fuse.lamina nginx:1.27 ro,user_id=0
31 26 0:34 / /mnt ro,relatime shared:1 master:2 propagate_from:3 - erofs /var/lib/lamina/chains/ab\040c/merged.erofs ro
32 26 0:35 / /mnt rw - tmpfs  rw
33 26 0:36 /sub /a rw -  none rw
`

func TestParseMountinfo(t *testing.T) {
	mounts, err := parseMountinfo(strings.NewReader(mountinfoSample))
	if err != nil {
		t.Fatal(err)
	}
	want := []MountInfo{
		{21, 26, "0:20", "/", "/sys", "rw,nosuid", "sysfs", "sysfs", "rw"},
		{30, 26, "0:33", "/", "/mnt/with space\ttab\nline\\back", "rw", "fuse.lamina", "nginx:1.27", "ro,user_id=0"},
		{31, 26, "0:34", "/", "/mnt", "ro,relatime", "erofs", "/var/lib/lamina/chains/ab c/merged.erofs", "ro"},
		{32, 26, "0:35", "/", "/mnt", "rw", "tmpfs", "", "rw"},
		{33, 26, "0:36", "/sub", "/a", "rw", "", "none", "rw"},
	}
	if len(mounts) != len(want) {
		t.Fatalf("%d mounts, want %d", len(mounts), len(want))
	}
	for i := range want {
		if mounts[i] != want[i] {
			t.Errorf("line %d:\n got %+v\nwant %+v", i, mounts[i], want[i])
		}
	}
	if m, ok := topMount(mounts, "/mnt"); !ok || m.ID != 32 {
		t.Errorf("top mount: %+v, %v", m, ok)
	}
	if _, ok := topMount(mounts, "/nowhere"); ok {
		t.Error("a mount on /nowhere")
	}
}

func TestParseMountinfoErrors(t *testing.T) {
	for _, line := range []string{"x", "1 2 0:1 / /m rw", "1 2 0:1 / - t s o", "a 2 0:1 / /m rw - t s o", "1 b 0:1 / /m rw - t s o", "1 2 0:1 / /m rw - t"} {
		if _, err := parseMountinfo(strings.NewReader(line)); !errors.Is(err, errMountinfo) {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestMountsOfThisMachine(t *testing.T) {
	mounts, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := topMount(mounts, "/"); !ok {
		t.Error("no mount on /")
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		`plain`: "plain", `a\040b`: "a b", `\134040`: `\040`, `\`: `\`, `\04`: `\04`, `\999`: `\999`, `\777`: `\777`, `end\012`: "end\n",
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	for _, line := range strings.Split(mountinfoSample, "\n") {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMountinfo(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, m := range mounts {
			// What the kernel would write for it must read back the same.
			escape := strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`).Replace
			if got := unescape(escape(m.MountPoint)); got != m.MountPoint {
				t.Errorf("%q came back as %q", m.MountPoint, got)
			}
		}
	})
}

func TestKernelRelease(t *testing.T) {
	for release, want := range map[string]bool{
		"6.12.0": true, "6.18.44-fc-v657": true, "7.0": true, "6.12-rc1": true, "6.11.9": false, "5.15.0": false, "6": false, "": false, "x.y": false,
	} {
		if got := atLeast(release, 6, 12); got != want {
			t.Errorf("atLeast(%q) = %v", release, got)
		}
	}
}

func TestEscapeOption(t *testing.T) {
	if got := escapeOption(`a,b\c`); got != `a\,b\\c` {
		t.Error(got)
	}
}
