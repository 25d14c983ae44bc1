package sallyport_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/sallyport/sallyport"

// house is the import policy: which of our packages each package may import.
// The longest matching path decides. "x/..." allows x and all below it, "." is
// the root package. A new edge is a design change: the commit that adds it
// says why.
var house = []struct{ pkg, may string }{
	// The ground: words, pure parsers and codecs, generated schema.
	{"", ""},
	{"alpn", ""},
	{"identity", "."},
	{"eventtext", ""}, // the data plane makes events of a size that the control plane's log takes whole
	{"wire/...", "wire/..."},

	// The data plane: never the control plane.
	{"dataplane/relay", "dataplane/relay/internal/uring"}, // what a loop puts off is made by one system call
	{"dataplane/relay/internal/uring", ""},
	{"dataplane/preamble", "alpn"},
	// What is the same for all SSH servers, so that none is more permissive than
	// another; the jump server knows names, and none of what leads to them.
	{"dataplane/sshauth", "."},
	{"dataplane/protocol/ssh", ". identity dataplane/session dataplane/sshauth dataplane/timerslack"},
	{"dataplane/jump", ". alpn identity dataplane/session dataplane/sshauth"},
	{"dataplane/handover", ". wire/sallyport/handover/v1 dataplane/handover/failpoint"}, // moves what others hand it; knows none of them
	{"dataplane/handover/failpoint", ""},                                                // nothing in a program without its build tag: hence also for the control plane
	{"dataplane/handover/handovertest", "dataplane/handover"},
	{"dataplane/handover/verdict", ""}, // pure
	{"dataplane/carrier", ""},          // agents, clients and the gateway put connections inside others in the same way
	{"dataplane/tunnel", ". alpn identity dataplane/carrier wire/sallyport/tunnel/v1 wire/sallyport/handover/v1 dataplane/relay dataplane/handover dataplane/handover/failpoint"},
	{"dataplane/gateway", ". alpn wire/sallyport/handover/v1 dataplane/carrier dataplane/relay dataplane/preamble dataplane/tunnel dataplane/handover dataplane/handover/failpoint"},
	{"dataplane/session", ". dataplane/handover/failpoint"},
	{"dataplane/swift", ""},      // system calls, and nothing else
	{"dataplane/timerslack", ""}, // the same: programs ask for it when they start, and who starts programs of others
	{"dataplane/access", ". alpn identity dataplane/session dataplane/swift"},
	{"dataplane/agent", ". alpn dataplane/access dataplane/session dataplane/tunnel dataplane/handover/failpoint"},
	{"dataplane/sigv4", ""}, // both ends of sally aws read the same signatures
	{"dataplane/dial", ". alpn identity dataplane/carrier dataplane/preamble dataplane/sigv4 dataplane/halfclose"}, // servers are checked by SPIFFE id and by pin
	{"dataplane/database", ". eventtext dataplane/swift"},                                                          // what is the same for all databases, so that no protocol imports another
	{"dataplane/webapp", ". alpn dataplane/protocol/app dataplane/halfclose"},                                      // the browser's side of that protocol: what neither passes on is written once
	{"dataplane/database/dbtest", ". dataplane/session"},
	{"dataplane/oneconn", ""},   // what is the same for all who serve HTTP behind the door
	{"dataplane/halfclose", ""}, // the same for all who pass a switch of protocols on
	{"dataplane/protocol/...", ". identity dataplane/session dataplane/database"},
	{"dataplane/protocol/kube/...", ". eventtext dataplane/session dataplane/oneconn dataplane/halfclose"},
	{"dataplane/protocol/app/...", ". dataplane/session dataplane/oneconn dataplane/halfclose"},
	{"dataplane/protocol/aws/...", ". dataplane/session dataplane/sigv4 dataplane/oneconn"},

	// The control plane: never the data plane.
	{"controlplane/durable", "dataplane/handover/failpoint"},
	{"controlplane/store", "."},
	{"controlplane/store/...", ". controlplane/store controlplane/durable dataplane/handover/failpoint"},
	{"controlplane/ca", ". identity wire/sallyport/v1 controlplane/store controlplane/ca/signed controlplane/durable dataplane/handover/failpoint"},
	{"controlplane/ca/signed", "wire/sallyport/v1"},
	{"controlplane/rbac", ". identity"}, // a login is what a certificate can name
	{"controlplane/login", ". controlplane/store"},
	{"controlplane/websession", ". controlplane/store"},
	{"controlplane/join", ". controlplane/store"},
	{"controlplane/inventory", ". alpn wire/sallyport/v1 controlplane/store"},
	{"controlplane/audit", ". eventtext controlplane/durable dataplane/handover/failpoint"},
	{"controlplane/remnant", ". wire/sallyport/handover/v1 controlplane/audit"},
	{"controlplane/client", ". alpn identity wire/... controlplane/audit controlplane/rbac controlplane/ca/signed controlplane/durable dataplane/handover/failpoint"},
	{"controlplane/web", ". wire/... controlplane/login controlplane/websession"},
	{"controlplane/api", ". alpn identity wire/... controlplane/store controlplane/ca controlplane/ca/signed controlplane/rbac controlplane/login controlplane/websession controlplane/join controlplane/inventory controlplane/audit"},

	// Programs join the two.
	{"cmd/sally", ". alpn identity wire/... dataplane/dial dataplane/sigv4 controlplane/client controlplane/rbac cmd/internal/..."}, // rbac: the language of --query
	{"cmd/sallyctl", ". identity wire/... dataplane/dial controlplane/client controlplane/audit controlplane/ca/signed cmd/internal/..."},
	{"cmd/sallyport", ". alpn identity wire/... dataplane/... controlplane/... cmd/internal/... cmd/sallyport/crowd tools/peers/port"}, // the demo's servers are told their ports
	{"cmd/sallyport/crowd", ""}, // knows nothing of what it loads: so it can load others too
	{"cmd/internal/...", ". identity"},
	{"cmd/internal/completion", "cmd/internal/shell cmd/internal/usage"}, // made of the grammars that usage explains

	{"bench/...", "bench/... cmd/sallyport/crowd . alpn identity wire/... dataplane/... controlplane/... tools/peers/..."},
	{"fuzz/...", ". alpn identity wire/... dataplane/..."},
	{"test/...", ". alpn identity wire/... dataplane/... controlplane/..."},
	{"test/executable", ""},
	{"tools/peers/kube", "tools/peers/port"},     // its server is told its port: there is no way to ask for it
	{"tools/peers/postgres", "tools/peers/port"}, // the same
	{"tools/peers/mariadb", "tools/peers/port"},  // the same
	{"tools/peers/redis", "tools/peers/port"},    // the same
	{"tools/peers/dynalite", "tools/peers/port"}, // the same
	{"tools/...", ""},
}

