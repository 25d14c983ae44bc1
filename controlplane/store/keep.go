package store

import (
	"encoding/json"
	"reflect"
	"strings"
)

// Keep encodes a record, a struct, that was read from stored and changed. Fields
// that its type does not have stay as they are in stored: a newer version of
// this program has written them, and reads them again after an upgrade. stored
// is nil for a new record. Only fields at the record's top level are looked at,
// so that is where new ones belong (docs/handover.md).
func Keep(stored []byte, record any) ([]byte, error) {
	encoded, err := json.Marshal(record)
	if err != nil || len(stored) == 0 {
		return encoded, err
	}
	var was map[string]json.RawMessage
	if err := json.Unmarshal(stored, &was); err != nil {
		return nil, err
	}
	for name := range was {
		if known(reflect.TypeOf(record), name) {
			delete(was, name)
		}
	}
	if len(was) == 0 {
		return encoded, nil
	}
	var is map[string]json.RawMessage
	if err := json.Unmarshal(encoded, &is); err != nil {
		return nil, err
	}
	for name, value := range was {
		is[name] = value
	}
	return json.Marshal(is)
}

// known says that a struct has a field which json reads from the name.
func known(t reflect.Type, name string) bool {
	for _, f := range reflect.VisibleFields(t) {
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && (tag == "" && strings.EqualFold(f.Name, name) || tag != "-" && strings.EqualFold(tag, name)) {
			return true
		}
	}
	return false
}
