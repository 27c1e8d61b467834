package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/laminafs/lamina/commit/config"
)

// wrap makes a config document of the object config.
func wrap(run string) string {
	return `{"os":"linux","config":` + run + `,"rootfs":{"type":"layers","diff_ids":[]}}`
}

// instructionTest is what instructions make of the object config. The expected
// values are what moby's builder makes of it (see doc.go), written as Docker's
// containerd image store writes it: without empty lists.
type instructionTest struct {
	base  string
	lines []string
	want  string
}

func testInstructions(t *testing.T, tests map[string]instructionTest) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := edited(t, wrap(test.base), config.Edit{Instructions: test.lines})
			want := strings.TrimSuffix(wrap(test.want), "}") + `,"history":[{"empty_layer":true}]}`
			if got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestCommands(t *testing.T) {
	testInstructions(t, map[string]instructionTest{
		"CMD exec":                 {`{"Cmd":["sh"]}`, []string{`CMD ["a","b c","<$HOME>"]`}, `{"Cmd":["a","b c","<$HOME>"]}`},
		"CMD shell":                {`{}`, []string{`CMD echo "$HOME"  a`}, `{"Cmd":["/bin/sh","-c","echo \"$HOME\"  a"]}`},
		"CMD by the image's shell": {`{"Shell":["bash","-ec"]}`, []string{`CMD a b`}, `{"Shell":["bash","-ec"],"Cmd":["bash","-ec","a b"]}`},
		"CMD of single quotes is no list": {
			`{}`, []string{`CMD ['a']`}, `{"Cmd":["/bin/sh","-c","['a']"]}`,
		},
		"CMD empty":            {`{"Cmd":["sh"],"Tty":false}`, []string{`CMD []`}, `{"Tty":false}`},
		"CMD clears":           {`{"ArgsEscaped":true,"Cmd":["sh"]}`, []string{`CMD ["a"]`}, `{"Cmd":["a"]}`},
		"CMD twice":            {`{}`, []string{`CMD ["a"]`, `CMD ["b"]`}, `{"Cmd":["b"]}`},
		"CMD keeps Entrypoint": {`{"Entrypoint":["e"]}`, []string{`CMD ["a"]`}, `{"Entrypoint":["e"],"Cmd":["a"]}`},
		"lower case":           {`{}`, []string{`cmd ["a"]`}, `{"Cmd":["a"]}`},
		"continued":            {`{}`, []string{"CMD a \\\n  b"}, `{"Cmd":["/bin/sh","-c","a   b"]}`},

		"ENTRYPOINT exec":         {`{"Cmd":["c"]}`, []string{`ENTRYPOINT ["e"]`}, `{"Entrypoint":["e"]}`},
		"ENTRYPOINT shell":        {`{"Cmd":["c"]}`, []string{`ENTRYPOINT e f`}, `{"Entrypoint":["/bin/sh","-c","e f"]}`},
		"ENTRYPOINT after CMD":    {`{"Cmd":["c"]}`, []string{`CMD ["d"]`, `ENTRYPOINT ["e"]`}, `{"Cmd":["d"],"Entrypoint":["e"]}`},
		"ENTRYPOINT before CMD":   {`{"Cmd":["c"]}`, []string{`ENTRYPOINT ["e"]`, `CMD ["d"]`}, `{"Entrypoint":["e"],"Cmd":["d"]}`},
		"ENTRYPOINT empty":        {`{"Cmd":["c"],"Entrypoint":["e"]}`, []string{`ENTRYPOINT []`}, `{}`},
		"ENTRYPOINT of SHELL":     {`{}`, []string{`SHELL ["zsh","-c"]`, `ENTRYPOINT e`}, `{"Shell":["zsh","-c"],"Entrypoint":["zsh","-c","e"]}`},
		"ENTRYPOINT without args": {`{"Entrypoint":["e"]}`, []string{`ENTRYPOINT`}, `{}`},
	})
}

