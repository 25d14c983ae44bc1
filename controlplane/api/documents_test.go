package api

import (
	"strings"
	"testing"
)

// TestUnread: who writes documents does not write Go.
func TestUnread(t *testing.T) {
	for doc, want := range map[string]string{
		`"hello"`:                                       "a document is a mapping",
		`[1]`:                                           "a document is a mapping",
		`{"spec": {"target": "bob"}}`:                   "spec.target: not what belongs there, but of the kind string",
		`{"spec": {"target": {"user": ["a"]}}}`:         "spec.target.user: not what belongs there, but of the kind array",
		`{"spec": {"expires": "tomorrow"}}`:             "tomorrow is not a time such as ",
		`{"spec": {"target": {"usr": "a"}}}`:            `unknown field "usr"`,
		`{"kind": "lock", "metadata": {"name": false}}`: "metadata.name: not what belongs there, but of the kind bool",
	} {
		err := strict([]byte(doc), &lockDocument{})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
	if err := strict([]byte(`{"kind": "lock", "spec": {"target": {"user": "a"}}}`), &lockDocument{}); err != nil {
		t.Error(err)
	}
}

// TestUnknownKind: who sends what this version does not know is told so, not
// that another version of it would do.
func TestUnknownKind(t *testing.T) {
	for doc, want := range map[string]string{
		`{"kind": "github", "version": "v3", "metadata": {"name": "x"}}`: `kind "github": this version knows role, user and lock`,
		`{"kind": "lock", "version": "v3", "metadata": {"name": "x"}}`:   `version "v3" of kind lock is not known; this is v2`,
	} {
		h, err := headerOf([]byte(doc))
		if err == nil {
			_, err = (&Server{}).put(t.Context(), h, nil)
		}
		if err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", doc, err, want)
		}
	}
}
