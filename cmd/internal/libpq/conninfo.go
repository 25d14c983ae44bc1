// Package libpq writes what PostgreSQL's own clients read: connection strings,
// environment variables and the service file.
package libpq

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/sallyport/sallyport"
)

// Setting is one connection parameter: a keyword of libpq and its value
// (PostgreSQL documentation, 34.1.2).
type Setting struct{ Key, Value string }

// plain are the bytes that need no quotes in a connection string.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+,"

// Conninfo is a connection string of keywords and values (34.1.1.1).
func Conninfo(settings []Setting) string {
	var out []string
	for _, s := range settings {
		out = append(out, s.Key+"="+value(s.Value))
	}
	return strings.Join(out, " ")
}

func value(s string) string {
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// URI is a connection string of the other form (34.1.1.2); empty user and
// dbname are left out.
func URI(hostport, user, dbname, params string) string {
	// Every byte that is not plain is escaped: "?", "#" and "/" of a database's
	// name must not end it.
	out := "postgres://"
	if user != "" {
		out += escape(user) + "@"
	}
	out += hostport
	if dbname != "" || params != "" {
		out += "/" + escape(dbname)
	}
	if params != "" {
		out += "?" + params
	}
	return out
}

// escape writes what is not unreserved as %XX (RFC 3986, section 2.3).
func escape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

// Env are the same settings as the environment variables that libpq reads (34.15).
func Env(settings []Setting) []Setting {
	var out []Setting
	for _, s := range settings {
		name := "PG" + strings.ToUpper(s.Key)
		if s.Key == "dbname" {
			name = "PGDATABASE"
		}
		out = append(out, Setting{name, s.Value})
	}
	return out
}

// Steering are the environment variables that would lead libpq to another
// server, identity or way than the settings say: a program that is started
// with our settings gets none of them from the user's own environment.
func Steering() []string {
	return []string{
		"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGREQUIREAUTH",
		"PGCHANNELBINDING", "PGREALM", "PGSSLMODE", "PGREQUIRESSL", "PGSSLNEGOTIATION", "PGSSLCOMPRESSION", "PGSSLCERT",
		"PGSSLKEY", "PGSSLCERTMODE", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLSNI", "PGREQUIREPEER",
		"PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION", "PGGSSENCMODE", "PGKRBSRVNAME", "PGGSSLIB", "PGGSSDELEGATION",
		"PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS",
	}
}

// Check refuses values that one of libpq's forms cannot carry: control
// characters would begin a new line of the service file, and that file's lines
// lose blanks at their end.
func Check(settings []Setting) error {
	for _, s := range settings {
		switch {
		case strings.ContainsFunc(s.Value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%s %q holds control characters", s.Key, s.Value)}
		case s.Value != strings.TrimSpace(s.Value):
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%s %q begins or ends with a blank, which a service file cannot hold", s.Key, s.Value)}
		case len(s.Key)+1+len(s.Value) > maxLine:
			return &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("%s is longer than %d bytes, which is what a service file's line can hold", s.Key, maxLine)}
		}
	}
	return nil
}
