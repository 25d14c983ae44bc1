package store

import "testing"

func TestKeep(t *testing.T) {
	type record struct {
		Version int      `json:"version"`
		Name    string   `json:"name,omitempty"`
		Agents  []string `json:"agents"`
		Plain   int
		hidden  int
	}
	rec := record{Version: 1, Agents: []string{"a"}, Plain: 2, hidden: 3}
	const own = `{"version":1,"agents":["a"],"Plain":2}`
	for name, c := range map[string]struct{ stored, want string }{
		"new":              {"", own},
		"nothing else":     {`{"version":7,"agents":null,"plain":0}`, own},
		"what was removed": {`{"version":1,"name":"gone","NAME":"gone too","agents":[]}`, own},
		"a newer field":    {`{"version":1,"agents":[],"later":{"b":[1,2],"a":"x"}}`, `{"Plain":2,"agents":["a"],"later":{"b":[1,2],"a":"x"},"version":1}`},
		"not for json":     {`{"hidden":4}`, `{"Plain":2,"agents":["a"],"hidden":4,"version":1}`},
	} {
		got, err := Keep([]byte(c.stored), rec)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, c.want)
		}
	}
	if _, err := Keep([]byte("[1]"), rec); err == nil {
		t.Error("a record that is no object was overwritten")
	}
}
