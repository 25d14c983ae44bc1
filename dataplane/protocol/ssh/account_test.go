package ssh

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

func etcWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAccounts(t *testing.T) {
	today := time.Now().Unix() / (24 * 60 * 60)
	etc := etcWith(t, map[string]string{
		"passwd": "# comment\n\nroot:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\nalice:x:0:0::/:/bin/sh\n" +
			"noshell:x:1001:1001::/:\nweb:x:33:33::/var/www:/usr/sbin/nologin\nfalse:x:34:34::/:/bin/false\ngone:x:35:35::/:/no/such/shell\n" +
			"odd:x:36:36::/:/etc\nminus:x:-1:0::/:/bin/sh\nhuge:x:4294967295:1::/:/bin/sh\nword:x:root:0::/:/bin/sh\nshort:x:1:1:/bin/sh\n" +
			"expired:x:40:40::/:/bin/sh\nlasts:x:41:41::/:/bin/sh\nbad:x:42:99999999999::/:/bin/sh\n+::::::\n",
		"group":  "root:x:0:\nalice:x:1000:\nwheel:x:10:root,alice\ndev:x:20:alice\ndev2:x:20:alice\nothers:x:30:bob,alicex\nbad:x:-5:alice\nshort:x:1\n",
		"shadow": fmt.Sprintf("alice:*:1:0:9:7:::\nexpired:*:1:0:9:7::%d:\nlasts:*:1:0:9:7::%d:\n", today-1, today),
	})
	a := accounts{etc: etc, uid: func() int { return 0 }}
	for _, c := range []struct{ login, fact string }{
		{"alice", ""}, {"root", ""}, {"noshell", ""}, {"lasts", ""},
		{"nobody", "does not exist"}, {"web", "has no shell"}, {"false", "has no shell"}, {"gone", "cannot be run"}, {"odd", "cannot be run"},
		{"minus", "cannot be looked up"}, {"huge", "cannot be looked up"}, {"word", "cannot be looked up"}, {"bad", "cannot be looked up"},
		{"short", "does not exist"}, {"expired", "account has expired"},
		{"", "not a login name"}, {"a:b", "not a login name"}, {"-x", "not a login name"}, {"+", "not a login name"}, {"..", "not a login name"},
		{"a/b", "not a login name"}, {"a\nb", "not a login name"}, {"a b", "not a login name"}, {strings.Repeat("x", 256), "not a login name"},
	} {
		acc, p := a.find(context.Background(), c.login)
		switch {
		case c.fact == "" && p != nil:
			t.Errorf("%q: %v", c.login, p)
		case c.fact != "" && (p == nil || !strings.Contains(p.Fact, c.fact)):
			t.Errorf("%q: %v, %+v; want %q", c.login, p, acc, c.fact)
		}
	}
	acc, _ := a.find(context.Background(), "alice")
	if acc.uid != 1000 || acc.gid != 1000 || acc.home != "/home/alice" || !slices.Equal(acc.groups, []uint32{1000, 10, 20}) {
		t.Errorf("alice is %+v", acc)
	}
	if acc, _ := a.find(context.Background(), "noshell"); acc.shell != "/bin/sh" {
		t.Errorf("noshell is %+v", acc)
	}
}

// TestAccountsWithoutRoot: only the agent's own user is offered.
func TestAccountsWithoutRoot(t *testing.T) {
	etc := etcWith(t, map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n", "group": "alice:x:1000:\n",
	})
	a := accounts{etc: etc, uid: func() int { return 1000 }}
	if _, p := a.find(context.Background(), "alice"); p != nil {
		t.Error(p)
	}
	if _, p := a.find(context.Background(), "root"); p == nil || !strings.Contains(p.Fact, "does not run as root") || p.Hint == "" {
		t.Errorf("root: %v", p)
	}
}

func TestClosedHost(t *testing.T) {
	etc := etcWith(t, map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n", "group": "", "nologin": "maintenance until noon\n",
	})
	a := accounts{etc: etc, uid: func() int { return 0 }}
	if _, p := a.find(context.Background(), "root"); p != nil {
		t.Error(p)
	}
	if _, p := a.find(context.Background(), "alice"); p == nil || p.Fact != "logins are closed on this host: maintenance until noon" {
		t.Errorf("alice: %v", p)
	}
}

func TestElsewhere(t *testing.T) {
	for text, want := range map[string]bool{
		"passwd: files\ngroup: files\n":         false,
		"passwd: files systemd\n":               false,
		"passwd: compat [NOTFOUND=return]\n":    false,
		"group: files sss\npasswd: files\n":     false,
		"passwd:  files sss\n":                  true,
		"# passwd: ldap\npasswd: files\n":       false,
		"passwd: ldap [NOTFOUND=return] files":  true,
		"passwd_compat: nis\npasswd:\tcompat\n": false,
	} {
		a := accounts{etc: etcWith(t, map[string]string{"nsswitch.conf": text})}
		if got := a.elsewhere("passwd"); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if (accounts{etc: t.TempDir()}).elsewhere("passwd") {
		t.Error("without a file there are no other sources")
	}
}

// TestAsk uses the host's own getent.
func TestAsk(t *testing.T) {
	if _, err := os.Stat(getent); err != nil {
		peers.Missing(t, "getent")
	}
	fields, err := ask(context.Background(), "passwd", "root")
	if err != nil || len(fields) != 7 || fields[2] != "0" {
		t.Errorf("root is %q, %v", fields, err)
	}
	if _, err := ask(context.Background(), "passwd", "no-such-login-here"); !os.IsNotExist(err) {
		t.Errorf("got %v", err)
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add("alice:x:1000:1000:Alice:/home/alice:/bin/sh\n", "alice")
	f.Add(":::::::\n", "")
	f.Fuzz(func(t *testing.T, text, login string) {
		var found []string
		_ = scanFields(strings.NewReader(text), func(fields []string) bool {
			found = fields
			return len(fields) != 7 || fields[0] != login
		})
		if acc, err := parseEntry(found, login); err == nil && (acc.uid == noID || acc.name != login || acc.shell == "" || acc.home == "") {
			t.Errorf("%q: %+v", found, acc)
		}
	})
}
