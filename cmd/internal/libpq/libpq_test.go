package libpq

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sallyport/sallyport"
)

var some = []Setting{{"host", "orders.db.gw.test"}, {"user", "alice"}, {"dbname", "shop"}}

func TestPut(t *testing.T) {
	const mine = "[gw-orders]\nhost=orders.db.gw.test\nuser=alice\ndbname=shop\n"
	for name, tt := range map[string]struct{ in, want string }{
		"empty":          {"", mine},
		"other":          {"[other]\nhost=a\n", "[other]\nhost=a\n\n" + mine},
		"blank line":     {"[other]\nhost=a\n\n", "[other]\nhost=a\n\n" + mine},
		"no newline":     {"[other]\nhost=a", "[other]\nhost=a\n\n" + mine},
		"in its place":   {"[a]\nx=1\n[gw-orders]\nhost=old\n[b]\ny=2\n", "[a]\nx=1\n" + mine + "[b]\ny=2\n"},
		"comments":       {"# top\n[gw-orders]\nhost=old\n# inside\nport=1\n\n# of b\n[b]\ny=2\n", "# top\n" + mine + "\n# of b\n[b]\ny=2\n"},
		"twice":          {"[gw-orders]\nhost=old\n[b]\ny=2\n[gw-orders]\nhost=older\n", mine + "[b]\ny=2\n"},
		"longer name":    {"[gw-orders2]\nhost=a\n", "[gw-orders2]\nhost=a\n\n" + mine},
		"indented":       {"  [gw-orders] trailing\n host=old\n\t[b]\r\n y=2\r\n", mine + "\t[b]\r\n y=2\r\n"},
		"not a header":   {"[gw-orders\nhost=a\n", "[gw-orders\nhost=a\n\n" + mine},
		"not our case":   {"[GW-orders]\nhost=a\n", "[GW-orders]\nhost=a\n\n" + mine},
		"settings first": {"host=a\n[gw-orders]\n", "host=a\n" + mine},
	} {
		if got := Put(tt.in, "gw-orders", some); got != tt.want {
			t.Errorf("%s: Put(%q)\n got %q\nwant %q", name, tt.in, got, tt.want)
		}
	}
}

func TestRemove(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"[a]\nx=1\n", "[a]\nx=1\n"},
		{"[gw-orders]\nhost=a\n", ""},
		{"[a]\nx=1\n\n[gw-orders]\nhost=a\n\n# of b\n[b]\n", "[a]\nx=1\n\n\n# of b\n[b]\n"},
	} {
		if got := Remove(tt.in, "gw-orders"); got != tt.want {
			t.Errorf("Remove(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// readSection reads one section as fe-connect.c's parseServiceFileInfo does.
func readSection(text, service string) (out []Setting) {
	found := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\n\v\f\r")
		line = strings.TrimLeft(line, " \t\n\v\f\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if line[0] == '[' {
			if found {
				return out
			}
			found = strings.HasPrefix(line[1:], service+"]")
			continue
		}
		if found {
			k, v, _ := strings.Cut(line, "=")
			out = append(out, Setting{k, v})
		}
	}
	return out
}

// others is the text without what readers would take as the section's.
func sections(text string) (all []string) {
	for line := range strings.Lines(text) {
		if name, is := section(line); is {
			all = append(all, name)
		}
	}
	return all
}

// FuzzZ19_ServiceFile: what was put is read back, every other section reads as
// before, and putting and removing again changes nothing more.
func FuzzZ19_ServiceFile(f *testing.F) {
	f.Add("", "alice", "shop")
	f.Add("[a]\nx=1\n[gw-orders]\nhost=1\n\n#c\n[b]\ny=2", "o'neil", `a\b`)
	f.Add("  [gw-orders]\r\n[gw-orders\n", "[evil]", "#x")
	f.Add("[x]\n", "a\nhost=evil", "x")
	f.Add("\v[gw-orders]a\n\n\n#", "=", "==")
	f.Fuzz(func(t *testing.T, text, user, dbname string) {
		settings := []Setting{{"user", user}, {"dbname", dbname}}
		if Check(settings) != nil {
			return
		}
		got := Put(text, "gw-orders", settings)
		if back := readSection(got, "gw-orders"); !reflect.DeepEqual(back, settings) {
			t.Fatalf("put %q, read back %q from %q", settings, back, got)
		}
		if back, ok := Get(got, "gw-orders"); !ok || !reflect.DeepEqual(back, settings) {
			t.Fatalf("put %q, got %q from %q", settings, back, got)
		}
		for _, name := range sections(text) {
			if name == "" || name == "gw-orders" || strings.Contains(name, "\x00") {
				continue
			}
			if mine, _ := Get(text, name); !reflect.DeepEqual(mine, readSection(text, name)) {
				t.Fatalf("section %q of %q: %q", name, text, mine)
			}
			if before, after := readSection(text, name), readSection(got, name); !reflect.DeepEqual(before, after) {
				t.Fatalf("section %q: %q became %q in %q", name, before, after, got)
			}
		}
		if again := Put(got, "gw-orders", settings); again != got {
			t.Fatalf("put twice: %q, then %q", got, again)
		}
		gone := Remove(got, "gw-orders")
		if len(readSection(gone, "gw-orders")) > 0 {
			t.Fatalf("not removed: %q", gone)
		}
		// Nothing but our section went: what is left is the text, and at most
		// the line end that Put needed.
		if clean := Remove(text, "gw-orders"); clean == text && strings.TrimRight(gone, "\n") != strings.TrimRight(text, "\n") {
			t.Fatalf("%q became %q", text, gone)
		}
	})
}

// parseConninfo reads a connection string as fe-connect.c's conninfo_parse does.
func parseConninfo(s string) (out []Setting, ok bool) {
	space := func(c byte) bool { return strings.IndexByte(" \t\n\v\f\r", c) >= 0 }
	for i := 0; i < len(s); {
		if space(s[i]) {
			i++
			continue
		}
		from := i
		for i < len(s) && s[i] != '=' && !space(s[i]) {
			i++
		}
		key := s[from:i]
		if i >= len(s) || s[i] != '=' {
			return nil, false
		}
		i++
		var v strings.Builder
		if i < len(s) && s[i] == '\'' {
			for i++; ; i++ {
				if i >= len(s) {
					return nil, false
				}
				if s[i] == '\'' {
					i++
					break
				}
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
				v.WriteByte(s[i])
			}
		} else {
			for ; i < len(s) && !space(s[i]); i++ {
				if s[i] == '\\' && i+1 < len(s) {
					i++
				}
				v.WriteByte(s[i])
			}
		}
		out = append(out, Setting{key, v.String()})
	}
	return out, true
}

// FuzzA29_Conninfo: names never become other keywords.
func FuzzA29_Conninfo(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "'", `\`, `\'`, "x' host=evil y='", "a\thost=evil", "a\nb", ";=&?#'", "host=evil"} {
		f.Add(s, "plain")
		f.Add("plain", s)
	}
	f.Fuzz(func(t *testing.T, user, dbname string) {
		want := []Setting{{"host", "h"}, {"user", user}, {"dbname", dbname}, {"sslmode", "verify-full"}}
		if got, ok := parseConninfo(Conninfo(want)); !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("%q is read as %q", Conninfo(want), got)
		}
	})
}

