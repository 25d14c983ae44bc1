package audit

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sallyport/sallyport"
)

// TestShown: user_kind was a text, and rules for Teleport's events compare a number.
func TestShown(t *testing.T) {
	for kind, want := range map[string]string{"": "", "human": "human", "bot": "bot", "system": "system", "agent": "system", "local-admin": "system"} {
		e := sallyport.Event{Name: "a", Code: "b", UID: "u", Time: time.UnixMilli(1e12).UTC(), User: `x","user_kind":"bot`, UserKind: kind,
			Fields: map[string]any{"text": `,"user_kind":"bot"`, "user_kind": "bot"}}
		line := string(Encode(e))
		shown := Shown(line)
		if (shown == line) != (kind == "") || Shown(shown) != shown {
			t.Errorf("%s: %s", line, shown)
		}
		got, err := Decode([]byte(shown))
		if err != nil {
			t.Fatalf("%s: %v", shown, err)
		}
		e.UserKind = want
		if diff := cmp.Diff(e, got); diff != "" {
			t.Errorf("%s: %s", shown, diff)
		}
	}
	for _, number := range []string{"0", "4", "-1", "1.5", "true", "null"} {
		if e, err := Decode([]byte(`{"event":"a","time":"2026-01-02T03:04:05.000Z","user_kind":` + number + `}`)); err == nil {
			t.Errorf("%s is %q", number, e.UserKind)
		}
	}
}

// TestDocumented: docs/audit.md has every event that auth makes.
func TestDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range Kinds() {
		if text := string(page); !strings.Contains(text, "`"+k.Name+"`") || !strings.Contains(text, k.Code) {
			t.Errorf("%s %s is not there", k.Name, k.Code)
		}
	}
}
