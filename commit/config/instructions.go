package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/docker/go-connections/nat"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/sys/signal"
)

// allowed are the instructions that change nothing but a config.
const allowed = "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR"

// runFields are the fields of config that are read or edited here.
var runFields = []string{
	"ArgsEscaped", "Cmd", "Entrypoint", "Env", "ExposedPorts", "Healthcheck", "Labels",
	"OnBuild", "Shell", "StopSignal", "User", "Volumes", "WorkingDir",
}

// editRun carries out instructions on the object config, which says how
// containers run.
func editRun(top *object, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	system, err := top.text("os")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}
	if system == "windows" {
		return fmt.Errorf("%w: the image is for Windows, where instructions mean other things", ErrInstruction)
	}
	fields, err := top.object("config")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}
	if fields == nil {
		fields = &object{path: "config", values: map[string]json.RawMessage{}}
	}
	if err := fields.exactly(runFields...); err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}
	r := run{fields: fields}
	for _, line := range lines {
		if err := r.do(line); errors.Is(err, ErrBase) {
			return err
		} else if err != nil {
			return fmt.Errorf("%w %.200q: %w", ErrInstruction, line, err)
		}
	}
	return top.put("config", fields)
}

// run is the object config while instructions change it.
type run struct {
	fields *object
	cmdSet bool // by one of the instructions
}

// do carries out one instruction. Errors that are not ErrBase are the
// instruction's.
func (r *run) do(line string) error {
	if err := checkText(line); err != nil {
		return err
	}
	res, err := parser.Parse(strings.NewReader(line))
	if err != nil {
		return err
	}
	if n := len(res.AST.Children); n != 1 {
		return fmt.Errorf("%d instructions where one is wanted", n)
	}
	node := res.AST.Children[0]
	name := strings.ToUpper(node.Value)
	if !slices.Contains(strings.Split(allowed, ", "), name) {
		return fmt.Errorf("%.40q is not one of %s", name, allowed)
	}
	cmd, err := instructions.ParseCommand(node)
	if err != nil {
		return err
	}

	_, env, err := r.texts("Env")
	if err != nil {
		return err
	}
	lex, vars := shell.NewLex(res.EscapeToken), shell.EnvsFromSlice(env)
	if c, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
		err := c.Expand(func(word string) (string, error) {
			s, _, err := lex.ProcessWord(word, vars)
			return s, err
		})
		if err != nil {
			return err
		}
	}
	if c, ok := cmd.(*instructions.ExposeCommand); ok {
		// The only instruction in which a variable can become several words.
		var ports []string
		for _, p := range c.Ports {
			words, err := lex.ProcessWords(p, vars)
			if err != nil {
				return err
			}
			ports = append(ports, words...)
		}
		c.Ports = ports
	}
	return r.dispatch(cmd)
}

func (r *run) dispatch(cmd instructions.Command) error {
	switch c := cmd.(type) {
	case *instructions.CmdCommand:
		r.cmdSet = true
		return r.setCommand("Cmd", c.ShellDependantCmdLine)
	case *instructions.EntrypointCommand:
		if !r.cmdSet {
			// It was made for the entrypoint that goes.
			r.fields.remove("Cmd")
		}
		return r.setCommand("Entrypoint", c.ShellDependantCmdLine)
	case *instructions.EnvCommand:
		return r.setEnv(c.Env)
	case *instructions.ExposeCommand:
		ports, _, err := nat.ParsePortSpecs(c.Ports)
		if err != nil {
			return err
		}
		var keys []string
		for p := range ports {
			keys = append(keys, string(p))
		}
		slices.Sort(keys)
		return r.add("ExposedPorts", keys)
	case *instructions.HealthCheckCommand:
		return r.fields.encode("Healthcheck", c.Health)
	case *instructions.LabelCommand:
		return r.setLabels(c.Labels)
	case *instructions.OnbuildCommand:
		triggers, _, err := r.texts("OnBuild")
		if err != nil {
			return err
		}
		trigger, err := encode(c.Expression)
		if err != nil {
			return err
		}
		return r.fields.encode("OnBuild", append(triggers, trigger))
	case *instructions.ShellCommand:
		return r.fields.encode("Shell", c.Shell)
	case *instructions.StopSignalCommand:
		// ParseSignal takes any number. Linux has 64 signals.
		if s, err := signal.ParseSignal(c.Signal); err != nil || s < 1 || s > 64 {
			return fmt.Errorf("%.40q is no signal", c.Signal)
		}
		return r.fields.encode("StopSignal", c.Signal)
	case *instructions.UserCommand:
		return r.fields.encode("User", c.User)
	case *instructions.VolumeCommand:
		if slices.Contains(c.Volumes, "") {
			return errors.New("the path of a volume is empty")
		}
		return r.add("Volumes", c.Volumes)
	case *instructions.WorkdirCommand:
		return r.setWorkdir(c.Path)
	}
	return fmt.Errorf("%s is not one of %s", cmd.Name(), allowed)
}

