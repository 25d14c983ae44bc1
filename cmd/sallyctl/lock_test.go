package main

import (
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestLockDocument(t *testing.T) {
	now := time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)
	for line, want := range map[string]string{
		"--user=alice --message=why --ttl=10h":      `{"expires":"2026-02-01T01:00:00Z","message":"why","target":{"user":"alice"}}`,
		"--login=root --server-id=a1":               `{"target":{"login":"root","server_id":"a1"}}`,
		"--role=dba --expires=2026-02-01T01:00:00Z": `{"expires":"2026-02-01T01:00:00Z","target":{"role":"dba"}}`,
		"--mfa-device=m1":                           `{"target":{"mfa_device":"m1"}}`,
		"--access-request=r1":                       `{"target":{"access_request":"r1"}}`,
		"":                                          "a lock needs a target",
		"--message=why":                             "a lock needs a target",
		"--user=a --ttl=1ms":                        "want at least 1s",
		"--user=a --ttl=-1h":                        "want at least 1s",
		"--user=a --ttl=1h --expires=2030-01-01T00:00:00Z": "both say",
		"--user=a --expires=2026-01-31T14:59:59Z":          "has passed",
	} {
		g, err := parse(append([]string{"lock"}, strings.Fields(line)...), io.Discard, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		text, err := g.cli.Lock.document(now)
		if err != nil {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", line, err, want)
			}
			continue
		}
		var doc struct {
			Kind, Version string
			Metadata      struct{ Name string }
			Spec          json.RawMessage
		}
		if err := json.Unmarshal([]byte(text), &doc); err != nil || doc.Kind != "lock" || doc.Version != "v2" || string(doc.Spec) != want ||
			!regexp.MustCompile(`^[0-9a-f-]{36}$`).MatchString(doc.Metadata.Name) {
			t.Errorf("%s: %s, %v, want %s", line, text, err, want)
		}
	}
}
