package main

import (
	"reflect"
	"testing"
)

func TestIntersperse(t *testing.T) {
	app := newApp()
	for _, tt := range []struct{ in, want []string }{
		{[]string{"lamina"}, []string{"lamina"}},
		{
			[]string{"lamina", "mount", "img", "dir", "--engine", "fuse"},
			[]string{"lamina", "mount", "--engine", "fuse", "img", "dir"},
		},
		{
			[]string{"lamina", "--root", "/r", "mount", "img", "-f", "dir", "--engine=kernel"},
			[]string{"lamina", "--root", "/r", "mount", "-f", "--engine=kernel", "img", "dir"},
		},
		{
			[]string{"lamina", "mount", "--", "-img", "dir"},
			[]string{"lamina", "mount", "--", "-img", "dir"},
		},
		{[]string{"lamina", "nonsense", "--x"}, []string{"lamina", "nonsense", "--x"}},
	} {
		if got := intersperse(app, tt.in); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("intersperse(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "1k": 1024, "1K": 1024, "1.5M": 3 << 19, "20G": 20 << 30,
		"20GiB": 20 << 30, "7GB": 7 << 30, "1T": 1 << 40,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "-1", "1X", "NaN", "9999999999T"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", in, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB", 1000 << 20: "1.0 GiB",
		300 << 20: "300 MiB", 5 << 40: "5.0 TiB",
	} {
		if got := formatSize(in); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", in, got, want)
		}
	}
}
