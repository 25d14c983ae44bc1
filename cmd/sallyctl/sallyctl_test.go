package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/cmd/internal/fail"
	"github.com/sallyport/sallyport/cmd/internal/usage"
	"github.com/sallyport/sallyport/controlplane/audit"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sallyctl": main})
}

// TestScripts runs testdata/script: the commands where there is no auth.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			home := filepath.Join(e.WorkDir, "home")
			e.Setenv("HOME", home)
			return os.MkdirAll(home, 0o700)
		},
	})
}

func TestArgv(t *testing.T) {
	for argv, want := range map[string]string{
		"status -f json":       "status",
		"--data-dir /x status": "status",
		"users add alice --roles=access,dba --logins root,alice --ttl 24h": "users add <name>",
		"users reset --ttl=1h alice":                                       "users reset <name>",
		"users rm a b":                                                     "users rm <names>",
		"tokens add --type=node,db --ttl=1h":                               "tokens add",
		"get roles --format=json":                                          "get <what>",
		"create -f role.yaml":                                              "create <file>",
		"create --force -":                                                 "create <file>",
		"rm role/x":                                                        "rm <what>",
		"nodes ls":                                                         "nodes ls",
		"nodes":                                                            "nodes ls",
		"nodes ls -a":                                                      "nodes ls",
		"nodes rm a b --force":                                             "nodes rm <id>",
		"auth export --type=tls-host":                                      "auth export",
		"--auth-server=gw.test get users":                                  "get <what>",
		"-c /etc/x.yaml -d version":                                        "version",
		"--version":                                                        "version",
	} {
		g, err := parse(strings.Fields(argv), io.Discard, io.Discard)
		if err != nil {
			t.Errorf("%s: %v", argv, err)
		} else if got := g.ctx.Command(); got != want {
			t.Errorf("%s: %s, want %s", argv, got, want)
		}
	}
	g, err := parse([]string{"create", "-f", "role.yaml"}, io.Discard, io.Discard)
	if err != nil || !g.cli.Create.Force || g.cli.Create.File != "role.yaml" {
		t.Errorf("create -f: %+v, %v", g.cli.Create, err)
	}
}

// TestAbsent: what is said not to be here is not here.
func TestAbsent(t *testing.T) {
	for path, instead := range absent() {
		_, err := parse(strings.Fields(path), io.Discard, io.Discard)
		var p *sallyport.Problem
		if !errors.As(err, &p) || p.Fact != fmt.Sprintf("there is no command %q here", path) || p.Hint != instead {
			t.Errorf("%s: %v %+v", path, err, p)
		}
	}
}

// TestNamedWins: with SALLY_PROXY set, what was to be done on this machine was done in
// another cluster.
func TestNamedWins(t *testing.T) {
	for args, want := range map[string]string{
		"":                            "env.example.com",
		"--data-dir=d":                "",
		"-c f":                        "",
		"--config=f":                  "",
		"--proxy=gw":                  "gw",
		"--data-dir=d --proxy=gw":     "gw",
		"--auth-server=gw --config f": "gw",
		"-d":                          "env.example.com",
		"--data-dir=d -d":             "",
	} {
		for _, name := range []string{"SALLY_PROXY", "TELEPORT_PROXY"} {
			t.Run(name+" "+args, func(t *testing.T) {
				t.Setenv("SALLY_PROXY", "")
				t.Setenv("TELEPORT_PROXY", "")
				t.Setenv(name, "env.example.com")
				t.Setenv("SALLY_DATA_DIR", "elsewhere")
				usage.DropEmpty()
				g, err := parse(append(strings.Fields(args), "status"), io.Discard, io.Discard)
				if err != nil || g.cli.Proxy != want {
					t.Errorf("%q, want %q (%v)", g.cli.Proxy, want, err)
				}
			})
		}
	}
}