func TestEnv(t *testing.T) {
	testInstructions(t, map[string]instructionTest{
		"ENV in place": {`{"Env":["A=1","B=2","C=3"]}`, []string{`ENV B=x D="v 4"`}, `{"Env":["A=1","B=x","C=3","D=v 4"]}`},
		"ENV old form": {`{}`, []string{`ENV K a  b = c`}, `{"Env":["K=a  b = c"]}`},
		"ENV expands":  {`{"Env":["PATH=/bin"]}`, []string{`ENV PATH=/x:$PATH Q='$PATH' R=\$PATH`}, `{"Env":["PATH=/x:/bin","Q=$PATH","R=$PATH"]}`},
		"ENV of before the line": {
			`{"Env":["A=1"]}`, []string{`ENV A=2 B=$A`, `ENV C=$A`}, `{"Env":["A=2","B=1","C=2"]}`,
		},
		"ENV defaults":            {`{"Env":["E="]}`, []string{`ENV A=${E:-d} B=${N-d} C=${E-d} D=${N:+d}$N`}, `{"Env":["E=","A=d","B=d","C=","D="]}`},
		"ENV is case-sensitive":   {`{"Env":["path=1"]}`, []string{`ENV PATH=2`}, `{"Env":["path=1","PATH=2"]}`},
		"ENV without equals sign": {`{"Env":["A"]}`, []string{`ENV A=1`}, `{"Env":["A=1"]}`},
		"ENV twice in the base":   {`{"Env":["A=1","A=2"]}`, []string{`ENV A=3`}, `{"Env":["A=3","A=2"]}`},
		"ENV keeps escapes":       {`{"Env":["A=\u003c\/&<"]}`, []string{`ENV B=<&>`}, `{"Env":["A=\u003c\/&<","B=<&>"]}`},
		"ENV is no null":          {`{"Env":null}`, []string{`ENV B=`}, `{"Env":["B="]}`},
		"escape directive":        {`{"Env":["A=1"]}`, []string{"# escape=`\nENV B=`$A C=\\$A"}, "{\"Env\":[\"A=1\",\"B=$A\",\"C=\\\\1\"]}"},
	})
}

func TestSets(t *testing.T) {
	testInstructions(t, map[string]instructionTest{
		"EXPOSE adds":      {`{"ExposedPorts":{"22/tcp":{}}}`, []string{`EXPOSE 80/TCP 443 53/udp 22`}, `{"ExposedPorts":{"22/tcp":{},"443/tcp":{},"53/udp":{},"80/tcp":{}}}`},
		"EXPOSE range":     {`{}`, []string{`EXPOSE 7000-7002/sctp`}, `{"ExposedPorts":{"7000/sctp":{},"7001/sctp":{},"7002/sctp":{}}}`},
		"EXPOSE variables": {`{"Env":["P=80 443"]}`, []string{`EXPOSE $P`}, `{"Env":["P=80 443"],"ExposedPorts":{"443/tcp":{},"80/tcp":{}}}`},
		"EXPOSE with host": {`{}`, []string{`EXPOSE 8080:80`}, `{"ExposedPorts":{"80/tcp":{}}}`},

		"LABEL merges":   {`{"Labels":{"b":"1","a":"2"}}`, []string{`LABEL a=x "c d"="e f" b.c=`}, `{"Labels":{"b":"1","a":"x","c d":"e f","b.c":""}}`},
		"LABEL old form": {`{}`, []string{`LABEL a b c`}, `{"Labels":{"a":"b c"}}`},
		"LABEL expands":  {`{"Env":["V=3"]}`, []string{`LABEL v=$V w='$V'`}, `{"Env":["V=3"],"Labels":{"v":"3","w":"$V"}}`},
		"LABEL is null":  {`{"Labels":null}`, []string{`LABEL a=<b>`}, `{"Labels":{"a":"<b>"}}`},

		"VOLUME":                           {`{"Volumes":{"/a":{}}}`, []string{`VOLUME /b /a /c`}, `{"Volumes":{"/a":{},"/b":{},"/c":{}}}`},
		"VOLUME list":                      {`{}`, []string{`VOLUME ["/x y", "/z"]`}, `{"Volumes":{"/x y":{},"/z":{}}}`},
		"VOLUME whose list comes too late": {`{}`, []string{`VOLUME /v ["/x"]`}, `{"Volumes":{"/v":{},"[/x]":{}}}`},
	})
}

