package main

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
)

// text is the configuration as a file that says the same: without what has no
// value.
func (c *config) text() ([]byte, error) {
	b, err := yaml.Marshal(documentOf(reflect.ValueOf(*c)))
	if err != nil {
		return nil, err
	}
	again, err := parseConfig(b)
	if err != nil {
		return nil, err
	}
	if d := differences(c, again); len(d) > 0 {
		return nil, fmt.Errorf("configuration: %v would not be read as it was written", d)
	}
	return b, nil
}

// documentOf keeps the order of fields.
func documentOf(v reflect.Value) any {
	if d, ok := v.Interface().(duration); ok {
		return time.Duration(d).String()
	}
	switch v.Kind() {
	case reflect.Pointer:
		return documentOf(v.Elem())
	case reflect.Struct:
		out := yaml.MapSlice{}
		for i := range v.NumField() {
			if f := v.Field(i); !f.IsZero() {
				out = append(out, yaml.MapItem{Key: v.Type().Field(i).Tag.Get("yaml"), Value: documentOf(f)})
			}
		}
		return out
	case reflect.Slice:
		out := make([]any, v.Len())
		for i := range out {
			out[i] = documentOf(v.Index(i))
		}
		return out
	case reflect.Map:
		out := yaml.MapSlice{}
		named := map[string]reflect.Value{}
		for _, k := range v.MapKeys() {
			named[k.String()] = v.MapIndex(k)
		}
		for _, name := range slices.Sorted(maps.Keys(named)) {
			out = append(out, yaml.MapItem{Key: name, Value: documentOf(named[name])})
		}
		return out
	}
	return v.Interface()
}