// TestHelp: every command has help with examples, and the examples parse.
func TestHelp(t *testing.T) {
	g, err := parse([]string{"version"}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range g.kong.Model.Leaves(true) {
		path := usage.Path(n)
		var out strings.Builder
		if _, err := parse(append(strings.Fields(path), "--help"), &out, io.Discard); err != (fail.Exit{Code: 0}) {
			t.Errorf("%s --help: %v", path, err)
		}
		for _, want := range []string{"Usage: sallyctl " + path, n.Help, "Examples:\n", "Flags of every command:"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s --help does not say %q:\n%s", path, want, out.String())
			}
		}
		for line := range strings.Lines(n.Detail) {
			line, _, _ = strings.Cut(line, "  #")
			line, _, _ = strings.Cut(line, " >")
			line, _, _ = strings.Cut(strings.TrimSpace(line), " <")
			args, ok := strings.CutPrefix(line, "sallyctl ")
			if !ok {
				continue
			}
			if _, err := parse(strings.Fields(args), io.Discard, io.Discard); err != nil {
				t.Errorf("an example of %s: %s: %v", path, line, err)
			}
		}
	}
}

func TestDocuments(t *testing.T) {
	for name, tt := range map[string]struct {
		in   string
		want int
		err  string
	}{
		"one":        {in: "kind: role\nmetadata: {name: a}\n", want: 1},
		"two":        {in: "kind: role\n---\nkind: user\n", want: 2},
		"JSON":       {in: `{"kind": "role"}`, want: 1},
		"between":    {in: "kind: role\n---\n# nothing\n---\nkind: user\n", want: 2},
		"on a line":  {in: "--- {kind: role}\n...\n--- # nothing\n---\tkind: user\n", want: 2},
		"not a mark": {in: "kind: role\na: \"---\"\nb: |\n  ---\n  ...\n", want: 1},
		"where":      {in: "kind: role\n---\nkind: user\nkind: x\n", err: "line 4, column 1: "},
		"blank":      {in: "---\n---\nkind: role\n---\n", want: 1},
		"nothing":    {in: "", err: "no document"},
		"comments":   {in: "# only\n", err: "no document"},
		"broken":     {in: "kind: [\n", err: "1"},
		"odd keys":   {in: "? {a: b}\n: c\n", err: ""},
		"duplicate":  {in: "kind: role\nkind: user\n", err: "already defined"},
	} {
		got, err := documents([]byte(tt.in))
		if len(got) != tt.want || (err == nil) != (tt.want > 0) || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestDocumentsAsWritten: numbers without quotes reached auth as other numbers, and a
// role that denied the release 1.10 denied 1.1.
func TestDocumentsAsWritten(t *testing.T) {
	for in, want := range map[string]string{
		"release: 1.10":                 `{"release":"1.10"}`,
		"zip: 0123":                     `{"zip":"0123"}`,
		"hex: 0x1F":                     `{"hex":"0x1F"}`,
		"octal: 0o17":                   `{"octal":"0o17"}`,
		"binary: 0b11":                  `{"binary":"0b11"}`,
		"large: 1_000":                  `{"large":"1_000"}`,
		"commit: 12e4567":               `{"commit":"12e4567"}`,
		"small: 1e3":                    `{"small":"1e3"}`,
		"signed: [+1, -0.0]":            `{"signed":["+1","-0.0"]}`,
		"half: .5":                      `{"half":".5"}`,
		"end: .inf":                     `{"end":".inf"}`,
		"none: .NaN":                    `{"none":".NaN"}`,
		"long: 12345678901234567890123": `{"long":"12345678901234567890123"}`,
		"1.10: {2.0: 007}":              `{"1.10":{"2.0":"007"}}`,
		"on: True":                      `{"on":"True"}`,
		"on: true":                      `{"on":true}`,
		"off: [false, null, ~]":         `{"off":[false,null,null]}`,
		"text: '1.10'":                  `{"text":"1.10"}`,
		"a: &x 1.10\nb: *x":             `{"a":"1.10","b":"1.10"}`,
		"a: &x {v: 1.10}\nb:\n  <<: *x": `{"a":{"v":"1.10"},"b":{"v":"1.10"}}`,
		"a: !!str 1.10":                 `{"a":"1.10"}`,
		"a: !!int 12":                   `{"a":12}`,
		"when: 2026-01-02":              `{"when":"2026-01-02"}`,
		`{"json": 1.10}`:                `{"json":"1.10"}`,
	} {
		docs, err := documents([]byte(in + "\n"))
		if err != nil || len(docs) != 1 || docs[0].json != want {
			t.Errorf("%s: %+v, %v, want %s", in, docs, err, want)
		}
	}
}

// TestDocumentSays: auth is sent JSON on one line, and named places in that as if
// they were places in the file.
func TestDocumentSays(t *testing.T) {
	docs, err := documents([]byte("# two\n---\nkind: role\n---\nkind: role\n"))
	if err != nil || len(docs) != 2 {
		t.Fatal(docs, err)
	}
	problem := &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "line 1, column 50: the version is \"v99\"", Hint: "h"}
	var p *sallyport.Problem
	err = docs[1].refused(fmt.Errorf("auth: %w", problem))
	if want := "the document at line 4: the version is \"v99\""; !errors.As(err, &p) || p.Fact != want || p.Hint != "h" {
		t.Errorf("%v, want %s", err, want)
	}
	if other := sallyport.Denied("no", ""); docs[0].refused(other) != error(other) {
		t.Error("a denial is not about the document")
	}
}

func TestDocumentElsewhere(t *testing.T) {
	for in, want := range map[string]string{
		"kind: role": "", "a: b": "", "[a]": "", "kind: [role]": "",
		"kind: app":                     "docs/config.md",
		"kind: cluster_auth_preference": "configuration of auth",
		"kind: rol":                     "kinds: role, user, lock",
	} {
		docs, err := documents([]byte("# one\n" + in + "\n"))
		if err != nil {
			t.Fatal(in, err)
		}
		err = docs[0].isHere()
		var p *sallyport.Problem
		if (err != nil) != (want != "") || err != nil && (!errors.As(err, &p) || !strings.Contains(p.Hint, want) || !strings.HasPrefix(p.Fact, "the document at line 1: ")) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// FuzzZ19_Documents: what is taken is JSON that says what the YAML said, and
// what "get" would print of it is taken again.
func FuzzZ19_Documents(f *testing.F) {
	f.Add("kind: role\n---\nkind: user\n")
	f.Add("a: &x [1, 2]\nb: *x\n")
	f.Add("{\"a\": \"\\u0000\"}")
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 1<<12 {
			return
		}
		docs, err := documents([]byte(in))
		if err != nil {
			return
		}
		for _, d := range docs {
			var want, got any
			if err := json.Unmarshal([]byte(d.json), &want); err != nil {
				t.Fatalf("%q became %q: %v", in, d.json, err)
			}
			if _, object := want.(map[string]any); !object {
				continue
			}
			again, err := documents([]byte(d.json))
			if err != nil || len(again) != 1 {
				t.Fatalf("%q is not taken again: %v", d.json, err)
			}
			if err := json.Unmarshal([]byte(again[0].json), &got); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestLocal: a configuration that was named and not there, or of a host without
// auth, led to the cluster of the login.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		path := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for text, want := range map[string]local{
		"data_dir: /x\nother: 1\n":           {dir: "/x", sure: true},
		"data_dir: state\nroles: [auth]\n":   {dir: filepath.Join(dir, "state"), sure: true, roles: []string{"auth"}},
		"version: 1\nroles: [gateway]\n":     {dir: defaultDataDir, sure: true, roles: []string{"gateway"}},
		"roles: [auth, gateway]\nauth: {}\n": {dir: defaultDataDir, sure: true, roles: []string{"auth", "gateway"}},
	} {
		p := &program{globals: globals{Config: write(text)}}
		if got, err := p.local(); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, fact := range map[string]string{
		"data_dir: [\n":                       "c.yaml: ",
		"roles: [gateway]\ndata_dir: state\n": "this host has no role auth",
		"roles: [auth]\ndata_dir: state\n":    "state/admin.sock: no such socket",
		"data_dir: state\n":                   "state/admin.sock: no such socket",
	} {
		p := &program{globals: globals{Config: write(text)}}
		if got, err := p.socket(); err == nil || !strings.Contains(err.Error(), fact) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	p := &program{globals: globals{Config: filepath.Join(dir, "none")}}
	if got, err := p.socket(); !errors.Is(err, sallyport.ErrNotFound) {
		t.Errorf("no file: %q, %v", got, err)
	}
}

// TestWants: what is no document here led to "no role allows", and lists were not
// understood.
func TestWants(t *testing.T) {
	for in, want := range map[string][]wanted{
		"roles": {{kind: "role"}}, "Users": {{kind: "user"}}, "lock/x": {{"lock", "x"}},
		"role/a,user/b": {{"role", "a"}, {"user", "b"}}, "all": {{kind: "role"}, {kind: "user"}, {kind: "lock"}},
	} {
		if got, err := wants(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for in, hint := range map[string]string{
		"foo": "kinds: role, user, lock", "": "kinds: ", "role,foo": "kinds: ", "tokens": "sallyctl tokens ls", "node/x": "sallyctl nodes ls",
		"apps": "agent", "databases": "agent", "cap": "configuration", "SAML": "local users", "proxies": "kinds: ",
	} {
		_, err := wants(in)
		if p := (*sallyport.Problem)(nil); !errors.As(err, &p) || !strings.Contains(p.Hint, hint) {
			t.Errorf("%s: %v, want the hint %q", in, err, hint)
		}
	}
}

// TestJoining: a gateway was told to write an agent's configuration.
func TestJoining(t *testing.T) {
	for _, tt := range []struct {
		roles       []string
		want, never string
	}{
		{[]string{"agent"}, "sallyport configure --roles=agent --gateway=gw.test:443 --token-file=/etc/sallyport.token --ca-pin=sha256:00,sha256:11 -o /etc/sallyport.yaml\n  sallyport start\n", "AUTH-HOST"},
		{[]string{"gateway"}, "sallyport configure --roles=gateway --auth=AUTH-HOST:3025 --token-file=/etc/sallyport.token --ca-pin=sha256:00,sha256:11 -o /etc/sallyport.yaml\n  sallyport start\n", "--gateway="},
		{[]string{"agent", "gateway"}, "use the line that fits", "roles=agent,gateway"},
	} {
		got := tokenJSON{Secret: "secret", Roles: tt.roles, Expires: time.Now(), CAPins: []string{"sha256:00", "sha256:11"}, Gateway: "gw.test:443"}.joining()
		if !strings.Contains(got, tt.want) || strings.Contains(got, tt.never) || strings.Count(got, "secret") != 1 {
			t.Errorf("%v:\n%s", tt.roles, got)
		}
	}
}

// admins answers as an auth does.
type admins struct {
	sallyportv1connect.UnimplementedAdminServiceHandler
	agents []*sallyportv1.AgentStatus
	search *sallyportv1.SearchEventsRequest // the last
}

func (a *admins) SearchEvents(_ context.Context, req *connect.Request[sallyportv1.SearchEventsRequest]) (*connect.Response[sallyportv1.SearchEventsResponse], error) {
	a.search = req.Msg
	return connect.NewResponse(&sallyportv1.SearchEventsResponse{Events: []string{"{}"}}), nil
}

func (a *admins) ListAgents(context.Context, *connect.Request[sallyportv1.ListAgentsRequest]) (*connect.Response[sallyportv1.ListAgentsResponse], error) {
	return connect.NewResponse(&sallyportv1.ListAgentsResponse{Agents: a.agents}), nil
}

// serveAdmins serves the admin socket, and returns the data directory that it is in.
func serveAdmins(t *testing.T, a sallyportv1connect.AdminServiceHandler) (dir string) {
	t.Helper()
	dir = t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, adminSocket))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(sallyportv1connect.NewAdminServiceHandler(a))
	srv := httptest.NewUnstartedServer(mux)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return dir
}

// TestNodesLs: agents were listed by their ids alone. An older auth tells no host
// name, and a host may call itself anything.
func TestNodesLs(t *testing.T) {
	dir := serveAdmins(t, &admins{agents: []*sallyportv1.AgentStatus{
		{Id: "id-1", HostName: "web-1.example.com", Version: "v1", Gateways: []string{"g"}, Resources: 2}, {Id: "id-2"}, {Id: "id-3", HostName: "a\x1b]b"},
	}})
	ls := func(args ...string) string {
		var out strings.Builder
		p := &program{ctx: t.Context(), stdin: strings.NewReader(""), stdout: &out, stderr: io.Discard}
		if err := p.run(append([]string{"--data-dir=" + dir, "nodes", "ls"}, args...)); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	var rows [][]string
	for line := range strings.Lines(ls()) {
		rows = append(rows, strings.Fields(line))
	}
	want := [][]string{{"Agent", "ID", "Host", "Name", "Version", "Gateways", "Resources"}, {"id-1", "web-1.example.com", "v1", "g", "2"}, {"id-2", "0"}, {"id-3", "a\ufffd]b", "0"}}
	if got := slices.Delete(rows, 1, 2); !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	var js []agentJSON
	if err := json.Unmarshal([]byte(ls("--format=json")), &js); err != nil || len(js) != 3 || js[0].Hostname != "web-1.example.com" {
		t.Errorf("%+v: %v", js, err)
	}
}

// TestAuditSearch: what lies before the newest 10,000 events was out of reach, and
// more than those were asked for and not given, without a word.
func TestAuditSearch(t *testing.T) {
	a := &admins{}
	dir := serveAdmins(t, a)
	search := func(args ...string) (*sallyportv1.SearchEventsRequest, error) {
		a.search = nil
		p := &program{ctx: t.Context(), stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
		err := p.run(append([]string{"--data-dir=" + dir, "audit", "search"}, args...))
		return a.search, err
	}
	got, err := search("--to=2026-02-28T17:00:00+02:00", "--last=30m", fmt.Sprintf("--limit=%d", audit.MaxFound), "--event=exec,scp")
	if err != nil || got.GetFrom().AsTime().Format(time.RFC3339) != "2026-02-28T14:30:00Z" || got.GetTo().AsTime().Format(time.RFC3339) != "2026-02-28T15:00:00Z" ||
		got.GetLimit() != audit.MaxFound || !slices.Equal(got.GetNames(), []string{"exec", "scp"}) {
		t.Errorf("%v: %v", got, err)
	}
	// The listings take --format=json, and this one did not know it.
	if got, err = search("--format=json"); err != nil || got == nil {
		t.Errorf("--format=json: %v: %v", got, err)
	}
	if got, err = search("--format=text"); err == nil || got != nil {
		t.Errorf("--format=text: %v, want an error", got)
	}
	if got, err = search(); err != nil || got.GetTo() != nil || got.GetLimit() != 100 {
		t.Errorf("%v: %v", got, err)
	}
	for args, want := range map[string]string{fmt.Sprintf("--limit=%d", audit.MaxFound+1): "--to=TIME", "--limit=0": "1 to 10000", "--to=yesterday": "2026-02-28T15:04:05Z"} {
		var p *sallyport.Problem
		if got, err = search(args); got != nil || !errors.As(err, &p) || !strings.Contains(p.Fact+p.Hint, want) {
			t.Errorf("%s: %v, and auth was asked %v", args, err, got)
		}
	}
}

// TestLifeSeconds: --ttl=0s and --ttl=500ms made tokens and links of the longest
// usual life, not of the shortest.
func TestLifeSeconds(t *testing.T) {
	for ttl, want := range map[time.Duration]int64{time.Second: 1, 90 * time.Second: 90, 48 * time.Hour: 172800} {
		if got, err := lifeSeconds(ttl); got != want || err != nil {
			t.Errorf("%v: %d, %v", ttl, got, err)
		}
	}
	for _, ttl := range []time.Duration{0, 999 * time.Millisecond, -time.Second} {
		if got, err := lifeSeconds(ttl); !errors.Is(err, sallyport.ErrInvalid) {
			t.Errorf("%v: %d, %v", ttl, got, err)
		}
	}
}

// TestDocumentLines: what auth has found in JSON is said with the line of the text.
func TestDocumentLines(t *testing.T) {
	const text = `# roles
---
kind: role
version: v7
metadata: {name: "größe"}
spec:
  allow: &all
    logins:
    - root
    - "a\nb"
    rules:
    - resources: [role]
      verbs:
      - list
      - [x]
    -
      verbs: [read]
    node_labels: {"*": "*", env: dev}
  deny: *all
`
	docs, err := documents([]byte(text))
	if err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	doc := docs[0].json
	for what, want := range map[string]int{
		`"v7"`: 4, `"name"`: 5, `"größe"`: 5, `"spec"`: 6, `"allow"`: 7, `{"logins"`: 7, `"logins"`: 8, `"root"`: 9, `"a\nb"`: 10,
		`"rules"`: 11, `"resources"`: 12, `"list"`: 14, `["x"]`: 15, `["read"]`: 17, `"dev"`: 18, `"deny"`: 19,
	} {
		at := strings.Index(doc, what)
		if at < 0 {
			t.Fatalf("%s is not in %s", what, doc)
		}
		fact := fmt.Sprintf("line 1, column %d: odd", utf8.RuneCountInString(doc[:at])+1)
		if got := docs[0].say(fact); got != fmt.Sprintf("line %d: odd", want) {
			t.Errorf("%s: %q, want line %d", what, got, want)
		}
	}
	for _, fact := range []string{"line 1, column 100000: odd", "line 1, column 0: odd", "line 1, column 99999999999999999999: odd"} {
		if got := docs[0].say(fact); got != "the document at line 3: odd" && got != "the document at line 2: odd" {
			t.Errorf("%s: %q", fact, got)
		}
	}
}

// TestFieldPlace: faults of users and locks, and what a role restricts in vain, named no line.
func TestFieldPlace(t *testing.T) {
	docs, err := documents([]byte("---\nkind: lock\nversion: v2\nmetadata:\n  name: x\nspec:\n  target:\n    usr: ann\n  list:\n  - a\n  - b: 1\n    twice: 1\n    twice2: {twice: 2}\n"))
	if err != nil || len(docs) != 1 {
		t.Fatal(docs, err)
	}
	for fact, want := range map[string]string{
		`unknown field "usr"`:                    `line 8: unknown field "usr"`,
		`unknown field "twice"`:                  `the document at line 1: unknown field "twice"`,
		`unknown field "nowhere"`:                `the document at line 1: unknown field "nowhere"`,
		`metadata.name: too long`:                `line 5: metadata.name: too long`,
		`spec.target.user: there is no user "a"`: `line 7: spec.target.user: there is no user "a"`,
		`spec.list[1].b: not what belongs there`: `line 11: spec.list[1].b: not what belongs there`,
		`role "x" restricts what this version does not enforce: spec.list[0].where: odd; spec.target: odd`: `line 10: role "x" restricts what this version does not enforce: spec.list[0].where: odd; spec.target: odd`,
		`a lock needs a target`: `the document at line 1: a lock needs a target`,
	} {
		if got := docs[0].say(fact); got != want {
			t.Errorf("%s: %s", fact, got)
		}
	}
}
