package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/commit/config"
)

const (
	layer1 = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	layer2 = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	added  = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 500, time.UTC)

// edited returns what Apply makes of an edit that must work.
func edited(t *testing.T, base string, e config.Edit) string {
	t.Helper()
	raw := []byte(base)
	out, err := config.Apply(raw, e)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw) != base {
		t.Error("Apply changed its input")
	}
	return string(out)
}

// The document as a whole: time, author, layer, history, and the order of keys.
func TestApply(t *testing.T) {
	const base = `{"architecture":"arm64","os":"linux","created":"2020-01-01T00:00:00Z","author":"them",` +
		`"rootfs":{"type":"layers","diff_ids":["` + layer1 + `"]},"history":[{"created_by":"base"}]}`
	for name, test := range map[string]struct {
		base string
		edit config.Edit
		want string
	}{
		"a layer": {
			base: base,
			edit: config.Edit{Author: "me & you <m@y>", Created: noon, CreatedBy: "lamina commit", Comment: "why", DiffID: added},
			want: `{"architecture":"arm64","os":"linux","created":"2026-11-24T12:00:00.0000005Z","author":"me & you <m@y>",` +
				`"rootfs":{"type":"layers","diff_ids":["` + layer1 + `","` + added + `"]},"history":[{"created_by":"base"},` +
				`{"created":"2026-11-24T12:00:00.0000005Z","created_by":"lamina commit","author":"me & you <m@y>","comment":"why"}]}`,
		},
		"no layer, and the author stays": {
			base: base,
			edit: config.Edit{Created: noon.In(time.FixedZone("", 3600)), CreatedBy: "x"},
			want: `{"architecture":"arm64","os":"linux","created":"2026-11-24T12:00:00.0000005Z","author":"them",` +
				`"rootfs":{"type":"layers","diff_ids":["` + layer1 + `"]},"history":[{"created_by":"base"},` +
				`{"created":"2026-11-24T12:00:00.0000005Z","created_by":"x","empty_layer":true}]}`,
		},
		"no time": {
			base: base,
			edit: config.Edit{DiffID: added},
			want: `{"architecture":"arm64","os":"linux","author":"them",` +
				`"rootfs":{"type":"layers","diff_ids":["` + layer1 + `","` + added + `"]},"history":[{"created_by":"base"},{}]}`,
		},
		"a base of nothing": {
			base: `{"rootfs":{"type":"layers","diff_ids":null}}`,
			edit: config.Edit{Created: noon, DiffID: added},
			want: `{"rootfs":{"type":"layers","diff_ids":["` + added + `"]},"history":[{"created":"2026-11-24T12:00:00.0000005Z"}],` +
				`"created":"2026-11-24T12:00:00.0000005Z"}`,
		},
		"still nothing": {
			base: `{"rootfs":{"type":"layers"},"config":null}`,
			want: `{"rootfs":{"type":"layers","diff_ids":[]},"config":null,"history":[{"empty_layer":true}]}`,
		},
		"a history shorter than the layers": {
			base: `{"rootfs":{"type":"layers","diff_ids":["` + layer1 + `","` + layer2 + `"]},"history":[{"created_by":"one","empty_layer":true}]}`,
			edit: config.Edit{DiffID: added},
			want: `{"rootfs":{"type":"layers","diff_ids":["` + layer1 + `","` + layer2 + `","` + added + `"]},` +
				`"history":[{"created_by":"one","empty_layer":true},{}]}`,
		},
		"squashed": {
			base: `{"rootfs":{"diff_ids":["` + layer1 + `","` + layer2 + `"],"type":"layers"},` +
				`"history":[{"x":1.50,"created_by":"one"},{"empty_layer":true},{"empty_layer":false,"y":[ ]}]}`,
			edit: config.Edit{DiffID: added, Squash: true, CreatedBy: "all"},
			want: `{"rootfs":{"diff_ids":["` + added + `"],"type":"layers"},` +
				`"history":[{"x":1.50,"created_by":"one","empty_layer":true},{"empty_layer":true},{"empty_layer":true,"y":[]},{"created_by":"all"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := edited(t, test.base, test.edit); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A config as Docker wrote it in 2017, with fields of its own at every level,
// numbers that float64 cannot hold, and escapes.
func TestUnknownFieldsSurvive(t *testing.T) {
	raw, err := os.ReadFile("testdata/docker-2017.json")
	if err != nil {
		t.Fatal(err)
	}
	e := config.Edit{
		Instructions: []string{`LABEL new=1`, `ENV LANG=C`, `EXPOSE 80`, `VOLUME /data`, `USER web`},
		Author:       "me", Created: noon, DiffID: added,
	}
	out := edited(t, string(raw), e)

	var before, after map[string]json.RawMessage
	decode(t, string(raw), &before)
	decode(t, out, &after)
	for k, v := range before {
		switch k {
		case "created", "author", "config", "rootfs", "history":
			continue
		}
		same(t, k, after[k], v)
	}
	for _, parent := range []string{"config", "rootfs"} {
		var b, a map[string]json.RawMessage
		decode(t, string(before[parent]), &b)
		decode(t, string(after[parent]), &a)
		for k, v := range b {
			switch k {
			case "Labels", "Env", "ExposedPorts", "Volumes", "User", "diff_ids":
				continue
			}
			same(t, parent+"."+k, a[k], v)
		}
	}
	// Values keep their escapes; keys are written anew.
	for _, keeps := range []string{
		`"big":12345678901234567890123`, `"com.example.<html>":"\ud83d\ude00 & <b>"`, `"8080/tcp":{"why":1e2}`,
		`"PATH=/usr/bin:\u002fbin"`, `"x-note":"kept"`,
	} {
		if !strings.Contains(out, keeps) {
			t.Errorf("%s is not in %s", keeps, out)
		}
	}
	if again := edited(t, string(raw), e); again != out {
		t.Error("the same input gave other bytes")
	}
	var img ocispec.Image
	decode(t, out, &img)
	if img.Config.Labels["new"] != "1" || img.Config.User != "web" || len(img.RootFS.DiffIDs) != 3 {
		t.Errorf("edited: %+v", img)
	}
}

func decode(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, name string, got, want json.RawMessage) {
	t.Helper()
	var g, w bytes.Buffer
	if err := errors.Join(json.Compact(&g, got), json.Compact(&w, want)); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if g.String() != w.String() {
		t.Errorf("%s: got %s, want %s", name, &g, &w)
	}
}

// A malformed base is an error that names the field.
func TestMalformedBase(t *testing.T) {
	const fs = `"rootfs":{"type":"layers","diff_ids":[]}`
	all := []string{
		"CMD x", "ENV a=b", "EXPOSE 80", "LABEL a=b", "VOLUME /v", "WORKDIR w", "ONBUILD RUN x",
	}
	for base, want := range map[string]string{
		``:                              "unexpected end",
		`{` + fs + `} {}`:               "after top-level value",
		`[]`:                            "the document is not an object",
		`null`:                          "the document is not an object",
		`{}`:                            "rootfs is missing",
		`{"rootfs":null}`:               "rootfs is missing",
		`{"rootfs":[]}`:                 "rootfs is not an object",
		`{"Rootfs":{}}`:                 "Rootfs must be written rootfs",
		`{` + fs + `,` + fs + `}`:       "rootfs is there twice",
		`{"rootfs":{"type":1}}`:         "rootfs.type is not a string",
		`{"rootfs":{"type":"windows"}}`: `rootfs.type is "windows"`,
		`{"rootfs":{"diff_ids":[]}}`:    `rootfs.type is ""`,
		`{"rootfs":{"type":"layers","diff_ids":{}}}`:      "rootfs.diff_ids is not an array",
		`{"rootfs":{"type":"layers","diff_ids":[7]}}`:     "rootfs.diff_ids[0] is not a string",
		`{"rootfs":{"type":"layers","diff_ids":["abc"]}}`: `rootfs.diff_ids[0] is "abc"`,
		`{"rootfs":{"type":"layers","Diff_IDs":[]}}`:      "rootfs.Diff_IDs must be written diff_ids",
		`{` + fs + `,"history":{}}`:                       "history is not an array",
		`{` + fs + `,"history":[null]}`:                   "history[0] is not an object",
		`{` + fs + `,"history":[{"empty_layer":1}]}`:      "history[0].empty_layer is not true or false",
		`{` + fs + `,"history":[{}]}`:                     "history has entries for 1 layers, and rootfs.diff_ids has 0",
		`{` + fs + `,"os":1}`:                             "os is not a string",
		`{` + fs + `,"config":1}`:                         "config is not an object",
		`{` + fs + `,"config":{"env":[]}}`:                "config.env must be written Env",
		`{` + fs + `,"config":{"Env":{}}}`:                "config.Env is not an array",
		`{` + fs + `,"config":{"Env":["a=b",null]}}`:      "config.Env[1] is not a string",
		`{` + fs + `,"config":{"Shell":"sh"}}`:            "config.Shell is not an array",
		`{` + fs + `,"config":{"ExposedPorts":[]}}`:       "config.ExposedPorts is not an object",
		`{` + fs + `,"config":{"Volumes":"v"}}`:           "config.Volumes is not an object",
		`{` + fs + `,"config":{"Labels":{"a":1}}}`:        "config.Labels.a is not a string",
		`{` + fs + `,"config":{"WorkingDir":[]}}`:         "config.WorkingDir is not a string",
		`{` + fs + `,"config":{"OnBuild":[[]]}}`:          "config.OnBuild[0] is not a string",
	} {
		_, err := config.Apply([]byte(base), config.Edit{Instructions: all})
		if !errors.Is(err, config.ErrBase) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", base, err, want)
		}
	}
}

// What the caller gives besides instructions is checked too.
func TestBadEdit(t *testing.T) {
	const base = `{"rootfs":{"type":"layers","diff_ids":[]}}`
	for want, e := range map[string]config.Edit{
		`diff ID "abc"`:           {DiffID: "abc"},
		`diff ID "sha256:00"`:     {DiffID: "sha256:00"},
		`diff ID "blake3:00"`:     {DiffID: "blake3:00"},
		"the new layer's diff ID": {Squash: true},
		`"\xff" is not UTF-8`:     {Author: "\xff"},
		`"\xfe" is not UTF-8`:     {Comment: "\xfe"},
		`"\xfd" is not UTF-8`:     {CreatedBy: "\xfd"},
		"year outside of range":   {Created: noon.AddDate(10000, 0, 0)},
	} {
		_, err := config.Apply([]byte(base), e)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", e, err, want)
		}
		if errors.Is(err, config.ErrBase) {
			t.Errorf("%+v: the base is blamed: %v", e, err)
		}
	}
}

// FuzzApply edits any document by any instruction: it must not panic, and what
// comes out must be a config that differs in nothing but what is edited.
func FuzzApply(f *testing.F) {
	base := `{"os":"linux","x":[1e400,"\ud800"],"config":{"Env":["A=1"],"Cmd":["x"],"y":{}},` +
		`"rootfs":{"type":"layers","diff_ids":["` + layer1 + `"]},"history":[{}]}`
	for _, line := range []string{
		`CMD ["a","b"]`, `ENTRYPOINT a $A`, `ENV B=${A:-2} C="v 2"`, `ENV K V`, `EXPOSE $A 80-82/udp`, `LABEL a=b`, `USER u`,
		`VOLUME ["/x"]`, `WORKDIR w`, `HEALTHCHECK --interval=5s CMD x`, `STOPSIGNAL 9`, `ONBUILD RUN <<E`, `SHELL ["s"]`,
		"# escape=`\nENV A=`B", `RUN x`, "", "\\", `ENV A=${A//\`,
	} {
		f.Add([]byte(base), line, true)
	}
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":[]},"config":{"Labels":{"a":null}}}`), `LABEL a=b`, false)
	f.Add([]byte(`{"rootfs":null}`), `LABEL a=b`, false)
	f.Fuzz(func(t *testing.T, base []byte, line string, squash bool) {
		e := config.Edit{Instructions: []string{line}, Created: noon, DiffID: digest.Digest(added), Squash: squash}
		out, err := config.Apply(base, e)
		again, errAgain := config.Apply(base, e)
		if !bytes.Equal(out, again) || (err == nil) != (errAgain == nil) {
			t.Fatalf("two answers: %s, %v and %s, %v", out, err, again, errAgain)
		}
		if err != nil {
			return
		}
		var before, after map[string]any
		decodeNumbers(t, base, &before)
		decodeNumbers(t, out, &after)
		for _, k := range []string{"created", "author", "config", "rootfs", "history"} {
			delete(before, k)
			delete(after, k)
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s became %s", base, out)
		}
		if _, err := config.Apply(out, config.Edit{DiffID: digest.Digest(added)}); err != nil {
			t.Errorf("%s cannot be edited again: %v", out, err)
		}
	})
}

func decodeNumbers(t *testing.T, b []byte, v any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		t.Fatal(err)
	}
}