func TestOthers(t *testing.T) {
	testInstructions(t, map[string]instructionTest{
		"USER":         {`{"User":"root","Env":["U=7"]}`, []string{`USER web:$U`}, `{"User":"web:7","Env":["U=7"]}`},
		"USER of none": {`{"User":"root"}`, []string{`USER $NONE`}, `{"User":""}`},

		"WORKDIR":          {`{"WorkingDir":"/a"}`, []string{`WORKDIR /b/../c/`}, `{"WorkingDir":"/c"}`},
		"WORKDIR relative": {`{"WorkingDir":"/a"}`, []string{`WORKDIR b`, `WORKDIR ../c d`}, `{"WorkingDir":"/a/c d"}`},
		"WORKDIR of root":  {`{}`, []string{`WORKDIR b`}, `{"WorkingDir":"/b"}`},
		"WORKDIR expands":  {`{"Env":["H=/h"]}`, []string{`WORKDIR $H/x`}, `{"Env":["H=/h"],"WorkingDir":"/h/x"}`},

		"HEALTHCHECK": {
			`{"Healthcheck":{"Test":["CMD","old"],"Interval":1,"x":2}}`,
			[]string{`HEALTHCHECK --interval=5s --timeout=1m30s --start-period=2ms --start-interval=1h --retries=3 CMD curl -f "$URL"`},
			`{"Healthcheck":{"Test":["CMD-SHELL","curl -f \"$URL\""],"Interval":5000000000,"Timeout":90000000000,` +
				`"StartPeriod":2000000,"StartInterval":3600000000000,"Retries":3}}`,
		},
		"HEALTHCHECK exec": {`{}`, []string{`HEALTHCHECK CMD ["a","b"]`}, `{"Healthcheck":{"Test":["CMD","a","b"]}}`},
		"HEALTHCHECK NONE": {`{"Healthcheck":{"Test":["CMD","a"],"Retries":1}}`, []string{`HEALTHCHECK none`}, `{"Healthcheck":{"Test":["NONE"]}}`},

		"STOPSIGNAL":        {`{"StopSignal":"SIGTERM"}`, []string{`STOPSIGNAL SIGRTMIN+3`}, `{"StopSignal":"SIGRTMIN+3"}`},
		"STOPSIGNAL number": {`{"Env":["S=9"]}`, []string{`STOPSIGNAL $S`}, `{"Env":["S=9"],"StopSignal":"9"}`},
		"STOPSIGNAL short":  {`{}`, []string{`STOPSIGNAL quit`}, `{"StopSignal":"quit"}`},
		"ONBUILD":           {`{"OnBuild":["ADD a b"]}`, []string{`ONBUILD RUN  make $X && <x>`, `onbuild COPY . /`}, `{"OnBuild":["ADD a b","RUN  make $X && <x>","COPY . /"]}`},
		"SHELL":             {`{"Shell":["a"]}`, []string{`SHELL ["/bin/bash", "-c"]`}, `{"Shell":["/bin/bash","-c"]}`},

		"config is null":  {`null`, []string{`USER u`}, `{"User":"u"}`},
		"no instructions": {`{"Cmd":null,"env":1}`, nil, `{"Cmd":null,"env":1}`},
	})
}

// A document without config gets one.
func TestInstructionsWithoutConfig(t *testing.T) {
	got := edited(t, `{"rootfs":{"type":"layers","diff_ids":[]}}`, config.Edit{Instructions: []string{"USER u"}})
	if !strings.Contains(got, `"config":{"User":"u"}`) {
		t.Error(got)
	}
}