// unlinked lists what a program must not contain, even through others.
var unlinked = map[string]string{
	"cmd/sally":    "controlplane/ca controlplane/store controlplane/api dataplane/relay",
	"cmd/sallyctl": "controlplane/ca controlplane/store controlplane/api dataplane/relay",
}

// testOnly lists modules of others that no program may contain, and what tests
// want of them.
var testOnly = map[string]string{
	"github.com/refraction-networking/utls": "the hellos of browsers (BSD-3-Clause); it brings brotli (MIT)",
	"github.com/tidwall/redcon":             "a second reader of Redis's protocol (MIT); it brings tidwall's btree and match (MIT)",
}

// pkg is what "go list -json" says of a package.
type pkg struct {
	ImportPath, Doc string
	Imports         []string
}

func TestHouse(t *testing.T) {
	for _, p := range list(t, ".", "./...") {
		for _, fault := range faults(p) {
			t.Error(fault)
		}
	}
}

func TestLinks(t *testing.T) {
	for prog, bad := range unlinked {
		out, err := exec.Command("go", "list", "-deps", "./"+prog).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", prog, err)
		}
		deps := strings.Fields(string(out))
		for _, b := range strings.Fields(bad) {
			for _, d := range deps {
				if d == module+"/"+b {
					t.Errorf("%s contains %s", prog, b)
				}
			}
		}
	}
}

func TestTestOnly(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, d := range strings.Fields(string(out)) {
		for m := range testOnly {
			if d == m || strings.HasPrefix(d, m+"/") {
				t.Errorf("a program contains %s", d)
			}
		}
	}
}

// TestHouseFindsFaults plants what the policy must refuse: a wrong import, and
// a package without a row.
func TestHouseFindsFaults(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module "+module+"\n\ngo 1.26\n")
	write("alpn/alpn.go", "// Package alpn is planted.\npackage alpn\n\nimport _ \""+module+"/dataplane/relay\"\n")
	write("dataplane/relay/relay.go", "// Package relay is planted.\npackage relay\n\nimport _ \""+module+"/controlplane/ca\"\n")
	write("controlplane/ca/ca.go", "// Package ca is planted.\npackage ca\n")
	write("misc/misc.go", "// Package misc is planted.\npackage misc\n")
	write("dataplane/session/session.go", "package session\n")

	var got []string
	for _, p := range list(t, dir, "./...") {
		got = append(got, faults(p)...)
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{
		"alpn must not import dataplane/relay",
		"dataplane/relay must not import controlplane/ca",
		"misc: not in the house",
		"dataplane/session: no package comment",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("planted fault not found: %s\ngot:\n%s", want, all)
		}
	}
	if len(got) != 4 {
		t.Errorf("%d faults found in the planted house, want 4:\n%s", len(got), all)
	}
}

func list(t *testing.T, dir string, pattern string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Doc", pattern)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// faults says what is wrong with one package, in words that name it.
func faults(p pkg) []string {
	name := local(p.ImportPath)
	may, ok := policy(name)
	if !ok {
		return []string{name + ": not in the house; add a line to deps_test.go saying what it may import"}
	}
	var out []string
	if p.Doc == "" && !strings.HasPrefix(name, "wire/") {
		out = append(out, name+": no package comment")
	}
	for _, imp := range p.Imports {
		if imp != module && !strings.HasPrefix(imp, module+"/") {
			continue
		}
		if !allowed(may, local(imp)) {
			out = append(out, name+" must not import "+local(imp))
		}
	}
	return out
}

func local(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
}

func policy(pkg string) (may []string, ok bool) {
	best := -1
	for _, h := range house {
		if covers(h.pkg, pkg) && len(h.pkg) > best {
			best, may, ok = len(h.pkg), strings.Fields(h.may), true
		}
	}
	return may, ok
}

func allowed(may []string, pkg string) bool {
	for _, m := range may {
		if m == "." && pkg == "" || m != "." && covers(m, pkg) {
			return true
		}
	}
	return false
}

func covers(pattern, pkg string) bool {
	if dir, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	return pattern == pkg
}