// setCommand sets Cmd or Entrypoint.
func (r *run) setCommand(key string, c instructions.ShellDependantCmdLine) error {
	// It says how a Windows image's command line is to be read; Docker clears it.
	r.fields.remove("ArgsEscaped")
	args := c.CmdLine
	if c.PrependShell && args != nil {
		_, sh, err := r.texts("Shell")
		if err != nil {
			return err
		}
		if len(sh) == 0 {
			sh = []string{"/bin/sh", "-c"}
		}
		args = slices.Concat(sh, args)
	}
	if len(args) == 0 {
		r.fields.remove(key)
		return nil
	}
	return r.fields.encode(key, args)
}

func (r *run) setEnv(vars []instructions.KeyValuePair) error {
	entries, texts, err := r.texts("Env")
	if err != nil {
		return err
	}
	for _, v := range vars {
		if v.Key == "" {
			return errors.New("the name of a variable is empty")
		}
		i := slices.IndexFunc(texts, func(s string) bool {
			name, _, _ := strings.Cut(s, "=")
			return name == v.Key
		})
		if i < 0 {
			i = len(texts)
			entries, texts = append(entries, nil), append(texts, "")
		}
		texts[i] = v.String()
		if entries[i], err = encode(texts[i]); err != nil {
			return err
		}
	}
	return r.fields.encode("Env", entries)
}

func (r *run) setLabels(pairs []instructions.KeyValuePair) error {
	labels, err := r.object("Labels")
	if err != nil {
		return err
	}
	for _, k := range labels.keys {
		if _, err := text(labels.at(k), labels.values[k]); err != nil {
			return fmt.Errorf("%w: %w", ErrBase, err)
		}
	}
	for _, p := range pairs {
		if p.Key == "" {
			return errors.New("the name of a label is empty")
		}
		if err := labels.encode(p.Key, p.Value); err != nil {
			return err
		}
	}
	return r.fields.put("Labels", labels)
}

func (r *run) setWorkdir(dir string) error {
	if dir == "" {
		return errors.New("the path is empty")
	}
	now, err := r.fields.text("WorkingDir")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", now, dir)
	}
	return r.fields.encode("WorkingDir", path.Clean(dir))
}

// add adds keys to an object that is used as a set. Those that it has keep their
// values.
func (r *run) add(key string, members []string) error {
	set, err := r.object(key)
	if err != nil {
		return err
	}
	for _, m := range members {
		if _, ok := set.values[m]; !ok {
			set.set(m, json.RawMessage("{}"))
		}
	}
	return r.fields.put(key, set)
}

// texts returns an array of strings, as it stands and decoded.
func (r *run) texts(key string) (list, []string, error) {
	l, err := r.fields.list(key)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrBase, err)
	}
	s, err := l.texts(r.fields.at(key))
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrBase, err)
	}
	return l, s, nil
}

// object returns an object, which is empty if there was none.
func (r *run) object(key string) (*object, error) {
	o, err := r.fields.object(key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBase, err)
	}
	if o == nil {
		o = &object{path: r.fields.at(key), values: map[string]json.RawMessage{}}
	}
	return o, nil
}
