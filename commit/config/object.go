package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// object is a JSON object whose values are kept as they were written, in the
// order of their keys. Decoding into structs would lose fields, and into maps the
// order.
type object struct {
	path   string // of the object in the document, for errors; "" is the document
	keys   []string
	values map[string]json.RawMessage
}

// parseObject parses valid JSON.
func parseObject(path string, raw json.RawMessage) (*object, error) {
	o := &object{path: path, values: map[string]json.RawMessage{}}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.Join(err, fmt.Errorf("%s is not an object", o.name()))
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.name(), err)
		}
		key, _ := t.(string)
		if _, ok := o.values[key]; ok {
			return nil, fmt.Errorf("%s is there twice", o.at(key))
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("%s: %w", o.at(key), err)
		}
		o.set(key, v)
	}
	return o, nil
}

func (o *object) name() string {
	if o.path == "" {
		return "the document"
	}
	return o.path
}

// at returns the path of a value of o.
func (o *object) at(key string) string {
	if len(key) > 100 {
		key = key[:100] + "…"
	}
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

// exactly checks that o has none of the keys in another case: readers that take
// both for the same would disagree with us on which value counts.
func (o *object) exactly(keys ...string) error {
	for _, k := range o.keys {
		for _, want := range keys {
			if k != want && strings.EqualFold(k, want) {
				return fmt.Errorf("%s must be written %s", o.at(k), want)
			}
		}
	}
	return nil
}

// has says whether there is a value but null, which decoders ignore.
func (o *object) has(key string) bool {
	v, ok := o.values[key]
	return ok && string(v) != "null"
}

func (o *object) set(key string, v json.RawMessage) {
	if _, ok := o.values[key]; !ok {
		o.keys = append(o.keys, key)
	}
	o.values[key] = v
}

func (o *object) remove(key string) {
	delete(o.values, key)
	o.keys = slices.DeleteFunc(o.keys, func(k string) bool { return k == key })
}

func (o *object) encode(key string, v any) error {
	raw, err := encode(v)
	if err != nil {
		return err
	}
	o.set(key, raw)
	return nil
}

func (o *object) put(key string, v *object) error {
	raw, err := v.bytes()
	if err != nil {
		return err
	}
	o.set(key, raw)
	return nil
}

// object returns the object at key, or nil if there is none.
func (o *object) object(key string) (*object, error) {
	if !o.has(key) {
		return nil, nil
	}
	return parseObject(o.at(key), o.values[key])
}

// list returns the array at key, or nil if there is none.
func (o *object) list(key string) (list, error) {
	if !o.has(key) {
		return nil, nil
	}
	var l list
	if err := json.Unmarshal(o.values[key], &l); err != nil {
		return nil, fmt.Errorf("%s is not an array", o.at(key))
	}
	return l, nil
}

// text returns the string at key, or "" if there is none.
func (o *object) text(key string) (string, error) {
	if !o.has(key) {
		return "", nil
	}
	return text(o.at(key), o.values[key])
}

// flag returns the boolean at key, or false if there is none.
func (o *object) flag(key string) (b bool, err error) {
	if !o.has(key) {
		return false, nil
	}
	if err := json.Unmarshal(o.values[key], &b); err != nil {
		return false, fmt.Errorf("%s is not true or false", o.at(key))
	}
	return b, nil
}

// bytes returns o as compact JSON.
func (o *object) bytes() (json.RawMessage, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, k := range o.keys {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := encode(k)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		if err := json.Compact(&b, o.values[k]); err != nil {
			return nil, fmt.Errorf("%s: %w", o.at(k), err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// list is a JSON array whose elements are kept as they were written.
type list []json.RawMessage

// texts returns the elements of an array of strings.
func (l list) texts(path string) ([]string, error) {
	var s []string
	for i, raw := range l {
		t, err := text(fmt.Sprintf("%s[%d]", path, i), raw)
		if err != nil {
			return nil, err
		}
		s = append(s, t)
	}
	return s, nil
}

func text(path string, raw json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", fmt.Errorf("%s is not a string", path)
	}
	return *s, nil
}

// encode returns v as JSON. It does not escape the characters of HTML, and leaves
// raw values in v as they are.
func encode(v any) (json.RawMessage, error) {
	if s, ok := v.(string); ok {
		if err := checkText(s); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// checkText refuses what JSON cannot hold: the encoder would replace it silently.
func checkText(s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%.100q is not UTF-8", s)
	}
	return nil
}