// An instruction that is wrong is quoted, and the base is not blamed.
func TestBadInstructions(t *testing.T) {
	const base = `{"Env":["A=1"],"OnBuild":[]}`
	for line, want := range map[string]string{
		`RUN make`:                         `"RUN" is not one of CMD, ENTRYPOINT, ENV,`,
		`COPY a b`:                         `"COPY" is not one of`,
		`ADD a b`:                          `"ADD" is not one of`,
		`FROM scratch`:                     `"FROM" is not one of`,
		`ARG a`:                            `"ARG" is not one of`,
		`MAINTAINER me`:                    `"MAINTAINER" is not one of`,
		`FOO`:                              `"FOO" is not one of`,
		``:                                 "no instructions",
		`# comment`:                        "no instructions",
		"LABEL a=b\nUSER root":             "2 instructions where one is wanted",
		"USER \xff":                        "not UTF-8",
		`CMD [1]`:                          "arrays must be comprised of strings only",
		`CMD --x a`:                        "unknown flag",
		`ENV`:                              "at least one argument",
		`ENV A`:                            "must have two arguments",
		`ENV A=1 B`:                        "can't find = in",
		`ENV =x`:                           "names can not be blank",
		`ENV $NONE=x`:                      "the name of a variable is empty",
		`ENV B=${A`:                        "failed to process",
		`ENV B=${NONE:?needed}`:            "needed",
		`LABEL`:                            "at least one argument",
		`LABEL $NONE=x`:                    "the name of a label is empty",
		`EXPOSE`:                           "at least one argument",
		`EXPOSE http`:                      "invalid containerPort: http",
		`EXPOSE 65536`:                     "invalid containerPort",
		`EXPOSE 80/xyz`:                    "invalid proto: xyz",
		`EXPOSE 9-8`:                       "invalid containerPort",
		`USER`:                             "exactly one argument",
		`VOLUME`:                           "at least one argument",
		`VOLUME [""]`:                      "can not be an empty string",
		`VOLUME $NONE`:                     "the path of a volume is empty",
		`WORKDIR`:                          "exactly one argument",
		`WORKDIR $NONE`:                    "the path is empty",
		`HEALTHCHECK`:                      "at least one argument",
		`HEALTHCHECK RUN x`:                "Unknown type",
		`HEALTHCHECK NONE x`:               "takes no arguments",
		`HEALTHCHECK CMD`:                  "Missing command",
		`HEALTHCHECK --interval=5 CMD x`:   "missing unit",
		`HEALTHCHECK --interval=1us CMD x`: "cannot be less than",
		`HEALTHCHECK --retries=-1 CMD x`:   "retries",
		`STOPSIGNAL SIGFOO`:                `"SIGFOO" is no signal`,
		`STOPSIGNAL 0`:                     `"0" is no signal`,
		`STOPSIGNAL 65`:                    `"65" is no signal`,
		`STOPSIGNAL -9`:                    `"-9" is no signal`,
		`STOPSIGNAL`:                       "exactly one argument",
		`ONBUILD`:                          "at least one argument",
		`ONBUILD ONBUILD RUN x`:            "ONBUILD ONBUILD",
		`ONBUILD from x`:                   "FROM isn't allowed as an ONBUILD trigger",
		`SHELL bash -c`:                    "JSON form",
		`SHELL []`:                         "at least one argument",
	} {
		_, err := config.Apply([]byte(wrap(base)), config.Edit{Instructions: []string{"USER u", line}})
		if !errors.Is(err, config.ErrInstruction) || errors.Is(err, config.ErrBase) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", line, err, want)
		}
	}
	windows := strings.Replace(wrap(base), "linux", "windows", 1)
	if _, err := config.Apply([]byte(windows), config.Edit{Instructions: []string{"USER u"}}); !errors.Is(err, config.ErrInstruction) {
		t.Errorf("an image for Windows: %v", err)
	}
	edited(t, windows, config.Edit{DiffID: added})
}