// TestA29_Names holds every form against another reader: user and database
// names never change host, port or anything but themselves.
func TestA29_Names(t *testing.T) {
	for _, name := range Steering() {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("HOME", t.TempDir())
	names := []string{"a", "a b", "it's", `a\b`, `\'`, "x' host=evil '", "host=evil", "a;b", "a=b", "a&host=evil", "a?host=evil", "a#b", "a@evil/b", "a:b", "a/b", "%2f", "%00", "é", "service=other", "postgres://evil/x", "+", "[x]", "ldap://evil"}
	for _, name := range names {
		settings := []Setting{{"host", "orders.db.gw.test"}, {"port", "8443"}, {"user", name}, {"dbname", name}, {"sslmode", "disable"}}
		file := filepath.Join(t.TempDir(), "service.conf")
		if err := os.WriteFile(file, []byte(Put("[other]\nhost=evil\n", "gw-orders", settings)), 0o600); err != nil {
			t.Fatal(err)
		}
		for form, s := range map[string]string{
			"conninfo": Conninfo(settings),
			"URI":      URI("orders.db.gw.test:8443", name, name, "sslmode=disable"),
			"service":  "service=gw-orders servicefile=" + file,
		} {
			c, err := pgconn.ParseConfig(s)
			if err != nil {
				t.Errorf("%s with %q: %v in %q", form, name, err, s)
				continue
			}
			if c.Host != "orders.db.gw.test" || c.Port != 8443 || c.User != name || c.Database != name {
				t.Errorf("%s with %q: host %q port %d user %q database %q", form, name, c.Host, c.Port, c.User, c.Database)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	for value, ok := range map[string]bool{
		"a": true, "": true, "a b": true, "[x]": true, "#": true, "é": true,
		"a\nhost=evil": false, "\x00": false, "\x7f": false, "a\r": false, " a": false, "a ": false,
		strings.Repeat("x", maxLine): false,
	} {
		err := Check([]Setting{{"user", value}})
		if (err == nil) != ok || err != nil && !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("Check(%.20q): %v", value, err)
		}
	}
}

func TestEnv(t *testing.T) {
	got := Env([]Setting{{"host", "h"}, {"hostaddr", "1.2.3.4"}, {"user", "u"}, {"dbname", "d"}, {"sslrootcert", "r"}})
	want := []Setting{{"PGHOST", "h"}, {"PGHOSTADDR", "1.2.3.4"}, {"PGUSER", "u"}, {"PGDATABASE", "d"}, {"PGSSLROOTCERT", "r"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
}
